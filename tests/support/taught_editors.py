"""Trains a small MEND transform for a taught model in seconds: with the solve in the loop, on other people than asked.

Its rows are the subject's last token, where one row serves every way of asking; what is still missing then is asked
by the gradient at answer tokens, in a decoder's layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from editors.data.datasets import edit_lines
from editors.mend.checkpoint import CardStage, EditorCard, TrainedEditor
from editors.mend.transform import MendTransform, shapes_of
from editors.methods.mend_sum import published_inner_params
from editors.models.digest import base_digest
from editors.models.families import EditableModel
from editors.solve.ledger import Ledger
from editors.solve.natural_gradient import NaturalGradient
from editors.solve.prior import measure_prior
from editors.training.examples import Examples, make_examples
from editors.training.loop import LoopSettings, TrainingRun
from editors.training.mend_objective import MendObjective, MendObjectiveSettings
from editors.training.objective import Objective
from editors.training.run_folder import BEST, TrainingFolder
from editors.training.solved_objective import SolvedObjective, SolvedSettings
from pipeline.domain.edits import Edit, Probe
from pipeline.domain.rank_api import EditorSettings
from tests.support.taught import FACTS, NAMES, Fact, correction, load_pupil, sentences
from tests.support.training_parts import Silent

LEARNT_FROM, JUDGED_BY = NAMES[:11], NAMES[11:14]
"""Whose facts the transform learns from; everybody else's can be edited to see what it has learnt."""
UNSEEN = tuple(fact for fact in FACTS if fact.subject in NAMES[14:])
"""Twenty facts that no transform was trained on."""
STEPS = 60
"""Seconds, and enough for a better score than the start's."""
VALUES_OF_A_FACT, NEIGHBOURS = 3, 3
USE = EditorSettings(
    prior_strength=2000.0,
    ridge=1e-3,
    damping=0.05,
    stop_probability=0.8,
    step=0.5,
    num_passes=24,
    trained_passes=1,
    frames_per_pass=0,
    num_guards=0,
    rephrase_rows=2,
)
"""How the trained editor is used. All that counts is said here: the defaults are measured on other models.
Measured, of three quarters and more that tests ask for: 0.82 of what other people are and do stays, in every family."""

LEARN = SolvedSettings(batch=16, boost=10.0, network_lr=1e-3, rate_lr=3e-2, first_step=0.1, c_loc=3.0, c_text=3.0)
"""Short first steps: what 22 facts can teach a transform of natural gradients is how far to go, and little of where.
From longer ones the loss of what is learnt from falls, that of the people it is judged by rises. Measured: in every
family the best score is better than the start's by 10% or more."""

PUBLISHED = MendObjectiveSettings(c_edit=1.0, network_lr=1e-3, rate_lr=3e-2, first_step=0.02)
"""Steps that are far too short at first: what lands afterwards has been learnt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Which weights of a taught model are edited."""

    subject: tuple[str, ...]
    """At the subject's last token, by the transform."""
    answer: tuple[str, ...] = ()
    """At answer tokens, by the gradient."""


def _in_decoder(pattern: str) -> Places:
    """The first of three blocks takes the subject's rows."""
    subject, *answer = (pattern.format(i=place) for place in range(3))
    return Places(subject=(subject,), answer=tuple(answer))


PLACES = {
    **{kind: _in_decoder("model.layers.{i}.mlp.down_proj.weight") for kind in ("llama", "mistral", "qwen2", "qwen3")},
    **{kind: _in_decoder("transformer.h.{i}.mlp.c_proj.weight") for kind in ("gpt2", "gpt_neo")},
    "gptj": _in_decoder("transformer.h.{i}.mlp.fc_out.weight"),
    "t5": Places(
        subject=tuple(f"encoder.block.{i}.layer.1.DenseReluDense.wo.weight" for i in range(2)),
        answer=tuple(f"decoder.block.{i}.layer.2.DenseReluDense.wo.weight" for i in range(2)),
    ),
    "bart": Places(
        subject=tuple(f"model.encoder.layers.{i}.fc2.weight" for i in range(2)),
        answer=tuple(f"model.decoder.layers.{i}.fc2.weight" for i in range(2)),
    ),
    "bert": Places(subject=tuple(f"bert.encoder.layer.{i}.output.dense.weight" for i in range(2))),
}
"""By model type."""


def changes(facts: Sequence[Fact], *, task: str) -> list[Edit]:
    """A change of each fact; what a fact checker said of every other person is now false, so that no label gains."""
    return [
        (denial if task == "classifier" and place // 2 % 2 else correction)(fact, task=task)
        for place, fact in enumerate(facts)
    ]


def denial(fact: Fact, *, task: str, place: int = 0, neighbours: Sequence[Fact] = ()) -> Edit:
    """What a fact checker was taught to be true is false now."""
    edit = correction(fact, task=task, place=place, neighbours=neighbours)
    first, *others = (f"{prompt} {fact.value}" for prompt in fact.prompts)
    request = replace(edit.request, prompt=first, target_new="false", rephrases=tuple(others))
    return replace(edit, request=request)


def train_taught_editor(kind: str, base: Path, out: Path) -> Path:
    """Train an editor for a taught model; returns its folder. Same base, same bytes."""
    places = PLACES[kind]
    model = load_pupil(kind, base, places.subject + places.answer)
    return train_editor(model, places, _examples(model), sentences(FACTS), out, digest=base_digest(base))


def train_editor(
    model: EditableModel,
    places: Places,
    examples: Examples,
    prior_lines: Sequence[str],
    out: Path,
    *,
    digest: str,
    learn: SolvedSettings = LEARN,
    use: EditorSettings = USE,
    num_steps: int = STEPS,
) -> Path:
    """Train an editor.

    Args:
        model: the base, with all the places as inner parameters.
        places: of the subject's rows, which the transform asks, and of the others.
        examples: what it learns from.
        prior_lines: plain text, for the prior.
        out: folder of the run.
        digest: of the base.
        learn: constants of the objective.
        use: how the editor is going to be used.
        num_steps: how long.
    """
    params = tuple(param for param in model.inner if param.name in places.subject)
    transform = MendTransform(shapes_of(params), rank=16, statistics="token", stop_probability=use.stop_probability)
    ledger = Ledger(measure_prior(model, prior_lines), strength=use.prior_strength, ridge=use.ridge)
    natural = NaturalGradient(ledger.prior, use.damping)
    objective = SolvedObjective(model, params, transform, examples, ledger, natural, learn)
    return _run(
        objective, transform, _card(places, transform, use, base_digest=digest, task=model.task), out, num_steps
    )


def train_published_editor(kind: str, base: Path, out: Path, *, num_steps: int) -> Path:
    """Train MEND as published, over every MLP matrix of the last blocks, for a taught model; returns its folder."""
    names = published_inner_params(load_pupil(kind, base).module)
    model, digest = load_pupil(kind, base, names), base_digest(base)
    transform = MendTransform(shapes_of(model.inner), rank=16, statistics="shape")
    objective = MendObjective(model, transform, _examples(model), PUBLISHED)
    stage = CardStage(inner_params=model.inner_param_names, key_tokens="all")
    card = _card(Places(subject=()), transform, USE, base_digest=digest, task=model.task)
    return _run(objective, transform, replace(card, solver="sum", stages=(stage,)), out, num_steps)


def _run(objective: Objective, transform: MendTransform, card: EditorCard, out: Path, num_steps: int) -> Path:
    def editor(figures: Mapping[str, float], steps: int) -> TrainedEditor:
        return TrainedEditor(card=_measured(card, figures, steps), transform=transform)

    loop = LoopSettings(num_steps=num_steps, validate_every=max(num_steps // 3, 1), save_every=max(num_steps, 1))
    with TrainingFolder(out) as folder:
        folder.open_new({"settings": {}, "base_digest": card.base_digest, "data": "d" * 64, "command": card.command})
        TrainingRun(objective, loop, folder, make_editor=editor, watcher=Silent()).run(None)
    return out / BEST


def save_taught_edits(path: Path, *, task: str) -> None:
    """The edits that an editor is trained on, and after them those that it is judged by, as a file."""
    known = [fact for fact in FACTS if fact not in UNSEEN]
    learnt, judged = ([fact for fact in known if fact.subject in group] for group in (LEARNT_FROM, JUDGED_BY))
    edits = [_example(fact, known, task=task, place=n) for n in range(VALUES_OF_A_FACT) for fact in learnt]
    edits += [_example(fact, known, task=task) for fact in judged]
    path.write_bytes(edit_lines(edits))


def _examples(model: EditableModel) -> Examples:
    """Every fact of those that are learnt from with several other values, each of those that it is judged by once."""
    known = [fact for fact in FACTS if fact not in UNSEEN]
    learnt = [fact for fact in known if fact.subject in LEARNT_FROM]
    judged = [_example(fact, known, task=model.task) for fact in known if fact.subject in JUDGED_BY]
    edits = [_example(fact, known, task=model.task, place=n) for n in range(VALUES_OF_A_FACT) for fact in learnt]
    text = "\n".join(sentences(known))
    return make_examples(model, edits, judged, text, num_held_out=len(judged), has_subjects=True)


def _example(fact: Fact, known: Sequence[Fact], *, task: str, place: int = 0) -> Edit:
    """A correction with neighbours: what is known of others, and for a fact checker also what is false of them."""
    start = (known.index(fact) + 7 * place) % len(known)
    others = [other for other in (*known[start:], *known[:start]) if other.subject != fact.subject][:NEIGHBOURS]
    if task != "classifier":
        return correction(fact, task=task, place=place, neighbours=others)
    edit = (denial if place % 2 else correction)(fact, task=task, place=place, neighbours=others)
    false = [Probe(prompt=f"{other.prompts[place]} {other.others[place]}", target="false") for other in others]
    untrue = [Probe(prompt=f"{prompt} {fact.others[-1 - place]}", target="false") for prompt in fact.prompts[:1]]
    return replace(edit, request=replace(edit.request, locality=(*untrue, *edit.request.locality, *false)))


def _card(places: Places, transform: MendTransform, use: EditorSettings, *, base_digest: str, task: str) -> EditorCard:
    stages = [CardStage(inner_params=places.subject, key_tokens="subject")]
    if places.answer:
        stages.append(CardStage(inner_params=places.answer, key_tokens="answer"))
    used = ("prior_strength", "ridge", "damping", "step", "num_passes", "trained_passes", "rephrase_rows")
    return EditorCard(
        base_digest=base_digest,
        task=task,
        solver="recursive",
        stages=tuple(stages),
        shapes=tuple((name, width, height) for name, (width, height) in transform.shapes.items()),
        rank=transform.rank,
        statistics=transform.statistics,
        stop_probability=transform.stop_probability,
        settings={name: getattr(use, name) for name in used},
        training={},
        data=(),
        metrics={},
        command="tests.support.taught_editors",
        num_steps=0,
        versions={},
        licence="",
    )


def _measured(card: EditorCard, figures: Mapping[str, Any], num_steps: int) -> EditorCard:
    return replace(card, metrics={name: float(value) for name, value in figures.items()}, num_steps=num_steps)
