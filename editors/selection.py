"""Knows which editor a lineage's settings ask for."""

from __future__ import annotations

from dataclasses import replace

from editors.base import Editor
from editors.families import EditableModel
from editors.inner_params import default_subject_params
from editors.memoryless import MemorylessEditor
from editors.recursive import RecursiveEditor
from editors.transform import TrainedTransform
from pipeline.domain.errors import Misconfigured
from pipeline.domain.trials import EditorSettings


def editor_for(settings: EditorSettings, transform: TrainedTransform | None = None) -> Editor:
    """The editor that settings name.

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
    if settings.solver in ("least_squares", "sum"):
        return MemorylessEditor(settings, transform)
    raise Misconfigured(f"expected solver recursive, least_squares or sum, got {settings.solver!r}")


def resolved(settings: EditorSettings, model: EditableModel) -> EditorSettings:
    """Settings with the names of the inner parameters that the model was loaded with."""
    if settings.inner_params:
        return settings
    return replace(settings, inner_params=model.inner_param_names, subject_params=default_subject_params(model.module))
