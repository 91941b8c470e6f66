"""From a command line to what is trained: the base, the weights, the edits and the objective."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from editors.data.datasets import prior_lines, prior_subjects, read_edits, read_text
from editors.mend.checkpoint import CardStage, DataFile, EditorCard, TrainedEditor
from editors.mend.transform import MendTransform, shapes_of
from editors.methods.mend_sum import published_inner_params
from editors.methods.select import require_inner
from editors.models.families import EditableModel, editable
from editors.models.inner_params import default_subject_params
from editors.models.tokens import Encoded
from editors.solve.ledger import Ledger
from editors.solve.natural_gradient import NaturalGradient
from editors.solve.prior import measure_prior
from editors.training.arguments import (
    DTYPES,
    FRAMED,
    data_files,
    loop_settings,
    objective_of,
    objective_settings,
    use_settings,
)
from editors.training.examples import Examples, make_examples, split
from editors.training.framed_examples import FramedExamples, kept_in, make_framed_examples
from editors.training.framed_objective import FramedObjective, FramedSettings
from editors.training.mend_objective import MendObjective, MendObjectiveSettings
from editors.training.objective import Objective
from editors.training.solved_objective import SolvedObjective
from editors.weights.loading import load_base
from pipeline.domain.edits import Edit
from pipeline.domain.errors import Misconfigured
from pipeline.domain.formats.canonical import sha256_json
from pipeline.domain.rank_api import BEFORE_FRAMES, EditorSettings

Say = Callable[[str], None]


class LoadBase(Protocol):
    """Loads a base, as `loading.load_base` does."""

    def __call__(self, folder: Path, inner_param_names: Sequence[str] = (), *, task: str = "causal") -> EditableModel:
        """Return the base, whole or with this rank's part of its weights."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class _Inputs:
    """What the files that a command line names hold."""

    edits: Sequence[Edit]
    """Edits to learn from; to validate on, too, where no file of those is named."""
    judged: Sequence[Edit]
    """Edits to validate on, of a file of their own."""
    text: str
    """Plain text that has to stay."""
    priors: Sequence[Sequence[str]]
    """Lines of each text that a prior is measured over."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a run trains, and on what."""

    objective: Objective
    """The objective that gives the losses."""
    transform: MendTransform
    """The transform that is trained."""
    card: EditorCard
    """Card of the editor, without figures and steps."""
    held_out: tuple[Edit, ...]
    """Edits that the run is validated on."""

    def editor(self, figures: Mapping[str, float], num_steps: int) -> TrainedEditor:
        """Return the editor as it is now, with a card that says the figures and steps."""
        card = replace(self.card, metrics=dict(figures), num_steps=num_steps)
        return TrainedEditor(card=card, transform=self.transform)


def set_up(given: argparse.Namespace, run: Mapping[str, Any], say: Say, load: LoadBase = load_base) -> Setup:
    """Load and encode everything that a run needs.

    Args:
        given: the command line.
        run: what the run is; its command stands in the card.
        say: shows a line.
        load: loads the base; where ranks hold it together, each of them sets up the run.

    Raises:
        CorrigendaError: if the base, a weight or the edits cannot be used.
    """
    inputs = _inputs(given)
    say(f"{len(inputs.edits)} edits; loading {given.model}")
    model, stages = _model(given, load)
    transform = MendTransform(
        shapes_of(model.inner),
        rank=given.rank,
        statistics="shape" if given.solver != "recursive" else "token",
        stop_probability=1.0 if given.solver != "recursive" else given.stop_probability,
        seed=given.seed,
    ).to(model.device)
    say(f"reading what the base says; training for {', '.join(model.inner_param_names)}")
    objective = _objective(given, run, model, transform, inputs, say)
    card = _card(given, run, stages=stages, transform=transform)
    held_out = split(inputs.edits, inputs.judged, num_held_out=given.held_out)[1]
    return Setup(objective=objective, transform=transform, card=card, held_out=tuple(held_out))


def prepare(given: argparse.Namespace, run: Mapping[str, Any], say: Say, load: LoadBase = load_base) -> str:
    """Make the file of examples that `--prepared` names, if it is not there; return what it holds in words.

    Raises:
        Misconfigured: if no file is named, or the solver trains on no frames.
        CorrigendaError: as `set_up`.
    """
    if given.prepared is None or objective_of(given) != FRAMED:
        raise Misconfigured("expected --prepared FILE and an editor with frames for --only-prepare")
    inputs = _inputs(given)
    model, _ = _model(given, load)
    examples = _framed_examples(given, run, model, inputs)
    return f"{given.prepared}: {len(examples.training)} edits to learn from, {len(examples.held_out)} to validate on"


def _inputs(given: argparse.Namespace) -> _Inputs:
    """Read all files before anything is loaded."""
    edits = [edit for path in given.data for edit in read_edits(path, limit=given.limit)]
    judged = read_edits(given.validation) if given.validation else []
    known = {edit.request.relation for edit in (*edits, *judged)}
    if unknown := [name for name in given.new_relations if name not in known]:
        raise Misconfigured(f"expected --new-relation to name the relation of an edit, got {unknown[0]!r:.80}")
    priors = [prior_lines(path) for path in given.prior_text]
    return _Inputs(edits=edits, judged=judged, text=read_text(given.text), priors=priors)


def _model(given: argparse.Namespace, load: LoadBase) -> tuple[EditableModel, tuple[CardStage, ...]]:
    """Return the base with the weights that the transform is for, and all that the editor will edit, stage by stage."""
    loaded = load(given.model, given.inner_params, task=given.task)
    if given.solver != "recursive":
        names = tuple(given.inner_params) or published_inner_params(loaded.module)
        model = editable(given.task, loaded.module, loaded.tokenizer, names, comm=loaded.comm)
        return model, (CardStage(inner_params=model.inner_param_names, key_tokens="all"),)
    require_inner(given.subject_params, loaded.inner_param_names)
    subject = tuple(given.subject_params) or _subject_params(loaded)
    if not subject:
        raise Misconfigured("expected --subject-param: the weights to train for, with a row for each edit's subject")
    model = editable(given.task, loaded.module, loaded.tokenizer, subject, comm=loaded.comm)
    stages = [CardStage(inner_params=model.inner_param_names, key_tokens="subject")]
    later = tuple(name for name in loaded.inner_param_names if name not in subject)
    if later and (given.inner_params or loaded.task != "classifier"):
        stages.append(CardStage(inner_params=later, key_tokens="answer"))
    return model, tuple(stages)


def _subject_params(model: EditableModel) -> tuple[str, ...]:
    """Return the weights whose rows are subject tokens: those of the default blocks, or of the encoder."""
    usual = default_subject_params(model.module)
    if usual or model.task == "causal":
        return tuple(name for name in usual if name in model.inner_param_names)
    first = [param for param in model.inner if param.blocks_name == model.inner[0].blocks_name]
    depth = len(list(model.module.get_submodule(first[0].blocks_name).children()))
    # A classifier's head reads one token of the last block: at other tokens, outputs of that block change nothing.
    return tuple(param.name for param in first if model.task != "classifier" or param.block < depth - 1)


def _objective(
    given: argparse.Namespace,
    run: Mapping[str, Any],
    model: EditableModel,
    transform: MendTransform,
    inputs: _Inputs,
    say: Say,
) -> Objective:
    settings, edits, judged = objective_settings(given), inputs.edits, inputs.judged
    make = partial(
        make_examples,
        *(model, edits, judged, inputs.text),
        num_held_out=given.held_out,
        has_subjects=not isinstance(settings, MendObjectiveSettings),
        new_relations=given.new_relations,
    )
    if isinstance(settings, MendObjectiveSettings):
        _compute_in(model, given.dtype)
        examples = make()
        _describe(examples, edits, judged, say, needed="rephrases")
        return MendObjective(model, transform, examples, settings)
    # The prior is measured in the dtype that the base is stored in, and so before `_compute_in`.
    prior = measure_prior(model, *inputs.priors, subjects=prior_subjects(given.prior_text))
    ledger = Ledger(prior, strength=given.prior_strength, ridge=given.ridge, device=model.device)
    natural = NaturalGradient(prior, given.damping)
    _compute_in(model, given.dtype)
    if isinstance(settings, FramedSettings):
        use = _use(given, model)
        framed = _framed_examples(given, run, model, inputs)
        _check_rows(model, framed.training[0].frames.asked[0])
        _describe(framed, edits, judged, say)
        return FramedObjective(model, transform, framed, ledger, natural, use, settings)
    examples = make()
    _check_rows(model, examples.training[0].edit)
    _describe(examples, edits, judged, say)
    return SolvedObjective(model, model.inner, transform, examples, ledger, natural, settings)


def _use(given: argparse.Namespace, model: EditableModel) -> EditorSettings:
    return EditorSettings(**use_settings(given), subject_params=model.inner_param_names)


def _framed_examples(
    given: argparse.Namespace,
    run: Mapping[str, Any],
    model: EditableModel,
    inputs: _Inputs,
) -> FramedExamples:
    """Return the edits in their frames, from the prepared file if there is one."""
    use = _use(given, model)
    return kept_in(
        given.prepared,
        _made_of(run, use),
        lambda: make_framed_examples(
            model,
            inputs.edits,
            inputs.judged,
            inputs.text,
            use=use,
            num_held_out=given.held_out,
            new_relations=given.new_relations,
        ),
    )


def _made_of(run: Mapping[str, Any], use: EditorSettings) -> str:
    """Return the digest of all that examples in their frames follow from."""
    shape = {name: run["settings"][name] for name in ("held_out", "limit", "new_relations", "task")}
    framed = {name: getattr(use, name) for name in (*BEFORE_FRAMES, "subject_params")}
    files = {name: digest for name, digest in run["data"].items() if not name.startswith("prior")}
    return sha256_json({"base": run["base_digest"], "data": files, **shape, **framed})


def _compute_in(model: EditableModel, dtype: str) -> None:
    """Let the base compute in a dtype; in bfloat16 on a CPU, written-out attention is faster than the fused one."""
    if next(model.module.parameters()).dtype is not DTYPES[dtype]:
        model.module.to(DTYPES[dtype])
    if dtype == "bfloat16" and model.device.type == "cpu":
        module: Any = model.module
        module.set_attn_implementation("eager")


def _check_rows(model: EditableModel, sequence: Encoded) -> None:
    """Refuse weights with more than one row for an edit's prompt, which no solved objective can take."""
    batch = model.pack([sequence])
    for param in model.inner:
        if (found := len(model.key_positions(batch, param, "subject")[0])) != 1:
            raise Misconfigured(f"expected a weight with one row for an edit's subject, got {found} in {param.name}")


def _describe(
    examples: Examples | FramedExamples,
    edits: Sequence[Edit],
    judged: Sequence[Edit],
    say: Say,
    *,
    needed: str = "rephrases or subject",
) -> None:
    unused = len(edits) - len(examples.training) - (0 if judged else len(examples.held_out))
    say(
        f"{len(examples.training)} edits to learn from, {len(examples.held_out)} to validate on, "
        f"{unused} of no use: without {needed}, or about what is validated on"
    )


def _card(
    given: argparse.Namespace, run: Mapping[str, Any], *, stages: tuple[CardStage, ...], transform: MendTransform
) -> EditorCard:
    files = data_files(given)
    return EditorCard(
        base_digest=run["base_digest"],
        task=given.task,
        solver=given.solver,
        stages=stages,
        shapes=tuple((name, *shape) for name, shape in transform.shapes.items()),
        rank=transform.rank,
        statistics=transform.statistics,
        stop_probability=transform.stop_probability,
        settings={name: value for name, value in use_settings(given).items() if name != "stop_probability"},
        training=asdict(objective_settings(given)) | asdict(loop_settings(given)) | {"dtype": given.dtype},
        data=tuple(DataFile(name=path.name, digest=run["data"][use], use=use) for use, path in files.items()),
        metrics={},
        command=without_folders(run["command"]),
        num_steps=0,
        versions=run["versions"],
        licence=given.licence,
    )


def without_folders(command: str) -> str:
    """Return a command without the folders of its files: an editor's card travels, and digests say what they were."""
    return shlex.join(Path(word).name if Path(word).is_absolute() else word for word in shlex.split(command))
