"""Knows teacher-forced readings of sequences: hits, probabilities, and divergence from an earlier reading.

Does not know what is an edit and what is a probe.

Legend: N target tokens in a batch, T target tokens of one sequence, K top tokens kept, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editors.models.comm import merged
from editors.models.families import EditableModel, TargetBatch
from editors.models.tokens import Encoded

TOP = 128
"""Tokens of a distribution that a reading keeps; the others count together, so a KL from it is a lower bound."""

Prepared = list[tuple[list[int], TargetBatch]]
"""Batches with their frozen prefix, each with the places of its rows in the list they were made from; see
`EditableModel.chunked`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """How a model takes to one target, teacher-forced."""

    hits: tuple[bool, ...]
    """For each target token: whether it is the argmax."""
    mean_log_probability: float
    """Mean over the target's tokens, nats."""

    @property
    def is_hit(self) -> bool:
        """Whether every token is the argmax."""
        return all(self.hits)

    @property
    def token_fraction(self) -> float:
        """Share of tokens that are the argmax."""
        return sum(self.hits) / len(self.hits)

    @property
    def probability(self) -> float:
        """Geometric mean probability of the target's tokens."""
        return math.exp(self.mean_log_probability)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What a model would say at each target position of one sequence; on the CPU."""

    argmax_T: Tensor
    """Most probable tokens."""
    top_TK: Tensor
    """The K most probable tokens."""
    log_top_TK: Tensor
    """Their log-probabilities, fp32."""
    log_rest_T: Tensor
    """Log-probability of all others together, fp32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """How a model differs from an earlier reading of the same sequence."""

    is_unchanged: bool
    """Whether the argmax is the same at every position."""
    kl: float
    """Mean over the positions of KL(earlier || now), nats, over K tokens and the rest."""


def prepare(model: EditableModel, sequences: Sequence[Encoded], *, max_tokens: int | None = None) -> Prepared:
    """Batches of bounded size with what enters the first edited block; right for every edit of the same base."""
    return [(places, model.prefixed(batch)) for places, batch in model.chunked(sequences, max_tokens=max_tokens)]


@torch.no_grad()
def scores(model: EditableModel, prepared: Prepared) -> list[Score]:
    """Teacher-forced score of each sequence, in the order they were prepared from; every rank has to ask."""
    found: dict[int, Score] = {}
    for places, batch in prepared:
        logits_NV = model.target_logits(batch).float()
        if not places:
            continue
        hit_N = logits_NV.argmax(dim=1) == batch.target_N
        log_N = logits_NV.gather(1, batch.target_N[:, None])[:, 0] - logits_NV.logsumexp(dim=1)
        for place, of_row in zip(places, _rows(batch), strict=True):
            found[place] = Score(
                hits=tuple(hit_N[of_row].tolist()), mean_log_probability=float(log_N[of_row].double().mean())
            )
    return merged(model.comm, found)


def readings(model: EditableModel, prepared: Prepared) -> list[Reading]:
    """What the model would say, for each sequence in order."""
    return compared(model, prepared, [])[0]


@torch.no_grad()
def compared(
    model: EditableModel, prepared: Prepared, earlier: Sequence[Sequence[Reading]]
) -> tuple[list[Reading], list[list[Change]]]:
    """Readings now, and how they differ from several earlier ones, in one forward; every rank has to ask.

    Args:
        model: as it is now.
        prepared: the sequences.
        earlier: lists of readings of the same sequences, in order.
    """
    own: dict[int, tuple[Reading, list[Change]]] = {}
    for places, batch in prepared:
        log_NV = model.target_logits(batch).float().log_softmax(dim=1)
        for place, of_row in zip(places, _rows(batch), strict=False):
            own[place] = _reading(log_NV[of_row]), [_change(before[place], log_NV[of_row]) for before in earlier]
    found = merged(model.comm, own)
    return [reading for reading, _ in found], [[changes[i] for _, changes in found] for i in range(len(earlier))]


def _rows(batch: TargetBatch) -> Iterator[slice]:
    """The target tokens of each row of a batch."""
    ends = torch.bincount(batch.row_N, minlength=batch.num_rows).cumsum(dim=0).tolist()
    return (slice(start, end) for start, end in zip([0, *ends], ends, strict=False))


def _reading(log_TV: Tensor) -> Reading:
    log_top_TK, top_TK = log_TV.topk(min(TOP, log_TV.shape[1]), dim=1)
    return Reading(
        argmax_T=log_TV.argmax(dim=1).cpu(),
        top_TK=top_TK.cpu(),
        log_top_TK=log_top_TK.cpu(),
        log_rest_T=_log_rest(log_top_TK).cpu(),
    )


def _change(before: Reading, log_TV: Tensor) -> Change:
    log_now_TK = log_TV.gather(1, before.top_TK.to(log_TV.device))
    log_was_TK, log_was_rest_T = before.log_top_TK.to(log_TV.device), before.log_rest_T.to(log_TV.device)
    top_T = (log_was_TK.exp() * (log_was_TK - log_now_TK)).sum(dim=1)
    rest_T = log_was_rest_T.exp() * (log_was_rest_T - _log_rest(log_now_TK))
    return Change(
        is_unchanged=bool((log_TV.argmax(dim=1) == before.argmax_T.to(log_TV.device)).all()),
        kl=max(float((top_T + rest_T).double().mean()), 0.0),
    )


def _log_rest(log_top_TK: Tensor) -> Tensor:
    rest_T = 1.0 - log_top_TK.double().exp().sum(dim=1)
    return rest_T.clamp(min=1e-9).log().float()
