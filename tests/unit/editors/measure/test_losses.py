"""Log-probabilities and divergences on random logits, against plain computations of torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import kl_div

from editors.measure.losses import (
    LEAST_REST,
    TOP,
    Reading,
    divergences,
    edit_loss,
    rows_of,
    target_log_probability,
)
from editors.models.families import TargetBatch

LENGTHS = (3, 1, 2)


def batch_of(num_tokens: int) -> TargetBatch:
    """Targets of three sequences; what is not about targets is empty."""
    row_N = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    return TargetBatch(
        input_ids_BL=torch.zeros(len(LENGTHS), 1, dtype=torch.long),
        row_N=row_N,
        position_N=torch.zeros_like(row_N),
        target_N=torch.arange(len(row_N)) % num_tokens,
        subject_B=torch.full((len(LENGTHS),), -1),
    )


def logits(num_rows: int, num_tokens: int, seed: int) -> Tensor:
    return torch.randn(num_rows, num_tokens, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probabilities_are_those_of_a_softmax_in_fp32(dtype: torch.dtype) -> None:
    batch, found = batch_of(50), logits(6, 50, 0).to(dtype)
    plain_N = found.float().log_softmax(dim=1)[range(6), batch.target_N]
    torch.testing.assert_close(target_log_probability(found, batch), plain_N)
    assert rows_of(batch) == [slice(0, 3), slice(3, 4), slice(4, 6)]
    plain_B = torch.stack([plain_N[of_row].mean() for of_row in rows_of(batch)])
    torch.testing.assert_close(edit_loss(target_log_probability(found, batch), batch), -plain_B.sum())


def test_divergence_is_the_kl_over_the_kept_tokens_and_all_others_as_one() -> None:
    was_TV, now_TV = (logits(4, 3 * TOP, seed).log_softmax(dim=1) for seed in (1, 2))
    kept_TK = was_TV.topk(TOP, dim=1).indices
    grouped = []
    for log_TV in (was_TV, now_TV):
        top_TK = log_TV.gather(1, kept_TK).double().exp()
        grouped.append(torch.cat([top_TK, 1 - top_TK.sum(dim=1, keepdim=True)], dim=1).log())
    expected = kl_div(grouped[1], grouped[0], reduction="batchmean", log_target=True)
    found = divergences(Reading.of(was_TV), now_TV).mean()
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    assert 0 < float(found) < float(kl_div(now_TV, was_TV, reduction="batchmean", log_target=True))


def test_a_rest_that_is_rounding_moves_nothing() -> None:
    sure_TV = torch.full((1, 2 * TOP), -20.0)
    sure_TV[0, 0] = 20.0
    was_TV = sure_TV.log_softmax(dim=1)
    now_TV = (sure_TV + logits(1, 2 * TOP, 3) / 100).log_softmax(dim=1).requires_grad_()
    before = Reading.of(was_TV)
    assert float(before.log_rest_T.exp()) == pytest.approx(LEAST_REST)
    found = divergences(before, now_TV).mean()
    found.backward()
    assert abs(float(found.detach())) < 1e-6
    assert now_TV.grad is not None
    assert bool(torch.isfinite(now_TV.grad).all())
    assert float(now_TV.grad.abs().max()) <= 1.0 + 1e-5


def test_descent_on_the_divergence_leads_back_to_what_was_answered() -> None:
    before = Reading.of(logits(4, 3 * TOP, 1).log_softmax(dim=1))
    now = logits(4, 3 * TOP, 2).requires_grad_()
    optimizer = torch.optim.Adam([now], lr=0.1)
    first = float(divergences(before, now.log_softmax(dim=1)).mean().detach())
    for _ in range(200):
        optimizer.zero_grad()
        divergences(before, now.log_softmax(dim=1)).mean().backward()
        optimizer.step()
    assert float(divergences(before, now.log_softmax(dim=1)).mean().detach()) < 0.1 * first
