"""A and its Cholesky factor in one square: neither harms the other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from editors.solve.gram import Gram
from editors.solve.linear import factored
from pipeline.domain.errors import EditorFailed

WIDTH = 9


def positive(seed: int = 0) -> Tensor:
    keys = torch.randn(4 * WIDTH, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return keys.T @ keys


def rows(seed: int, num: int = 3) -> Tensor:
    return torch.randn(num, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_factor_leaves_the_sum_as_it_is() -> None:
    sums = Gram(positive(), name="w")
    before = sums.matrix()
    lower = sums.factor().lower_II.tril()
    torch.testing.assert_close(lower @ lower.T, positive(), rtol=1e-12, atol=1e-12)
    assert torch.equal(sums.matrix(), before)
    torch.testing.assert_close(before, positive(), rtol=1e-15, atol=0)


def test_a_solve_reads_the_factor_only() -> None:
    sums, right = Gram(positive(), name="w"), rows(5).T
    assert torch.equal(sums.factor().solve(right), factored(positive(), name="w").solve(right))


def test_rows_add_up_whether_or_not_a_factor_was_asked_for_between() -> None:
    asked, silent = Gram(positive(), name="w"), Gram(positive(), name="w")
    for seed in (1, 2):
        asked.factor()
        for sums in (asked, silent):
            sums.add(rows(seed))
    assert torch.equal(asked.matrix(), silent.matrix())
    assert torch.equal(asked.factor().solve(rows(5).T), silent.factor().solve(rows(5).T))
    expected = positive() + rows(1).T @ rows(1) + rows(2).T @ rows(2)
    torch.testing.assert_close(asked.matrix(), expected, rtol=1e-12, atol=1e-12)


def test_no_rows_change_nothing() -> None:
    sums = Gram(positive(), name="w")
    factor = sums.factor()
    sums.add(rows(1, num=0))
    assert sums.factor() is factor


def test_sums_and_factor_are_one_square() -> None:
    sums = Gram(positive(), name="w")
    held = sums._square_II.untyped_storage()
    factor = sums.factor()
    sums.add(rows(1))
    assert {one.untyped_storage().data_ptr() for one in (factor.lower_II, sums.factor().lower_II)} == {held.data_ptr()}
    assert held.nbytes() == WIDTH**2 * 8


def test_what_is_not_positive_definite_is_named() -> None:
    with pytest.raises(EditorFailed, match=r"block\.3"):
        Gram(-positive(), name="block.3").factor()


def test_a_jitter_is_of_the_factor_and_not_of_the_sum() -> None:
    key = rows(1, num=1)
    sums = Gram(key.T @ key, name="w")
    assert sums.jitter == 0
    sums.factor()
    assert sums.jitter > 0
    assert torch.equal(sums.matrix().diagonal(), (key.T @ key).diagonal())
    sums.add(rows(2, num=2 * WIDTH))
    assert sums.jitter == 0
    assert sums.factor().jitter == 0
