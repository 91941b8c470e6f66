"""Loading a base, or a snapshot of it, whole onto one device.

model = load_base(Path("models/smollm2"))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoTokenizer
from transformers.utils import logging

from editors.models.capacity import found_device
from editors.models.digest import base_digest, require_base
from editors.models.families import EditableModel, family_of
from editors.weights.deltas import PlainWeights, WeightDelta, load_accumulators
from pipeline.domain.errors import Misconfigured
from pipeline.domain.rank_api import BaseSpec, FileRef

UNREADABLE = (
    OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError, ArithmeticError,
    StrictDataclassError,
)  # fmt: skip
"""What transformers raises over a folder that holds no model it can load."""


def load_base(
    folder: Path, inner_param_names: Sequence[str] = (), *, task: str = "causal", device: str = "cpu"
) -> EditableModel:
    """Load a model of a task with its tokenizer, in the dtype that it is stored in, onto a device.

    Raises:
        Misconfigured: if there is no such task or device, transformers can load no model for it, or the model has no
            such weight.
    """
    family, place = family_of(task), found_device(device)
    if not folder.is_dir():
        raise Misconfigured(f"expected a folder with a model, got {folder}")
    logging.disable_progress_bar()
    told = logging.get_verbosity()
    logging.set_verbosity_error()  # what is missing is told below, in a sentence
    try:
        module, report = family.loader.from_pretrained(folder, local_files_only=True, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:300]
        raise Misconfigured(f"expected a {task} model that transformers can load in {folder}, got: {reason}") from error
    finally:
        logging.set_verbosity(told)
    if missing := sorted(report["missing_keys"]):
        raise Misconfigured(f"expected every weight of a {task} model in {folder}, got none for {missing[0]}")
    return family(module.to(place), tokenizer, inner_param_names)


def load_snapshot(
    folder: Path,
    *,
    base: BaseSpec,
    inner_param_names: Sequence[str],
    accumulator: FileRef | None,
    deltas: Sequence[FileRef],
    device: str = "cpu",
) -> EditableModel:
    """Load a base and apply accumulators and deltas; every file is checked before the model is loaded.

    Args:
        folder: folder of the base.
        base: what it has to be, and its task.
        inner_param_names: names of the edited weights.
        accumulator: file of the accumulated shifts to begin with, if there is one.
        deltas: files of the deltas above it, in order.
        device: the device that the model goes to.

    Raises:
        IntegrityBroken: if a file does not have its digest.
        WrongBase: if the folder holds another model.
        Misconfigured: if the base cannot be loaded.
    """
    shifts = load_accumulators(Path(accumulator.path), accumulator.digest) if accumulator else {}
    changes = [WeightDelta.load(Path(delta.path), delta.digest) for delta in deltas]
    require_base(replace(base, ref=str(folder)), base_digest(folder))
    model = load_base(folder, inner_param_names, task=base.task, device=device)
    weights = PlainWeights(model.module, model.inner)
    if shifts:
        weights.set_accumulators(shifts)
    for change in changes:
        weights.apply(change)
    return model
