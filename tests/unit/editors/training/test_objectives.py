"""Both objectives on a taught model: their gradients are those of the loss they show, and nothing else moves."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from editors.mend.transform import MendTransform, Statistics, shapes_of
from editors.models.families import EditableModel
from editors.solve.ledger import Ledger
from editors.solve.natural_gradient import NaturalGradient
from editors.solve.prior import Prior, measure_prior
from editors.training.examples import Examples, make_examples
from editors.training.mend_objective import MendObjective, MendObjectiveSettings
from editors.training.objective import LOSS, Losses, Objective
from editors.training.solved_objective import SolvedObjective, SolvedSettings
from editors.weights.loading import load_base
from pipeline.domain.errors import IntegrityBroken
from tests.support.taught import FACTS, correction, sentences

SOLVED, PUBLISHED = "recursive", "sum"
NAME = "model.layers.0.mlp.down_proj.weight"
EDITS = [correction(fact, neighbours=FACTS[place + 5 : place + 7]) for place, fact in enumerate(FACTS[:12])]
NUM_HELD_OUT = 4


@pytest.fixture(scope="module")
def model(taught: Callable[[str], Path]) -> EditableModel:
    return load_base(taught("llama"), [NAME])


@pytest.fixture(scope="module")
def prior(model: EditableModel) -> Prior:
    return measure_prior(model, sentences(FACTS))


def examples_of(model: EditableModel) -> Examples:
    text = "\n".join(sentences(FACTS[:6]))
    return make_examples(model, EDITS, [], text, num_held_out=NUM_HELD_OUT, has_subjects=True)


def objective_of(
    kind: str,
    model: EditableModel,
    prior: Prior,
    *,
    examples: Examples | None = None,
    share_edited: float = 0.0,
    batch: int = 4,
    num_text: int = 2,
) -> tuple[Objective, MendTransform]:
    """An objective after its beginning, with a network that is away from its start."""
    statistics: Statistics = "token" if kind == SOLVED else "shape"
    transform = MendTransform(
        shapes_of(model.inner), rank=4, statistics=statistics, stop_probability=0.8 if kind == SOLVED else 1
    )
    examples = examples or examples_of(model)
    objective: Objective
    if kind == SOLVED:
        ledger = Ledger(prior, strength=100.0, ridge=1e-3)
        settings = SolvedSettings(batch=batch, num_text=num_text, boost=5.0, share_edited=share_edited)
        objective = SolvedObjective(
            model, model.inner, transform, examples, ledger, NaturalGradient(ledger.prior, 0.1), settings
        )
    else:
        objective = MendObjective(model, transform, examples, MendObjectiveSettings(batch=batch, first_step=0.2))
    objective.begin()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in transform.networks.parameters():
            parameter += torch.randn(parameter.shape, generator=draw) * 0.05
    return objective, transform


def episode(objective: Objective, state: dict[str, Tensor], *, step: int = 0) -> Losses:
    """An episode from a state, always with the same random numbers."""
    objective.restore(state)
    return objective.episode(step, random.Random(5))  # noqa: S311


def copied(objective: Objective) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in objective.state().items()}


def test_a_state_that_lacks_a_tensor_is_refused(model: EditableModel, prior: Prior) -> None:
    objective, _ = objective_of(PUBLISHED, model, prior)
    state = copied(objective)
    del state["log_rate_M"]
    with pytest.raises(IntegrityBroken, match="log_rate_M"):
        objective.restore(state)


@pytest.mark.parametrize("num_text", [0, 2, 99])
def test_no_text_is_asked_in_a_validation_where_none_is_wanted(
    num_text: int, model: EditableModel, prior: Prior
) -> None:
    objective, _ = objective_of(SOLVED, model, prior, num_text=num_text)
    assert ("text_unchanged" in objective.validate()) == bool(num_text)


def test_edits_about_a_new_relation_are_validated_on_and_never_learnt_from(model: EditableModel) -> None:
    asked = [replace(edit, request=replace(edit.request, relation=f"R{n % 2}")) for n, edit in enumerate(EDITS)]
    whole, some = (
        make_examples(model, asked, [], "", num_held_out=NUM_HELD_OUT, has_subjects=True, new_relations=names)
        for names in ((), ("R0",))
    )
    assert some.held_out == whole.held_out
    assert some.training == whole.training[1::2]


@pytest.mark.parametrize("what", ["rates", "network"])
@pytest.mark.parametrize("kind", [SOLVED, PUBLISHED])
def test_the_gradient_of_an_episode_is_the_slope_of_its_loss(
    kind: str, what: str, model: EditableModel, prior: Prior
) -> None:
    objective, transform = objective_of(kind, model, prior)
    state = copied(objective)
    episode(objective, state).total.backward()
    parameters = [transform.log_rate_M] if what == "rates" else list(transform.networks.parameters())
    gradients = [torch.zeros_like(one) if one.grad is None else one.grad.clone() for one in parameters]
    length = float(torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt())
    assert length > 0
    # Along the gradient itself the slope is its length, and the difference is far above what fp32 rounds.
    far = 0.01
    ends = []
    for sign in (1, -1):
        moved = {name: tensor.clone() for name, tensor in state.items()}
        names = {id(one): name for name, one in transform.named_parameters()}
        for one, gradient in zip(parameters, gradients, strict=True):
            moved[names[id(one)]] += sign * far * gradient / length
        ends.append(episode(objective, moved).parts[LOSS])
    assert (ends[0] - ends[1]) / (2 * far) == pytest.approx(length, rel=0.01)


@pytest.mark.parametrize("share_edited", [0.0, 1.0])
@pytest.mark.parametrize("kind", [SOLVED, PUBLISHED])
def test_episodes_have_the_same_bits_and_leave_every_weight_as_it_was(
    kind: str, share_edited: float, model: EditableModel, prior: Prior
) -> None:
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    found = []
    for _ in range(2):
        objective, transform = objective_of(kind, model, prior, share_edited=share_edited)
        losses = episode(objective, copied(objective), step=2)
        losses.total.backward()
        found.append((losses.parts, [one.grad for one in transform.parameters()], copied(objective)))
    assert found[0][0] == found[1][0]
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert one is other or (one is not None and other is not None and torch.equal(one, other))
    assert all(torch.equal(tensor, found[1][2][name]) for name, tensor in found[0][2].items())
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.module.parameters())


@pytest.mark.parametrize("kind", [SOLVED, PUBLISHED])
def test_a_validation_changes_nothing_and_gives_the_same_figures_again(
    kind: str, model: EditableModel, prior: Prior
) -> None:
    objective, _ = objective_of(kind, model, prior)
    state = copied(objective)
    figures = objective.validate()
    assert objective.validate() == figures
    assert all(torch.equal(tensor, state[name]) for name, tensor in objective.state().items())


@pytest.mark.parametrize("kind", [SOLVED, PUBLISHED])
def test_statistics_and_rates_come_from_what_is_learnt_from_only(kind: str, model: EditableModel, prior: Prior) -> None:
    examples = examples_of(model)
    whole, _ = objective_of(kind, model, prior, examples=examples)
    fewer, _ = objective_of(kind, model, prior, examples=replace(examples, held_out=examples.held_out[:1]))
    other, _ = objective_of(kind, model, prior, examples=replace(examples, training=examples.training[:-2]))
    for validated in (whole, fewer):
        validated.validate()
    assert all(torch.equal(tensor, fewer.state()[name]) for name, tensor in whole.state().items())
    seen = [name for name in whole.state() if "num_seen" in name]
    assert all(bool(whole.state()[name] > other.state()[name]) for name in seen)
    if kind == SOLVED:
        assert [whole.state()[name].tolist() for name in seen] == [[len(examples.training)]]


@pytest.mark.parametrize("kind", [SOLVED, PUBLISHED])
def test_steps_along_the_gradient_bring_the_loss_down(kind: str, model: EditableModel, prior: Prior) -> None:
    objective, transform = objective_of(kind, model, prior)
    optimizer = torch.optim.Adam(
        [group | {"lr": lr} for group, lr in zip(objective.groups(), (3e-3, 3e-2), strict=True)]
    )
    found = []
    for _ in range(12):
        losses = objective.episode(0, random.Random(5))  # noqa: S311
        found.append(losses.parts[LOSS])
        optimizer.zero_grad()
        losses.total.backward()
        nn.utils.clip_grad_norm_(transform.parameters(), 1.0)
        optimizer.step()
    assert found[-1] < found[0]


@pytest.mark.parametrize("kind", [SOLVED, PUBLISHED])
def test_fewer_edits_than_a_step_takes_are_enough(kind: str, model: EditableModel, prior: Prior) -> None:
    examples = examples_of(model)
    objective, _ = objective_of(kind, model, prior, examples=examples, share_edited=1.0, batch=50)
    losses = episode(objective, copied(objective))
    losses.total.backward()
    assert losses.parts[LOSS] > 0
    if kind == SOLVED:
        assert losses.num_edits == len(examples.training), "none is left for the weights to hold before"


def test_single_edits_are_judged_each_for_itself(model: EditableModel, prior: Prior) -> None:
    figures = []
    for batch in (1, 4):
        _, transform = objective_of(PUBLISHED, model, prior)
        settings = MendObjectiveSettings(batch=batch, first_step=0.2)
        examples = replace(examples_of(model), text=())
        figures.append(MendObjective(model, transform, examples, settings).validate())
    for name, value in figures[0].items():
        assert figures[1][name] == pytest.approx(value, rel=1e-4, abs=1e-6)
