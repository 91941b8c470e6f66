"""Which editor a lineage's settings ask for, and which settings a trained editor asks for."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import fields, replace
from typing import Any

from editors.mend.checkpoint import TrainedEditor
from editors.mend.transform import MendTransform
from editors.methods.base import Editor
from editors.methods.memoryless import MemorylessEditor
from editors.methods.recursive import RecursiveEditor
from editors.models.families import EditableModel
from editors.models.inner_params import default_subject_params
from pipeline.domain.errors import Misconfigured
from pipeline.domain.rank_api import BEFORE_FRAMES, EditorSettings


def editor_for(settings: EditorSettings, transform: MendTransform | None = None) -> Editor:
    """Return the editor that settings name.

    Args:
        settings: of the lineage.
        transform: the trained one that they name, already loaded.

    Raises:
        Misconfigured: for a solver or a transform that does not exist.
    """
    if transform is None and settings.transform != "gradient":
        raise Misconfigured(f"expected the transform `gradient`, got {settings.transform!r}, which is not installed")
    if settings.solver == "recursive":
        return RecursiveEditor(settings, transform)
    if settings.solver in ("least_squares", "row_sum", "sum"):
        return MemorylessEditor(settings, transform)
    raise Misconfigured(f"expected solver recursive, least_squares or row_sum, got {settings.solver!r}")


def learnt_settings(trained: TrainedEditor) -> dict[str, Any]:
    """Return the fields of `EditorSettings` with which a trained editor has to be used, as its card says."""
    card = trained.card
    known = {field.name for field in fields(EditorSettings)}
    of_subject = [stage for stage in card.stages if stage.key_tokens == "subject"]
    fixed = {
        "solver": card.solver,
        "transform": trained.digest,
        "inner_params": tuple(name for stage in card.stages for name in stage.inner_params),
        "subject_params": tuple(name for stage in of_subject for name in stage.inner_params),
        "stop_probability": card.stop_probability,
    }
    return BEFORE_FRAMES | {name: value for name, value in card.settings.items() if name in known} | fixed


def lineage_settings(trained: TrainedEditor, *, task: str) -> EditorSettings:
    """Return the settings of a lineage that a trained editor edits.

    Args:
        trained: the editor, already known to be of the lineage's base.
        task: of the lineage.

    Raises:
        Misconfigured: if it was trained for another task, or for a solver or rows that a lineage cannot keep.
    """
    card = trained.card
    if card.task != task:
        raise Misconfigured(f"expected an editor for the task {task}, got one for {card.task}")
    if other := {stage.key_tokens for stage in card.stages} - {"subject", "answer"}:
        raise Misconfigured(f"expected an editor whose rows are subject or answer tokens, got one with {min(other)}")
    settings = EditorSettings(**learnt_settings(trained))
    if not editor_for(settings, trained.transform).keeps_ledger:
        raise Misconfigured(
            f"expected an editor for a solver that can take edits out again (recursive), got one for {card.solver}"
        )
    return settings


def resolved(settings: EditorSettings, model: EditableModel) -> EditorSettings:
    """Return settings with the names of the inner parameters that the model was loaded with.

    Raises:
        Misconfigured: if they name a weight with rows of subjects that is not edited.
    """
    require_inner(settings.subject_params, settings.inner_params or model.inner_param_names)
    if settings.inner_params:
        return settings
    subject = settings.subject_params or default_subject_params(model.module)
    return replace(settings, inner_params=model.inner_param_names, subject_params=subject)


def require_inner(subject_params: Iterable[str], inner_params: Collection[str]) -> None:
    """Make sure that weights whose rows are subject tokens are edited.

    Raises:
        Misconfigured: naming the first that is not.
    """
    if others := [name for name in subject_params if name not in inner_params]:
        raise Misconfigured(
            f"expected --subject-param among the weights to edit, {', '.join(inner_params)}; got {others[0]!r:.200}"
        )
