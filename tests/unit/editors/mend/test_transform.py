"""MEND's transform network: equal to its equations, the identity at the start, and able to learn from there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from editors.mend.running_moments import EPSILON, RunningMoments
from editors.mend.transform import MendTransform, Statistics
from editors.methods.steps import Transform
from pipeline.domain.errors import EditorFailed, Misconfigured

WIDE, SQUARE = (6, 4), (5, 5)
SHAPES = {"a.weight": WIDE, "b.weight": SQUARE, "c.weight": WIDE}
NUM_TOKENS = 7


def pairs(name: str, seed: int = 0, num_tokens: int = NUM_TOKENS) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    width, height = SHAPES[name]
    return (
        torch.randn(num_tokens, width, generator=generator) * 3 + 1,
        torch.randn(num_tokens, height, generator=generator) * 0.01,
    )


def seen(transform: MendTransform, seed: int = 100) -> MendTransform:
    for place, name in enumerate(SHAPES):
        transform.observe(name, *pairs(name, seed + place, 50))
    return transform


def trained(rank: int = 3, statistics: Statistics = "shape") -> MendTransform:
    """A transform whose every parameter is away from where it starts."""
    transform = seen(MendTransform(SHAPES, rank=rank, statistics=statistics))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter += torch.randn(parameter.shape, generator=generator) * 0.3
    return transform


@pytest.mark.parametrize("num_batches", [1, 3])
def test_running_moments_equal_those_of_all_rows_together(num_batches: int) -> None:
    rows = torch.randn(30, 4, dtype=torch.float64) * torch.tensor([1.0, 1e-3, 50.0, 1.0]) + 1000
    moments = RunningMoments(4)
    for batch in rows.tensor_split(num_batches):
        moments.observe(batch)
    torch.testing.assert_close(moments.mean_SD[0], rows.mean(dim=0), rtol=1e-12, atol=0)
    torch.testing.assert_close(moments.std(), rows.std(dim=0, unbiased=False), rtol=1e-9, atol=0)
    expected = (rows - rows.mean(0)) / (rows.std(0, unbiased=False) + EPSILON)
    torch.testing.assert_close(moments.normalised(rows), expected)


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
def test_rows_that_are_not_finite_never_reach_the_moments_and_are_never_left_out_in_silence(odd: float) -> None:
    moments = RunningMoments(2)
    moments.observe(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    with pytest.raises(EditorFailed, match="got 2 of 3 that are not"):
        moments.observe(torch.tensor([[1.0, 2.0], [odd, 0.0], [3.0, odd]]))
    assert moments.num_seen_S.tolist() == [2]
    assert moments.mean_SD.tolist() == [[2.0, 3.0]]


def test_a_pair_that_is_not_finite_is_said_and_changes_no_statistics_of_its_inner_parameter() -> None:
    transform = MendTransform(SHAPES, rank=3)
    u, delta = pairs("a.weight")
    delta[0, 0] = float("nan")
    before = {name: tensor.clone() for name, tensor in transform.state_dict().items()}
    with pytest.raises(EditorFailed, match="finite rows"):
        transform.observe("a.weight", u, delta)
    assert all(torch.equal(tensor, before[name]) for name, tensor in transform.state_dict().items())


def test_at_the_start_the_transform_is_the_plain_normalised_pair() -> None:
    transform = seen(MendTransform(SHAPES, rank=3))
    u, delta = pairs("a.weight")
    moments = transform.networks["6x4"].moments
    expected = (torch.cat([u, delta], 1) - moments.mean_SD[0].float()) / (moments.std().float() + EPSILON)
    found = torch.cat(transform.pseudo("a.weight", u, delta), dim=1)
    assert torch.equal(found, expected)
    untouched = MendTransform(SHAPES, rank=3)
    assert torch.equal(torch.cat(untouched.pseudo("a.weight", u, delta), dim=1), torch.cat([u, delta], 1))


def test_by_token_the_start_is_the_plain_normalised_gradient_whatever_its_length() -> None:
    transform = seen(MendTransform(SHAPES, rank=3, statistics="token"))
    u, delta = pairs("a.weight", num_tokens=40)
    edited_u, edited_delta = transform.pseudo("a.weight", u, delta)
    moments = transform.networks["6x4"].moments
    joined = torch.cat([u, delta], dim=1)
    torch.testing.assert_close(edited_u, moments.normalised(joined, 0)[:, : u.shape[1]])
    normalised = delta / delta.norm(dim=1, keepdim=True) * delta.shape[1] ** 0.5
    torch.testing.assert_close(edited_delta, normalised)
    shift = transform.shift("a.weight", u, delta)
    reach = (u * edited_u).sum(dim=1).clamp(min=0)
    torch.testing.assert_close(shift, -transform.rate("a.weight").detach() * reach[:, None] * normalised)
    longer = transform.shift("a.weight", u, delta * torch.logspace(-6, 6, len(delta))[:, None])
    torch.testing.assert_close(longer, shift)


def test_by_token_a_shift_is_scaled_by_the_probability_that_is_missing() -> None:
    transform = seen(MendTransform(SHAPES, rank=3, statistics="token", stop_probability=0.8))
    u, delta = pairs("a.weight", num_tokens=4)
    asked = transform(name="a.weight", u_TI=u, delta_TO=delta, probability_T=torch.tensor([0.0, 0.5, 0.79, 0.8]))
    whole = transform.shift("a.weight", u, delta)
    torch.testing.assert_close(asked, torch.tensor([0.9, 0.4, 0.11, 0.0])[:, None] * whole)


def test_a_pair_is_transformed_by_the_equations_of_the_paper() -> None:
    transform = trained()
    found = torch.cat(transform.pseudo("c.weight", *pairs("c.weight")), dim=1)
    state = {name.removeprefix("networks.6x4."): value for name, value in transform.state_dict().items()}
    raw = torch.cat(pairs("c.weight"), dim=1)
    mean = state["moments.mean_SD"][0]
    std = (state["moments.squares_SD"][0] / state["moments.num_seen_S"][0]).sqrt()
    value = ((raw - mean) / (std + 1e-7)).float()
    for layer in ("first", "second"):
        low = torch.stack([state[f"{layer}.left_DR"] @ (state[f"{layer}.right_RD"] @ row) for row in value])
        inner = state[f"{layer}.scale_MD"][1] * (low + state[f"{layer}.bias_D"]) + state[f"{layer}.offset_MD"][1]
        value = value + torch.relu(inner)
    torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-5)


def test_the_shift_is_what_the_rank_one_update_does_at_its_own_key() -> None:
    transform = trained().requires_grad_(False)
    num_tokens = 60
    u, delta = pairs("a.weight", num_tokens=num_tokens)
    edited_u, edited_delta = transform.pseudo("a.weight", u, delta)
    shift = transform.shift("a.weight", u, delta)
    num_skipped = 0
    for row in range(num_tokens):
        update = -transform.rate("a.weight").detach() * torch.outer(edited_u[row], edited_delta[row])
        is_skipped = float(u[row] @ edited_u[row]) <= 0
        num_skipped += is_skipped
        expected = torch.zeros(4) if is_skipped else u[row] @ update
        torch.testing.assert_close(shift[row], expected, rtol=1e-4, atol=1e-5)
    assert 0 < num_skipped < num_tokens
    assert transform.num_skipped == num_skipped


def test_at_the_start_gradients_reach_the_zeros_that_have_to_learn() -> None:
    transform = seen(MendTransform(SHAPES, rank=3))
    transform.shift("a.weight", *pairs("a.weight")).square().sum().backward()
    network = transform.networks["6x4"]
    for layer in (network.first, network.second):
        for parameter in (layer.left_DR, layer.bias_D, layer.offset_MD):
            assert parameter.grad is not None
            assert float(parameter.grad.abs().sum()) > 0
    assert transform.log_rate_M.grad is not None
    assert [bool(value) for value in transform.log_rate_M.grad] == [True, False, False]


def test_a_few_steps_of_descent_bring_the_shift_to_what_is_asked() -> None:
    transform = seen(MendTransform(SHAPES, rank=3))
    u, delta = pairs("a.weight")
    wanted = torch.randn(NUM_TOKENS, 4, generator=torch.Generator().manual_seed(5))
    optimizer = torch.optim.Adam(transform.parameters(), lr=0.02)
    losses = []
    for _ in range(40):
        loss = (transform.shift("a.weight", u, delta) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 5


def test_inner_parameters_of_one_shape_share_a_network_and_keep_rows_of_their_own() -> None:
    transform = trained()
    assert sorted(transform.networks) == ["5x5", "6x4"]
    u, delta = pairs("a.weight")
    assert not torch.equal(transform.pseudo("a.weight", u, delta)[0], transform.pseudo("c.weight", u, delta)[0])
    transform.pseudo("c.weight", u, delta)[0].sum().backward()
    scale = transform.networks["6x4"].first.scale_MD.grad
    assert isinstance(scale, Tensor)
    assert not scale[0].any()
    assert scale[1].any()


@pytest.mark.parametrize(("statistics", "rows"), [("shape", [100]), ("param", [50, 50])])
def test_statistics_are_kept_by_shape_or_by_parameter(statistics: Statistics, rows: list[int]) -> None:
    transform = seen(MendTransform(SHAPES, rank=2, statistics=statistics))
    assert transform.networks["6x4"].moments.num_seen_S.tolist() == rows
    both = torch.cat([torch.cat(pairs(name, 100 + place, 50), 1) for place, name in ((0, "a.weight"), (2, "c.weight"))])
    expected = both.mean(0) if statistics == "shape" else both[50:].mean(0)
    found = transform.networks["6x4"].moments.mean_SD[-1]
    torch.testing.assert_close(found.float(), expected)


def test_the_statistics_are_in_the_checkpoint() -> None:
    transform = trained()
    other = MendTransform(SHAPES, rank=3, seed=9)
    other.load_state_dict(transform.state_dict())
    for name in SHAPES:
        assert torch.equal(transform.shift(name, *pairs(name)), other.shift(name, *pairs(name)))


def test_equal_seeds_and_pairs_give_equal_bits() -> None:
    first, second = trained(), trained()
    for name in SHAPES:
        assert torch.equal(first.shift(name, *pairs(name)), second.shift(name, *pairs(name)))


def test_a_token_without_gradient_asks_for_nothing_and_is_no_pair() -> None:
    transform = trained()
    u, delta = pairs("a.weight")
    delta[2] = 0
    u[4] = 0
    edited_u, edited_delta = transform.pseudo("a.weight", u, delta)
    for row in (2, 4):
        assert not edited_u[row].any()
        assert not edited_delta[row].any()
    before = int(transform.networks["6x4"].moments.num_seen_S[0])
    transform.observe("a.weight", u, delta)
    assert int(transform.networks["6x4"].moments.num_seen_S[0]) == before + NUM_TOKENS - 2


@pytest.mark.parametrize("step", [0.25, 1.0])
def test_initial_rates_make_a_shift_as_long_as_asked(step: float) -> None:
    transform = seen(MendTransform(SHAPES, rank=2))
    captured = {name: pairs(name) for name in SHAPES}
    transform.initial_rates(
        {name: pair[0] for name, pair in captured.items()},
        {name: pair[1] for name, pair in captured.items()},
        step=step,
    )
    assert transform.num_skipped == 0
    for name, (u, delta) in captured.items():
        length = transform.shift(name, u, delta).norm(dim=1).mean()
        torch.testing.assert_close(length, step * u.norm(dim=1).mean())


def test_pairs_that_ask_for_nothing_cannot_set_a_rate() -> None:
    transform = MendTransform({"a.weight": WIDE}, rank=2)
    u, delta = pairs("a.weight")
    with pytest.raises(EditorFailed, match=r"a\.weight"):
        transform.initial_rates({"a.weight": u}, {"a.weight": delta * 0}, step=0.5)


def test_as_a_transform_it_gives_no_gradient_and_lets_probable_tokens_rest() -> None:
    mend = trained()
    mend.stop_probability = 0.6
    transform: Transform = mend
    u, delta = pairs("a.weight")
    probability = torch.tensor([0.1, 0.6, 0.9, 0.2, 0.3, 0.5, 0.59])
    shift = transform(name="a.weight", u_TI=u, delta_TO=delta, probability_T=probability)
    assert not shift.requires_grad
    assert not shift[1:3].any()
    torch.testing.assert_close(shift[3:], mend.shift("a.weight", u, delta)[3:].detach())


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(Misconfigured, match="rank above 0"):
        MendTransform(SHAPES, rank=0)
    with pytest.raises(Misconfigured, match=r"z\.weight"):
        MendTransform(SHAPES, rank=1).pseudo("z.weight", *pairs("a.weight"))
