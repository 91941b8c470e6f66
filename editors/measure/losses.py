"""Knows the differentiable losses of training: of a target, and of having moved away from earlier answers.

Legend: N target tokens in a batch, B sequences, T target tokens of one sequence, K top tokens kept, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from editors.measure.scoring import Reading
from editors.models.families import TargetBatch


def mean_log_probability(logits_NV: Tensor, batch: TargetBatch) -> Tensor:
    """Mean log-probability of each sequence's target tokens, B, fp32."""
    logits_NV = logits_NV.float()
    log_N = logits_NV.gather(1, batch.target_N[:, None])[:, 0] - logits_NV.logsumexp(dim=1)
    tokens_B = torch.bincount(batch.row_N, minlength=batch.num_rows)
    return log_N.new_zeros(batch.num_rows).index_add(0, batch.row_N, log_N) / tokens_B


def rows_of(batch: TargetBatch) -> list[slice]:
    """The target tokens of each sequence of a batch."""
    lengths = torch.bincount(batch.row_N, minlength=batch.num_rows).tolist()
    ends = torch.tensor(lengths).cumsum(dim=0).tolist()
    return [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]


def divergence(before: Reading, log_TV: Tensor) -> Tensor:
    """Mean over the tokens of `KL(before || now)`, over the K tokens that were kept and all others as one.

    Args:
        before: what was answered.
        log_TV: log-probabilities now, fp32.
    """
    log_now_TK = log_TV.gather(1, before.top_TK.to(log_TV.device))
    log_was_TK, log_was_rest_T = before.log_top_TK.to(log_TV.device), before.log_rest_T.to(log_TV.device)
    log_now_rest_T = (1.0 - log_now_TK.exp().sum(dim=1)).clamp(min=1e-6).log()
    top_T = (log_was_TK.exp() * (log_was_TK - log_now_TK)).sum(dim=1)
    return (top_T + log_was_rest_T.exp() * (log_was_rest_T - log_now_rest_T)).mean()
