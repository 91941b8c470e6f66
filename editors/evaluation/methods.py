"""The methods that take part in an evaluation: a solver each, with a trained editor or without, and its settings."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from editors.evaluation.arguments import fine_tuning_of, settings_given
from editors.evaluation.gated import GATED, GatedEditor, GatedModel
from editors.evaluation.in_context import IN_CONTEXT, InContextEditor, InContextModel, Memory
from editors.evaluation.lookup import GatedMemory
from editors.mend.checkpoint import TrainedEditor
from editors.methods.base import Editor
from editors.methods.fine_tuning import FineTuningEditor
from editors.methods.mend_sum import MendSumEditor
from editors.methods.select import editor_for, learnt_settings, resolved
from editors.models.base import EditableModel
from editors.models.digest import base_digest
from editors.models.families import editable
from pipeline.domain.errors import Misconfigured
from pipeline.domain.rank_api import EditorSettings

UNTRAINED = "ft"
"""Fine-tuning, the baseline."""
WEIGHTLESS = (*IN_CONTEXT, GATED)
"""Methods that leave the weights alone, and read the model in their own way."""
IN_PASSES = ("recursive", "least_squares", "row_sum", "sum", GATED)
"""Methods that ask for shifts in passes, which read a prior and hold guards; others are not made to wait for either."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """A solver with everything that it edits by: one line of the picture."""

    settings: EditorSettings
    """Its constants; where no weights are named, `on` chooses them."""
    trained: TrainedEditor | None
    """The trained editor that its shifts come from; the natural gradient if None."""
    given: argparse.Namespace
    """The command line, for the constants of fine-tuning."""

    @property
    def reads_prior(self) -> bool:
        """Whether its passes, or its solve, read the prior."""
        return self.settings.solver in IN_PASSES

    def model_of(self, loaded: EditableModel) -> EditableModel:
        """Return a base as this method edits it: by its weights, by what is looked up, or by facts before prompts."""
        module, tokenizer, names = loaded.module, loaded.tokenizer, self.settings.inner_params
        if self.settings.solver not in WEIGHTLESS:
            return editable(loaded.task, module, tokenizer, names, comm=loaded.comm)
        keeps_one = self.given.protocol == "single"
        if self.settings.solver == GATED:
            return GatedModel(module, tokenizer, names, memory=GatedMemory(self.given.gate, keeps_one=keeps_one))
        return InContextModel(module, tokenizer, names, Memory(self.settings.solver, keeps_one=keeps_one))

    def on(self, model: EditableModel) -> tuple[EditorSettings, Editor]:
        """Return its settings with the weights of a model named, and the editor that edits by them."""
        settings = resolved(self.settings, model)
        transform = self.trained.transform.to(model.device) if self.trained else None
        if settings.solver in IN_CONTEXT:
            return settings, InContextEditor()
        if settings.solver == GATED:
            return settings, GatedEditor(settings)
        if settings.solver == UNTRAINED:
            return settings, FineTuningEditor(fine_tuning_of(self.given), settings)
        if self.trained is not None and self.trained.card.is_published:
            return settings, MendSumEditor(self.trained.transform)
        return settings, editor_for(settings, transform)


def methods_of(given: argparse.Namespace) -> dict[str, Method]:
    """Return the methods by solver. A trained editor that no solver was named for serves every one that it can.

    Raises:
        Misconfigured: if a setting or a trained editor cannot be used on this base, nobody would use it, or a method
            cannot run: all before the first of them is measured.
        IntegrityBroken: if a trained editor is damaged.
    """
    digest = base_digest(given.model) if given.editor else ""
    folders = {folder: TrainedEditor.load(folder, digest) for _, folder in given.editor}
    own = {solver: folders[folder] for solver, folder in given.editor if solver is not None}
    shared = [folders[folder] for solver, folder in given.editor if solver is None]
    if len(shared) > 1:
        raise Misconfigured(f"expected one --editor for all solvers, got {len(shared)}; SOLVER=FOLDER names one each")
    solvers = tuple(given.solver or (*own, *(trained.card.solver for trained in shared)) or ("recursive",))
    for solver, trained in own.items():
        if solver not in solvers or not _serves(trained, solver):
            raise Misconfigured(
                f"expected an editor for a solver out of {', '.join(solvers)}, got one trained for "
                f"{trained.card.solver} as that of {solver}"
            )
    chosen = {
        solver: own.get(solver) or next((trained for trained in shared if _serves(trained, solver)), None)
        for solver in solvers
    }
    if shared and shared[0] not in chosen.values():
        raise Misconfigured(
            f"expected a solver that an editor trained for {shared[0].card.solver} can serve, got {', '.join(solvers)}"
        )
    return {solver: _method(given, solver, trained) for solver, trained in chosen.items()}


def _serves(trained: TrainedEditor, solver: str) -> bool:
    """Return whether a solver can use an editor: MEND as published has rows and gradients of its own.

    `sum` is the older word for both `mend` and `row_sum`: which one is meant, the editor says.
    """
    return solver == "sum" or (
        solver not in (UNTRAINED, *WEIGHTLESS) and trained.card.is_published == (solver == "mend")
    )


def _method(given: argparse.Namespace, solver: str, trained: TrainedEditor | None) -> Method:
    if solver == "mend" and trained is None:
        raise Misconfigured("expected a trained editor for the solver mend, got none")
    if solver in WEIGHTLESS and given.task != "causal":
        raise Misconfigured(f"expected a causal base for the method {solver}, got {given.task}")
    asked = settings_given(given)
    if trained is not None:
        if names := {"inner_params", "subject_params"} & asked.keys():
            raise Misconfigured(f"expected the weights of the trained editor's card, got others as {min(names)}")
        asked = learnt_settings(trained) | asked
        trained.transform.stop_probability = asked["stop_probability"]
    if solver not in IN_PASSES:
        asked["num_guards"] = 0
    settings = EditorSettings(**asked | {"solver": solver, "batch_size": given.batch})
    return Method(settings=settings, trained=trained, given=given)
