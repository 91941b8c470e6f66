"""Knows how a batch of edits is shown to a model, and what its keys, gradients and target probabilities are there.

Does not know what is asked for, nor by which solver.

Legend: T edit rows, N target tokens in a part, B sequences, E edits, I in_features, O out_features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editors.capture import Branch, capturing_at, side_branch
from editors.families import EditableModel, InnerParam, TargetBatch
from editors.prompts import KeyTokens
from pipeline.domain.edits import Edit
from pipeline.domain.errors import EditorFailed


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Inner parameters that are asked together."""

    params: tuple[InnerParam, ...]
    """In the order in which they run."""
    kind: KeyTokens
    """Which tokens are their rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Some sequences of a batch of edits, in one forward."""

    batch: TargetBatch
    """The sequences."""
    edit_B: Tensor
    """Which edit each is of: its place in the batch."""
    places: dict[str, tuple[Tensor, Tensor]]
    """Inner parameter -> rows and positions of its keys."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What a forward and a backward say about the edits of a group, its rows in the order of the edits."""

    u_TI: dict[str, Tensor]
    """Inner parameter -> keys."""
    delta_TO: dict[str, Tensor]
    """Inner parameter -> gradients of the loss at its outputs."""
    probability_T: dict[str, Tensor]
    """Inner parameter -> probability of a row's target token; of its edit's least probable one where it has none."""
    least_E: Tensor
    """Probability of the least probable target token of each edit."""


def parts_of(model: EditableModel, edits: Sequence[Edit], group: Group, rephrase_rows: int) -> list[Part]:
    """The edits, each with the rephrases that are edit rows, as batches of bounded size."""
    asked = [
        (place, prompt, edit.request)
        for place, edit in enumerate(edits)
        for prompt in (edit.request.prompt, *edit.request.row_rephrases(rephrase_rows))
    ]
    sequences = [model.encode_pair(prompt, request.target_new, request.subject) for _, prompt, request in asked]
    parts = []
    for chosen, batch in model.chunked(sequences):
        edit_B = torch.tensor([asked[index][0] for index in chosen], device=model.device)
        places = {param.name: model.key_positions(batch, param, group.kind) for param in group.params}
        shown = model.prefixed(batch, group.params) if group.params else batch
        parts.append(Part(batch=shown, edit_B=edit_B, places=places))
    return parts


def rows_of_edits(parts: Sequence[Part], group: Group, num_edits: int) -> dict[str, list[int]]:
    """Inner parameter -> how many rows each edit has there."""
    return {
        param.name: torch.stack(
            [torch.bincount(part.edit_B[part.places[param.name][0]], minlength=num_edits) for part in parts]
        )
        .sum(dim=0)
        .tolist()
        for param in group.params
    }


def read(
    model: EditableModel,
    parts: Sequence[Part],
    group: Group,
    num_edits: int,
    branches: Mapping[str, Branch],
) -> Reading:
    """Keys, gradients and target probabilities of all rows, fp32, at the candidate."""
    pieces, seen_parts = [], []
    with side_branch(model.module, branches):
        for part in parts:
            batch = part.batch
            with capturing_at(model.module, [(param, part.places[param.name]) for param in group.params]) as seen:
                log_probability_N = target_log_probability(model, batch)
                tokens_B = torch.bincount(batch.row_N, minlength=batch.num_rows)
                loss = -(log_probability_N / tokens_B[batch.row_N]).sum()
                seen_parts.append((seen.u_NI, seen.deltas(loss)))
                pieces.append((part, log_probability_N.detach().exp()))
    least_E = least_probability(pieces, num_edits)
    u_TI, delta_TO, probability_T = {}, {}, {}
    for param in group.params:
        name = param.name
        edit_T = torch.cat([part.edit_B[part.places[name][0]] for part in parts])
        order_T = edit_T.argsort(stable=True)
        u_TI[name] = torch.cat([u[name] for u, _ in seen_parts])[order_T]
        delta_TO[name] = torch.cat([delta[name] for _, delta in seen_parts])[order_T]
        probability_T[name] = torch.cat([_of_rows(part, name, own_N, least_E) for part, own_N in pieces])[order_T]
    return Reading(u_TI=u_TI, delta_TO=delta_TO, probability_T=probability_T, least_E=least_E)


def _of_rows(part: Part, name: str, probability_N: Tensor, least_E: Tensor) -> Tensor:
    """A row's own token's probability where rows are target tokens, else that of its edit's least probable one."""
    row_T = part.places[name][0]
    return probability_N if row_T is part.batch.row_N else least_E[part.edit_B[row_T]]


def least_probability(pieces: Sequence[tuple[Part, Tensor]], num_edits: int) -> Tensor:
    """The least probability of each edit's target tokens.

    Raises:
        EditorFailed: if one is not finite.
    """
    edit_N = torch.cat([part.edit_B[part.batch.row_N] for part, _ in pieces])
    probability_N = torch.cat([probability for _, probability in pieces])
    if not bool(torch.isfinite(probability_N).all()):
        raise EditorFailed("expected finite probabilities of the target tokens, got NaN or infinity")
    return torch.ones(num_edits, device=probability_N.device).scatter_reduce(0, edit_N, probability_N, "amin")


def target_log_probability(model: EditableModel, batch: TargetBatch) -> Tensor:
    logits_NV = model.target_logits(batch).float()
    return logits_NV.gather(1, batch.target_N[:, None])[:, 0] - logits_NV.logsumexp(dim=1)
