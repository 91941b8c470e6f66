"""The linear algebra of an update, against `torch.linalg`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from editors.solve.linear import AddedRows, Factored, added_rows, factored, least_squares, summed
from pipeline.domain.errors import EditorFailed


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def positive(size: int, seed: int = 5) -> Tensor:
    root = draw(size, 2 * size, seed=seed)
    return root @ root.T / size


@pytest.mark.parametrize("num_rows", [1, 5, 12, 30])
def test_rows_added_by_woodbury_equal_the_dense_inverse(num_rows: int) -> None:
    matrix, keys = positive(12), draw(num_rows, 12)
    expected = torch.linalg.inv(matrix + keys.T @ keys) @ keys.T
    torch.testing.assert_close(added_rows(factored(matrix, name="w"), keys), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("is_by_columns", [False, True], ids=["row by row", "column by column"])
def test_solves_in_which_few_keys_change_equal_solves_of_their_own(is_by_columns: bool) -> None:
    matrix, keys, spread = factored(positive(12), name="w"), draw(9, 12).float(), draw(9, 4, seed=1)
    if is_by_columns:  # as the ledger keeps it, beside A itself, which nobody may read
        lower = matrix.lower_II.T.contiguous().T + torch.full((12, 12), torch.nan, dtype=torch.float64).triu(1)
        matrix = Factored(lower_II=lower)
    rows = AddedRows(matrix)
    for seed, changed in enumerate(([], [], [7], [3, 7, 8], list(range(9)))):
        keys[changed] = draw(len(changed), 12, seed=seed + 2).float()
        found = rows.solve(keys, spread, torch.tensor(changed, dtype=torch.long))
        expected = added_rows(factored(positive(12), name="w"), keys.double()) @ spread
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("num_rows", [1, 7, 8, 9, 40])
def test_dual_equals_primal_equals_lstsq(num_rows: int) -> None:
    keys, shifts, ridge = draw(num_rows, 8), draw(num_rows, 3, seed=1), 0.3
    stacked = torch.cat([keys, ridge**0.5 * torch.eye(8, dtype=torch.float64)])
    padded = torch.cat([shifts, torch.zeros(8, 3, dtype=torch.float64)])
    expected = torch.linalg.lstsq(stacked, padded).solution
    torch.testing.assert_close(least_squares(keys, ridge=ridge) @ shifts, expected, rtol=1e-9, atol=1e-11)


def test_the_sum_gives_each_row_its_shift_only_when_rows_do_not_meet() -> None:
    apart, shifts = torch.eye(4, dtype=torch.float64)[:3] * 2, draw(3, 5)
    torch.testing.assert_close(apart @ summed(apart) @ shifts, shifts)
    meeting = torch.ones(3, 4, dtype=torch.float64)
    torch.testing.assert_close(meeting @ summed(meeting) @ shifts, shifts.sum(0).expand(3, 5))


def test_a_solve_is_bitwise_repeatable() -> None:
    matrix, keys = positive(40), draw(9, 40)
    assert torch.equal(added_rows(factored(matrix, name="w"), keys), added_rows(factored(matrix, name="w"), keys))


def test_the_update_moves_the_keys_towards_their_shifts() -> None:
    keys, shifts = draw(3, 10), draw(3, 4, seed=2)
    reached = keys @ added_rows(factored(positive(10) * 0.01, name="w"), keys) @ shifts
    assert (reached - shifts).norm() < 0.2 * shifts.norm()


@pytest.mark.parametrize("num_rows", [3, 9])
def test_the_gradient_of_every_solve_is_its_finite_difference(num_rows: int) -> None:
    matrix, keys, shifts = factored(positive(6), name="w"), draw(num_rows, 6), draw(num_rows, 2, seed=1)
    solves = (
        lambda keys: added_rows(matrix, keys),
        lambda keys: least_squares(keys, ridge=0.3),  # dual of 3 rows, primal of 9
        summed,
    )
    for solve in solves:
        asked = [one.clone().requires_grad_() for one in (keys, shifts)]
        assert torch.autograd.gradcheck(lambda keys, shifts, solve=solve: solve(keys) @ shifts, asked)


def test_a_matrix_that_is_barely_singular_gets_a_jitter_that_is_reported() -> None:
    key = draw(1, 6)
    found = factored(key.T @ key, name="w")
    assert found.jitter > 0
    assert factored(positive(6), name="w").jitter == 0


@pytest.mark.parametrize("matrix", [-torch.eye(3).double(), torch.full((2, 2), torch.nan).double()])
def test_a_matrix_that_cannot_be_solved_is_refused_by_name(matrix: Tensor) -> None:
    with pytest.raises(EditorFailed, match=r"block\.3"):
        factored(matrix, name="block.3")
