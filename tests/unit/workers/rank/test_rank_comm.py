"""What ranks send each other comes out as it went in, and no tensor is pickled on the way."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from workers.rank.rank_comm import _AroundTensors, _IntoTensors


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Something with tensors in it."""

    rows: dict[str, tuple[Tensor, Tensor | None]]
    """By name."""
    note: str
    """Something without."""


def sent(value: Any) -> tuple[Any, int]:
    """What arrives, and the bytes that were pickled."""
    pickler = _AroundTensors()
    frame = pickler.dumped(value)
    return _IntoTensors(io.BytesIO(frame), load(save(pickler.tensors))).load(), len(frame)


WHOLE_AB = torch.arange(200_000, dtype=torch.float64).view(100, 2000)


@pytest.mark.parametrize(
    "tensor",
    [
        WHOLE_AB,
        WHOLE_AB.T,
        WHOLE_AB[3:7, ::2],
        torch.zeros(0, 5),
        torch.tensor(1.5),
        torch.ones(3, dtype=torch.bfloat16),
        torch.tensor([True, False]),
        torch.tensor([1, 2]),
    ],
    ids=["whole", "transposed", "view", "empty", "scalar", "bf16", "bool", "int"],
)
def test_a_tensor_anywhere_in_a_value_arrives_bit_for_bit_and_is_not_pickled(tensor: Tensor) -> None:
    piece = Piece(rows={"a": (tensor, None), "b": (tensor, tensor)}, note="x")
    found, num_pickled = sent([piece, {1: tensor}, None])
    assert num_pickled < 500
    (again, by_place, nothing) = found
    assert nothing is None
    assert again.note == "x"
    for arrived in (again.rows["a"][0], *again.rows["b"], by_place[1]):
        assert arrived.dtype == tensor.dtype
        assert torch.equal(arrived, tensor)


def test_a_value_without_tensors_arrives_too() -> None:
    assert sent({"one": [1.0, None, "two"]})[0] == {"one": [1.0, None, "two"]}


def test_what_needs_a_gradient_arrives_without_one() -> None:
    arrived, _ = sent(torch.ones(2, requires_grad=True) * 2)
    assert not arrived.requires_grad


def test_a_transposed_tensor_arrives_transposed_so_that_products_have_the_same_bits() -> None:
    arrived, _ = sent(WHOLE_AB.T)
    assert arrived.stride() == WHOLE_AB.T.stride()
    assert sent(WHOLE_AB)[0].stride() == WHOLE_AB.stride()
