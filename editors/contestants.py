"""Knows who takes part in an evaluation: a solver each, with a trained editor or without, and its settings."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from editors.base import Editor
from editors.editable import EditableModel
from editors.evaluation_arguments import fine_tuning_of, settings_given
from editors.fine_tuning import FineTuningEditor
from editors.fingerprint import base_digest
from editors.published import PublishedEditor
from editors.selection import editor_for, learnt_settings, resolved
from editors.trained import TrainedEditor
from pipeline.domain.trials import EditorSettings

UNTRAINED = "ft"
"""The solver that takes no trained editor."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contestant:
    """One line of the picture."""

    settings: EditorSettings
    """Its constants; weights that nobody named are named by `on`."""
    trained: TrainedEditor | None
    """Where its shifts come from; the plain gradient if None."""
    given: argparse.Namespace
    """The command line."""

    def on(self, model: EditableModel) -> tuple[EditorSettings, Editor]:
        """Its settings with the weights of a model, and what edits by them."""
        settings = resolved(self.settings, model)
        if settings.solver == UNTRAINED:
            return settings, FineTuningEditor(fine_tuning_of(self.given))
        if settings.solver == "sum" and self.trained is not None:
            return settings, PublishedEditor(settings, self.trained.transform)
        return settings, editor_for(settings, self.trained.transform if self.trained else None)


def contestants_of(given: argparse.Namespace) -> dict[str, Contestant]:
    """Who takes part, by solver.

    Raises:
        Misconfigured: if a setting or a trained editor cannot be used on this base.
        IntegrityBroken: if a trained editor is damaged.
    """
    digest = base_digest(given.model) if given.editor else ""
    folders = {folder: TrainedEditor.load(folder, digest) for _, folder in given.editor}
    own = {solver: folders[folder] for solver, folder in given.editor if solver is not None}
    shared = next((folders[folder] for solver, folder in given.editor if solver is None), None)
    solvers = given.solver or (*own, *([shared.card.solver] if shared else [])) or ("recursive",)
    return {
        solver: _contestant(given, solver, None if solver == UNTRAINED else own.get(solver, shared))
        for solver in dict.fromkeys(solvers)
    }


def _contestant(given: argparse.Namespace, solver: str, trained: TrainedEditor | None) -> Contestant:
    learnt = learnt_settings(trained) if trained else {}
    asked = learnt | settings_given(given) | {"solver": solver, "batch_size": given.batch}
    settings = EditorSettings(**asked)
    return Contestant(settings=settings, trained=trained, given=given)
