"""What follows a beginning that was read once is asked as whole sequences are, on models of every kind of attention."""

from __future__ import annotations

import pytest
import torch

from editors.methods.pairs import key_gradients
from editors.models import causal
from editors.models.causal import CausalModel
from editors.models.hooks import side_branch
from editors.models.tokens import Encoded, cut, num_tokens
from tests.unit.editors.models.test_batched_answers import FAMILIES, prompts_with, tiny_family

STARTS = [14, 0, 9, 9, 1]
"""Of sequences: two begin alike, one has nothing before, and one a single token."""


@pytest.fixture(params=sorted(FAMILIES))
def model(request: pytest.FixtureRequest) -> CausalModel:
    return tiny_family(request.param)


def sequences() -> list[Encoded]:
    """Sequences with a subject at the place where what is asked begins, or behind it."""
    prompts = [*prompts_with(9, 8, 3, 1, 2)[:1], *prompts_with(0, 4), *prompts_with(9, 2, 6), *prompts_with(0, 2)]
    ends = [16, 1, 9, 11, 1]
    return [
        Encoded(prompt_ids=tuple(ids), target_ids=(5, 9), subject_end=end)
        for ids, end in zip(prompts, ends, strict=True)
    ]


@pytest.mark.parametrize("first", [0, -1])
def test_probabilities_keys_and_gradients_are_those_of_whole_sequences(model: CausalModel, first: int) -> None:
    params = model.inner[first:]
    begun = model.begun(sequences(), STARTS, params)
    for rows in ([0, 1, 2, 3, 4], [3, 0], [1], [4]):
        some = [sequences()[row] for row in rows]
        found = model.pack_begun(some, [begun[row] for row in rows], params)
        for kind in ("subject", "answer"):
            whole = model.pack(some)
            places, expected = (
                {param.name: model.key_positions(batch, param, kind) for param in params} for batch in (found, whole)
            )
            if model.rotation_change is None:
                assert found.input_ids_BL.shape[1] == max(
                    num_tokens(cut(sequences()[row], STARTS[row])) for row in rows
                ), "nothing else runs again"
            u_TI, delta_TO, log_probability_N = key_gradients(model, found, places)
            whole_u_TI, whole_delta_TO, whole_N = key_gradients(model, whole, expected)
            torch.testing.assert_close(log_probability_N, whole_N, rtol=1e-4, atol=1e-5)
            for param in params:
                torch.testing.assert_close(u_TI[param.name], whole_u_TI[param.name], rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(delta_TO[param.name], whole_delta_TO[param.name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"phi3 that changes rotation"}))
def test_what_is_added_to_weights_afterwards_counts_from_where_sequences_were_cut(name: str) -> None:
    """A change that gives nothing at the beginnings is read as a whole reading does; another one is not."""
    model = tiny_family(name)
    params, some = model.inner[:1], sequences()[:1]
    begun = model.begun(some, STARTS[:1], params)
    batch, whole = model.pack_begun(some, begun, params), model.pack(some)
    size = params[0].out_features
    draw = torch.randn(size, generator=torch.Generator().manual_seed(2))

    def after_14(x_BLI: torch.Tensor) -> torch.Tensor:
        is_after_L = torch.arange(x_BLI.shape[1]) >= (14 if x_BLI.shape[1] == num_tokens(some[0]) else 0)
        return is_after_L[None, :, None] * draw

    def everywhere(x_BLI: torch.Tensor) -> torch.Tensor:
        return draw.expand(*x_BLI.shape[:2], size)

    with side_branch(model.module, {params[0].name: after_14}):
        torch.testing.assert_close(model.target_logits(batch), model.target_logits(whole), rtol=1e-4, atol=1e-4)
    with side_branch(model.module, {params[0].name: everywhere}):
        assert not torch.allclose(model.target_logits(batch), model.target_logits(whole), rtol=1e-2)


def test_what_several_sequences_begin_with_is_read_once() -> None:
    model = tiny_family("mistral")
    many = [
        Encoded(prompt_ids=tuple(ids), target_ids=(5,), subject_end=len(ids) - 1)
        for ids in prompts_with(12, *[1 + place % 3 for place in range(30)])
    ]
    seen = 0

    def count(_module: object, arguments: tuple[torch.Tensor, ...]) -> None:
        nonlocal seen
        seen += arguments[0].numel()

    handle = model.module.get_input_embeddings().register_forward_pre_hook(count)
    model.begun(many, [len(one.prompt_ids) - 1 for one in many], model.inner[:1])
    handle.remove()
    rests = 30  # what enters the first edited block of the one token that follows
    assert seen - rests < 12 + 30 * 3 + 1


def test_what_follows_many_beginnings_is_read_in_forwards_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences of which nothing can be read once are all alike in their beginnings, and as long as their edits are."""
    monkeypatch.setattr(causal, "LEFT_TOKENS", 40)
    model = tiny_family("mistral")
    many = [Encoded(prompt_ids=tuple(ids), target_ids=(5,)) for ids in prompts_with(0, *[8 + n % 3 for n in range(30)])]
    sizes: list[int] = []
    handle = model.module.get_input_embeddings().register_forward_pre_hook(
        lambda _module, arguments: sizes.append(arguments[0].numel())
    )
    begun = model.begun(many, [0] * len(many), model.inner[-1:])
    handle.remove()
    assert len(begun) == len(many)
    assert max(sizes) <= 40
    for one, sequence in zip(begun, many, strict=True):
        assert one is not None
        assert one.hidden_LW is not None
        assert len(one.hidden_LW) == num_tokens(sequence)
