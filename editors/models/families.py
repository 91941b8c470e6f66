"""The class that serves the models of each task.

model = editable("seq2seq", module, tokenizer)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

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


FAMILIES: dict[str, type[EditableModel]] = {kind.task: kind for kind in (CausalModel, Seq2SeqModel, ClassifierModel)}
"""Task of a lineage -> the class that serves it."""


def family_of(task: str) -> type[EditableModel]:
    """Return the class that serves a task.

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
    return family_of(task)(module, tokenizer, inner_param_names, comm=comm)
