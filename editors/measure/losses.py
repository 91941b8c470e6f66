"""Log-probabilities of targets and divergences from earlier answers, for measuring and for training alike.

Everything here is differentiable, and computes in fp32 whatever dtype the model has.

Legend: N target tokens in a batch, B sequences, T target tokens of one sequence, K top tokens kept, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from editors.models.families import TargetBatch

TOP = 128
"""Most tokens of a distribution that a reading keeps, K. All others count as one, so a KL from it is a lower bound."""
LEAST_REST = 1e-6
"""Least probability of the tokens that are not kept."""
TEXT_TOKENS = 24
"""Most tokens of a line of plain text that has to stay while something is learnt."""
MAX_READINGS = 20_000
"""Most sequences for which the base's answers are kept while something is learnt; the oldest go first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What a model would say at each target position of one sequence, or of several after each other; on the CPU."""

    argmax_T: Tensor
    """The most probable token of each position."""
    top_TK: Tensor
    """The K most probable tokens."""
    log_top_TK: Tensor
    """Their log-probabilities, fp32."""
    log_rest_T: Tensor
    """The log-probability of all other tokens together, fp32."""

    @classmethod
    def of(cls, log_TV: Tensor) -> Self:
        """Return the reading of whole distributions, given as log-probabilities."""
        log_top_TK, top_TK = log_TV.topk(min(TOP, log_TV.shape[1]), dim=1)
        return cls(
            argmax_T=log_TV.argmax(dim=1).cpu(),
            top_TK=top_TK.cpu(),
            log_top_TK=log_top_TK.cpu(),
            log_rest_T=_log_rest(log_TV, top_TK).cpu(),
        )

    @classmethod
    def joined(cls, readings: Sequence[Self]) -> Self:
        """Return the readings of several sequences as one, their positions after each other."""
        return cls(
            argmax_T=torch.cat([one.argmax_T for one in readings]),
            top_TK=torch.cat([one.top_TK for one in readings]),
            log_top_TK=torch.cat([one.log_top_TK for one in readings]),
            log_rest_T=torch.cat([one.log_rest_T for one in readings]),
        )

    def part(self, of_row: slice) -> Self:
        """Return some positions as a reading with memory of its own, which does not hold the others."""
        return type(self)(
            argmax_T=self.argmax_T[of_row].clone(),
            top_TK=self.top_TK[of_row].clone(),
            log_top_TK=self.log_top_TK[of_row].clone(),
            log_rest_T=self.log_rest_T[of_row].clone(),
        )


def target_log_probability(logits_NV: Tensor, batch: TargetBatch) -> Tensor:
    """Return the log-probability of each target token, N, fp32."""
    logits_NV = logits_NV.float()
    # logsumexp instead of log_softmax: the result is N numbers, not another N x V.
    return logits_NV.gather(1, batch.target_N[:, None])[:, 0] - logits_NV.logsumexp(dim=1)


def edit_loss(log_probability_N: Tensor, batch: TargetBatch) -> Tensor:
    """Return the loss of an edit, a scalar: minus the mean over each sequence's target tokens, summed over sequences.

    The sum keeps sequences apart: no one's gradient depends on which others it is in a batch with.
    """
    tokens_B = torch.bincount(batch.row_N, minlength=batch.num_rows)
    return -(log_probability_N / tokens_B[batch.row_N]).sum()


def rows_of(batch: TargetBatch) -> list[slice]:
    """Return where the target tokens of each sequence lie among the N of a batch."""
    ends = torch.bincount(batch.row_N, minlength=batch.num_rows).cumsum(dim=0).tolist()
    return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def divergences(before: Reading, log_TV: Tensor) -> Tensor:
    """Return `KL(before || now)` at each token, T, nats: over the K kept tokens and all others as one.

    Args:
        before: what was answered.
        log_TV: log-probabilities now, fp32.
    """
    top_TK = before.top_TK.to(log_TV.device)
    log_was_TK, log_was_rest_T = before.log_top_TK.to(log_TV.device), before.log_rest_T.to(log_TV.device)
    top_T = (log_was_TK.exp() * (log_was_TK - log_TV.gather(1, top_TK))).sum(dim=1)
    return top_T + log_was_rest_T.exp() * (log_was_rest_T - _log_rest(log_TV, top_TK))


def _log_rest(log_TV: Tensor, top_TK: Tensor) -> Tensor:
    """Return the log-probability of all tokens but the top ones together, T."""
    least = math.log(LEAST_REST)
    if top_TK.shape[1] == log_TV.shape[1]:
        return log_TV.new_full(log_TV.shape[:1], least)
    # Summed over the others, not taken as one minus the top: that difference would be rounding where the top has nearly
    # everything, and the gradient through its logarithm, 1 / rest, would drown all others.
    return log_TV.scatter(1, top_TK, -math.inf).logsumexp(dim=1).clamp(min=least)
