"""The objective of edits with frames on a taught model: the product's passes, unrolled, in a stream of edits."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from editors.mend.transform import MendTransform, shapes_of
from editors.methods.batch_update import BatchUpdate
from editors.models.comm import ALONE
from editors.models.families import EditableModel
from editors.solve.ledger import Ledger
from editors.solve.natural_gradient import NaturalGradient
from editors.solve.prior import Prior, measure_prior
from editors.training.framed_examples import FramedExample, FramedExamples, kept_in, make_framed_examples
from editors.training.framed_objective import TEXT, FramedObjective, FramedSettings
from editors.training.held_edits import HeldEdits
from editors.training.objective import LOSS, Losses
from editors.training.questions import judge
from editors.training.recorder import Recorder
from editors.weights.loading import load_base
from pipeline.domain.edits import Edit
from pipeline.domain.errors import EditorFailed, IntegrityBroken, InvalidInput
from pipeline.domain.rank_api import EditorSettings
from tests.support.taught import FACTS, correction, sentences

NAMES = tuple(f"model.layers.{place}.mlp.down_proj.weight" for place in range(2))
EDITS = [correction(fact, neighbours=FACTS[place + 5 : place + 7]) for place, fact in enumerate(FACTS[:12])]
NUM_HELD_OUT = 4
SEED = 3
"""Of episodes of three passes."""
USE = EditorSettings(
    prior_strength=100.0,
    stop_probability=0.8,
    num_passes=3,
    trained_passes=3,
    rephrase_rows=1,
    num_guards=2,
    subject_params=NAMES,
)
SETTINGS = FramedSettings(batch=4, num_text=2, num_views=2, num_earlier=2, stream_steps=4, c_text=5.0, first_step=0.3)


@pytest.fixture(scope="module")
def model(taught: Callable[[str], Path]) -> EditableModel:
    return load_base(taught("llama"), NAMES)


@pytest.fixture(scope="module")
def prior(model: EditableModel) -> Prior:
    return measure_prior(model, sentences(FACTS))


@pytest.fixture(scope="module")
def examples(model: EditableModel) -> FramedExamples:
    return examples_of(model, EDITS)


def examples_of(model: EditableModel, edits: Sequence[Edit], **more: Any) -> FramedExamples:
    text = "\n".join(sentences(FACTS[:6]))
    return make_framed_examples(model, edits, [], text, use=USE, num_held_out=NUM_HELD_OUT, **more)


def objective_of(
    model: EditableModel, prior: Prior, examples: FramedExamples, *, moved: float = 0.05, **changes: Any
) -> tuple[FramedObjective, MendTransform]:
    """An objective after its beginning, with a network that is away from its start."""
    transform = MendTransform(shapes_of(model.inner), rank=4, statistics="token", stop_probability=USE.stop_probability)
    ledger = Ledger(prior, strength=USE.prior_strength, ridge=USE.ridge)
    natural, settings = NaturalGradient(prior, 0.1), replace(SETTINGS, **changes)
    objective = FramedObjective(model, transform, examples, ledger, natural, USE, settings)
    objective.begin()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in transform.networks.parameters():
            parameter += torch.randn(parameter.shape, generator=draw) * moved
    return objective, transform


def episode(objective: FramedObjective, step: int = 0) -> Losses:
    """An episode, always with the same random numbers: of three passes."""
    return objective.episode(step, random.Random(SEED))  # noqa: S311


@pytest.mark.parametrize("what", ["rates", "network"])
def test_the_gradient_through_three_passes_is_the_slope_of_the_loss_with_keys_and_gradients_held(
    what: str, model: EditableModel, prior: Prior, examples: FramedExamples, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, transform = objective_of(model, prior, examples, share_edited=0.0)
    passes = objective._passes
    kept: list[tuple[BatchUpdate, Recorder]] = []

    def held(batch: Sequence[FramedExample], num: int, weights: HeldEdits, recorder: Recorder) -> BatchUpdate:
        """What the first call captured, with the shifts that the transform makes of it now."""
        if not kept:
            kept.append((passes(batch, num, weights, recorder), recorder))
        update, first = kept[0]
        recorder.asked, asked = first.asked, {}
        for name, of_passes in first.asked.items():
            asked[name] = torch.zeros_like(update.asked[name])
            for one in of_passes:
                wanted = transform(name=name, u_TI=one.u_HI, delta_TO=one.delta_HO, probability_T=one.probability_H)
                asked[name][one.shift_H] += wanted.double()
        return replace(update, asked=asked)

    monkeypatch.setattr(objective, "_passes", held)
    losses = episode(objective)
    losses.total.backward()
    update, first = kept[0]
    assert {len(of_passes) for of_passes in first.asked.values()} == {3}
    for name, asked in update.asked.items():  # what is asked again is what the passes asked
        assert torch.equal(held((), 3, HeldEdits(objective._ledger, (), ALONE), first).asked[name], asked)
    parameters = [transform.log_rate_M] if what == "rates" else list(transform.networks.parameters())
    gradients = [torch.zeros_like(one) if one.grad is None else one.grad.clone() for one in parameters]
    length = float(torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt())
    assert length > 0
    far, ends = 0.01, []
    for sign in (1, -1):
        with torch.no_grad():
            for one, gradient in zip(parameters, gradients, strict=True):
                one += sign * far * gradient / length
        ends.append(episode(objective).parts[LOSS])
        with torch.no_grad():
            for one, gradient in zip(parameters, gradients, strict=True):
                one -= sign * far * gradient / length
    assert (ends[0] - ends[1]) / (2 * far) == pytest.approx(length, rel=0.01)


def test_episodes_have_the_same_bits_and_leave_every_weight_as_it_was(
    model: EditableModel, prior: Prior, examples: FramedExamples
) -> None:
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    found = []
    for _ in range(2):
        objective, transform = objective_of(model, prior, examples, share_edited=1.0)
        for step in range(3):
            losses = episode(objective, step)
        losses.total.backward()
        found.append((losses.parts, [one.grad for one in transform.parameters()]))
    assert found[0][0] == found[1][0]
    assert "retention" in found[0][0]
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert one is other or (one is not None and other is not None and torch.equal(one, other))
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())


def test_steps_along_the_gradient_bring_the_loss_down(
    model: EditableModel, prior: Prior, examples: FramedExamples
) -> None:
    objective, transform = objective_of(model, prior, examples, moved=0.0, share_edited=0.0)
    groups = [group | {"lr": lr} for group, lr in zip(objective.groups(), (1e-2, 1e-1), strict=True)]
    optimizer, found = torch.optim.Adam(groups), []
    for _ in range(12):
        losses = episode(objective)
        found.append(losses.parts[LOSS])
        optimizer.zero_grad()
        losses.total.backward()
        nn.utils.clip_grad_norm_(transform.parameters(), 1.0)
        optimizer.step()
    assert found[-1] < 0.95 * found[0]


def test_a_run_that_goes_on_where_a_stream_begins_has_the_bits_of_one_that_was_not_stopped(
    model: EditableModel, prior: Prior, examples: FramedExamples
) -> None:
    whole, _ = objective_of(model, prior, examples, share_edited=1.0)
    for step in range(SETTINGS.stream_steps):
        episode(whole, step)
    assert whole._held.places
    again, _ = objective_of(model, prior, examples, share_edited=1.0)
    again.restore({name: tensor.clone() for name, tensor in whole.state().items()})
    for step in range(SETTINGS.stream_steps, SETTINGS.stream_steps + 2):
        assert episode(again, step).parts == episode(whole, step).parts


def test_a_validation_is_a_stream_that_changes_nothing_and_gives_the_same_figures_again(
    model: EditableModel, prior: Prior, examples: FramedExamples
) -> None:
    objective, _ = objective_of(model, prior, examples, batch=2)
    state = {name: tensor.clone() for name, tensor in objective.state().items()}
    figures = objective.validate()
    assert objective.validate() == figures
    assert {"score", "loss", "edit_success", "generalization", "retention", "text_kl"} <= figures.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in objective.state().items())


def test_edits_in_whose_stream_text_has_changed_too_far_are_given_up(
    model: EditableModel, prior: Prior, examples: FramedExamples
) -> None:
    objective, _ = objective_of(model, prior, examples, share_edited=1.0, max_text_kl=0.0)
    assert episode(objective).parts[TEXT.loss_name or ""] > 0
    assert not objective._held.places


def test_held_edits_on_which_a_pass_fails_are_given_up(
    model: EditableModel, prior: Prior, examples: FramedExamples, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, _ = objective_of(model, prior, examples, share_edited=1.0)
    episode(objective)
    assert objective._held.places

    def failing(*_: object, **__: object) -> BatchUpdate:
        raise EditorFailed("on purpose")

    monkeypatch.setattr("editors.training.framed_objective.passes_over", failing)
    with pytest.raises(EditorFailed, match="on purpose"):
        episode(objective, 1)
    assert not objective._held.places


def test_held_edits_are_the_sums_of_a_ledger(model: EditableModel, prior: Prior, examples: FramedExamples) -> None:
    objective, _ = objective_of(model, prior, examples)
    held = HeldEdits(objective._ledger, NAMES, ALONE)
    updates = []
    for first in (0, 4):
        updates.append(objective._passes(examples.training[first : first + 4], 2, held, Recorder()))
        held.take(updates[-1], range(first, first + 4))
    for name in NAMES:
        matrix_II = objective._ledger.without().matrix(name)
        keys_TI = torch.cat([update.keys[name].double() for update in updates])
        more_TI = torch.randn(3, keys_TI.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        expected_IT = torch.linalg.solve(matrix_II + keys_TI.T @ keys_TI + more_TI.T @ more_TI, more_TI.T)
        spread_TH = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        found_IH = held.factor(name, more_TI, spread_TH, torch.arange(3))
        assert torch.allclose(found_IH, expected_IT @ spread_TH, rtol=1e-7, atol=1e-10)
        shift_IO = sum((update.factors[name] @ update.asked[name] for update in updates), torch.zeros(()))
        assert torch.equal(held.start[name][0], shift_IO)
    assert held.places == list(range(8))
    assert not held.at_base().start


def test_forwards_in_bfloat16_give_nearly_the_same_losses_against_the_same_answers_of_the_base(
    model: EditableModel, prior: Prior, examples: FramedExamples, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, references = [], []

    def judged(*arguments: Any, **more: Any) -> dict[str, float]:
        references.append(arguments[3])
        return judge(*arguments, **more)

    monkeypatch.setattr("editors.training.framed_objective.judge", judged)
    for dtype in ("float32", "bfloat16"):
        objective, transform = objective_of(model, prior, examples, share_edited=0.0, forward_dtype=dtype)
        losses = episode(objective)
        losses.total.backward()
        gradients = [one.grad for one in transform.parameters() if one.grad is not None]
        assert any(bool(one.any()) for one in gradients)
        assert all(bool(torch.isfinite(one).all()) for one in gradients)
        found.append(losses.parts)
    assert found[1] != found[0]
    assert found[1]["edit_nll"] == pytest.approx(found[0]["edit_nll"], rel=0.1)
    whole, half = references
    assert whole.keys() == half.keys()
    assert all(torch.equal(reading.log_top_TK, half[sequence].log_top_TK) for sequence, reading in whole.items())


def test_half_of_the_questions_are_kept_from_the_editor_and_new_relations_are_only_judged(
    model: EditableModel, examples: FramedExamples
) -> None:
    asked = [
        replace(edit, request=replace(edit.request, question=f"where lives {edit.request.subject}")) for edit in EDITS
    ]
    first, second = examples_of(model, asked).training[:2]
    assert len(first.frames.asked) == len(second.frames.asked)
    assert first.frames.asked != examples.training[0].frames.asked, "the question is a frame"
    assert second.frames.asked == examples.training[1].frames.asked, "it is only asked"
    for example in (first, second):
        assert example.views
        assert not {view.prompt_ids for view in example.views} & {frame.prompt_ids for frame in example.frames.asked}
    relations = [replace(edit, request=replace(edit.request, relation=f"R{n % 2}")) for n, edit in enumerate(EDITS)]
    found = examples_of(model, relations, new_relations=["R0"])
    assert len(found.training) == len(examples.training) / 2
    assert [one.has_new_relation for one in found.held_out] == [True, False] * (NUM_HELD_OUT // 2)


def test_prepared_examples_come_back_as_they_were_and_only_for_what_they_were_made_of(
    tmp_path: Path, examples: FramedExamples
) -> None:
    path, made = tmp_path / "prepared.gz", []

    def make() -> FramedExamples:
        made.append(1)
        return examples

    assert kept_in(path, "a" * 64, make) == kept_in(path, "a" * 64, make) == examples
    assert made == [1]
    with pytest.raises(InvalidInput, match="these edits, this base"):
        kept_in(path, "b" * 64, make)
    whole = path.read_bytes()
    damaged = [b"no", whole[: len(whole) // 2]]
    damaged += [whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :] for place in range(0, len(whole), 97)]
    for content in damaged:
        path.write_bytes(content)
        try:
            assert kept_in(path, "a" * 64, make) == examples, "only what says nothing of the content may differ"
        except IntegrityBroken as error:
            assert "prepared examples" in str(error)  # noqa: PT017
