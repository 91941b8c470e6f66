"""Knows how to load a base model from a folder, whole on the CPU. Knows no edit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from editors.families import CausalModel
from pipeline.domain.errors import Misconfigured


def load_base(folder: Path, inner_param_names: Sequence[str] = ()) -> CausalModel:
    """A causal model in the dtype it is stored in, with its tokenizer.

    Raises:
        Misconfigured: if transformers cannot load it, or an inner parameter is none of its weights.
    """
    if not folder.is_dir():
        raise Misconfigured(f"expected a folder with a model, got {folder}")
    logging.disable_progress_bar()
    try:
        module = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        raise Misconfigured(f"expected a causal model that transformers can load in {folder}, got: {reason}") from error
    return CausalModel(module, tokenizer, inner_param_names)
