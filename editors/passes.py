"""Knows how a batch of edits is asked for in passes, each on the candidate that the pass before gave.

A pass captures keys and gradients, lets the transform say what is missing, adds it to what the batch has asked so far
and solves again; the rows of a pass replace those of the pass before. The candidate is a side branch: no weight is
written. Does not know which solver it serves.

Legend: T edit rows (target tokens), N target tokens in a part, I in_features, O out_features, R rank.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editors.capture import Branch, capturing, side_branch
from editors.families import CausalModel, TargetBatch
from editors.prompts import encode_pair
from editors.rows import consecutive
from editors.transform import Transform
from pipeline.domain.edits import Edit
from pipeline.domain.errors import EditorFailed

Factor = Callable[[str, Tensor], Tensor]
"""(inner parameter, K T x I) -> F (I x T): the solver's update for shifts D is `F D`; fp64."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What a batch came to ask for."""

    keys: dict[str, Tensor]
    """Inner parameter -> K (T x I), fp64 on the CPU: at the candidate of the last pass but one."""
    shifts: dict[str, Tensor]
    """Inner parameter -> R (T x O), fp64: summed over the passes."""
    factors: dict[str, Tensor]
    """Inner parameter -> F (I x T), fp64."""
    ranges: tuple[tuple[str, int, int], ...]
    """Rows of each edit."""
    num_passes: int
    """Passes that asked for something."""
    seconds: dict[str, float]
    """Wall time of `capture` and `solve`."""


def run_passes(
    model: CausalModel,
    edits: Sequence[Edit],
    *,
    transform: Transform,
    factor: Factor,
    start: Mapping[str, tuple[Tensor, Tensor]],
    num_passes: int,
    rest: float,
) -> Asked:
    """Ask until every target token is probable enough, or the passes are used up.

    Args:
        model: holds the weights that are edited; they are not touched.
        edits: what to ask for; at least one.
        transform: what is missing, from what was captured.
        factor: the solver.
        start: a change (F, D by inner parameter) that the candidate has before the first pass.
        num_passes: most passes.
        rest: probability at which a token rests.
    """
    seconds = {"capture": 0.0, "solve": 0.0}
    parts, ranges = _parts(model, edits)
    candidate = dict(start)
    keys: dict[str, Tensor] = {}
    shifts: dict[str, Tensor] = {}
    factors: dict[str, Tensor] = {}
    made = 0
    while made < num_passes:
        began = time.perf_counter()
        u_TI, delta_TO, probability_T = _captured(model, parts, _branches(model, candidate))
        captured = time.perf_counter()
        seconds["capture"] += captured - began
        if made and bool((probability_T >= rest).all()):
            break
        for name, u in u_TI.items():
            wanted = transform(name=name, u_TI=u, delta_TO=delta_TO[name], probability_T=probability_T)
            keys[name] = u.double().cpu()
            shifts[name] = shifts.get(name, 0.0) + wanted.double().cpu()
            factors[name] = factor(name, keys[name])
            candidate[name] = joined(start.get(name), (factors[name], shifts[name]))
        made += 1
        seconds["solve"] += time.perf_counter() - captured
    return Asked(keys=keys, shifts=shifts, factors=factors, ranges=ranges, num_passes=made, seconds=seconds)


def joined(first: tuple[Tensor, Tensor] | None, second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Factors of the sum of two low-rank changes."""
    if first is None:
        return second
    return torch.cat([first[0], second[0]], dim=1), torch.cat([first[1], second[1]])


def _parts(model: CausalModel, edits: Sequence[Edit]) -> tuple[list[TargetBatch], tuple[tuple[str, int, int], ...]]:
    """The edits as batches of bounded size, and the rows of each edit in the order of the batches."""
    sequences = [encode_pair(model.tokenizer, edit.request.prompt, edit.request.target_new) for edit in edits]
    parts, lengths = [], []
    for places, batch in model.chunked(sequences):
        parts.append(model.prefixed(batch))
        lengths += [(edits[place].edit_id, len(sequences[place].target_ids)) for place in places]
    return parts, consecutive(lengths)


def _captured(
    model: CausalModel, parts: Sequence[TargetBatch], branches: Mapping[str, Branch]
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Keys, gradients and target probabilities of all rows, fp32, at the candidate."""
    pieces = []
    with side_branch(model.module, branches):
        for batch in parts:
            with capturing(model.module, model.inner, batch.row_N, batch.position_N) as seen:
                log_probability_N = _target_log_probability(model, batch)
                tokens_B = torch.bincount(batch.row_N, minlength=batch.num_rows)
                loss = -(log_probability_N / tokens_B[batch.row_N]).sum()
                pieces.append((seen.u_NI, seen.deltas(loss), log_probability_N.detach().exp()))
    probability_T = torch.cat([probability for _, _, probability in pieces])
    if not bool(torch.isfinite(probability_T).all()):
        raise EditorFailed("expected finite probabilities of the target tokens, got NaN or infinity")
    u_TI = {name: torch.cat([u[name] for u, _, _ in pieces]) for name in model.inner_param_names}
    delta_TO = {name: torch.cat([delta[name] for _, delta, _ in pieces]) for name in model.inner_param_names}
    return u_TI, delta_TO, probability_T


def _target_log_probability(model: CausalModel, batch: TargetBatch) -> Tensor:
    logits_NV = model.target_logits(batch).float()
    return logits_NV.gather(1, batch.target_N[:, None])[:, 0] - logits_NV.logsumexp(dim=1)


def _branches(model: CausalModel, candidate: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Branch]:
    return {
        name: (left.float().to(model.device), right.float().to(model.device))
        for name, (left, right) in candidate.items()
    }
