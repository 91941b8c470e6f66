"""The class that serves each task, and the loader of transformers that goes with it.

model = editable("seq2seq", module, tokenizer)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from editors.models.base import EditableModel, Pair
from editors.models.causal import CausalModel
from editors.models.classifier import ClassifierModel
from editors.models.comm import ALONE, Comm
from editors.models.inner_params import InnerParam
from editors.models.seq2seq import Seq2SeqModel
from editors.models.tokens import TargetBatch
from pipeline.domain.errors import Misconfigured

__all__ = [
    "CausalModel",
    "ClassifierModel",
    "EditableModel",
    "InnerParam",
    "Pair",
    "Seq2SeqModel",
    "TargetBatch",
    "editable",
    "family_of",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """The classes that serve a task."""

    model: type[EditableModel]
    """Class of ours that feeds and reads the models of the task."""
    loader: Any
    """Class of transformers whose `from_pretrained` loads these models."""


FAMILIES = {
    "causal": Family(model=CausalModel, loader=AutoModelForCausalLM),
    "seq2seq": Family(model=Seq2SeqModel, loader=AutoModelForSeq2SeqLM),
    "classifier": Family(model=ClassifierModel, loader=AutoModelForSequenceClassification),
}
"""Task of a lineage -> the classes that serve it."""


def family_of(task: str) -> Family:
    """Return the classes that serve a task.

    Raises:
        Misconfigured: for a task that does not exist.
    """
    if task not in FAMILIES:
        raise Misconfigured(f"expected a base with task {', '.join(FAMILIES)}, got {task!r}")
    return FAMILIES[task]


def editable(
    task: str, module: nn.Module, tokenizer: Any, inner_param_names: Sequence[str] = (), *, comm: Comm = ALONE
) -> EditableModel:
    """Return a loaded module as an editable model of its task; the arguments are those of `EditableModel`.

    Raises:
        Misconfigured: for a task that does not exist, an unknown architecture or a name that the model does not have.
    """
    return family_of(task).model(module, tokenizer, inner_param_names, comm=comm)
