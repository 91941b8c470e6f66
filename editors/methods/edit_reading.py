"""Knows how a batch of edits is shown to a model, and what its keys, gradients and target probabilities are there.

Does not know what is asked for, nor by which solver.

Ranks that hold the model together read a share of the batches each, and all of them get the whole reading. Batches are
cut alike for any number of ranks: a pass asks an edit again or not by a threshold, and a last bit would decide it.

Legend: T edit rows, N target tokens in a part, B sequences, E edits, I in_features, O out_features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editors.measure.losses import target_log_probability
from editors.models.families import EditableModel, InnerParam, TargetBatch
from editors.models.hooks import Branch, capturing_at, side_branch
from editors.models.tokens import Encoded, KeyTokens
from pipeline.domain.edits import Edit
from pipeline.domain.errors import EditorFailed

READ_TOKENS = 256
"""Most padded tokens of one forward and backward: what the blocks keep for it is most of an edit's memory. Two ranks
share a usual batch at this size."""


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
    """Which edit each is of: its place in the batch; empty in a filler."""
    sequence_B: Tensor
    """Place of each among the sequences of all edits; empty in a filler."""
    places: dict[str, tuple[Tensor, Tensor]]
    """Inner parameter -> rows and positions of its keys."""

    @property
    def is_filler(self) -> bool:
        """Whether it is only run because other ranks run a part."""
        return len(self.sequence_B) == 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """The rows of an inner parameter in one part."""

    sequence_T: Tensor
    """Place of a row's sequence."""
    edit_T: Tensor
    """Its edit."""
    u_TI: Tensor
    """Its key."""
    delta_TO: Tensor
    """Gradient at its output."""
    probability_T: Tensor | None
    """Of its target token; None where rows are no target tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """What one part gave."""

    edit_N: Tensor
    """Edit of each target token."""
    probability_N: Tensor
    """Its probability."""
    rows: dict[str, Rows]
    """By inner parameter; of one that has no row here too."""


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
    """This rank's share of the edits' sequences, as batches of bounded size."""
    sequences, edit_of = _sequences(model, edits, rephrase_rows)
    parts = []
    for chosen, batch in model.chunked_alike(sequences, max_tokens=READ_TOKENS):
        sequence_B = torch.tensor(chosen, dtype=torch.long, device=model.device)
        parts.append(
            Part(
                batch=model.prefixed(batch, group.params) if group.params else batch,
                edit_B=torch.tensor([edit_of[index] for index in chosen], dtype=torch.long, device=model.device),
                sequence_B=sequence_B,
                places={param.name: model.key_positions(batch, param, group.kind) for param in group.params},
            )
        )
    return parts


def rows_of_edits(
    model: EditableModel, edits: Sequence[Edit], group: Group, rephrase_rows: int
) -> dict[str, list[int]]:
    """Inner parameter -> how many rows each edit has there."""
    sequences, edit_of = _sequences(model, edits, rephrase_rows)
    batch = model.pack(sequences)
    edit_B = torch.tensor(edit_of, dtype=torch.long, device=model.device)
    row_T = {param.name: model.key_positions(batch, param, group.kind)[0] for param in group.params}
    return {name: torch.bincount(edit_B[rows], minlength=len(edits)).tolist() for name, rows in row_T.items()}


def _sequences(model: EditableModel, edits: Sequence[Edit], rephrase_rows: int) -> tuple[list[Encoded], list[int]]:
    """The edits, each followed by the rephrases that are edit rows, and whose each sequence is."""
    asked = [
        (place, prompt, edit.request)
        for place, edit in enumerate(edits)
        for prompt in (edit.request.prompt, *edit.request.row_rephrases(rephrase_rows))
    ]
    sequences = [model.encode_pair(prompt, request.target_new, request.subject) for _, prompt, request in asked]
    return sequences, [place for place, _, _ in asked]


def read(
    model: EditableModel,
    parts: Sequence[Part],
    group: Group,
    num_edits: int,
    branches: Mapping[str, Branch],
) -> Reading:
    """Keys, gradients and target probabilities of all rows, fp32, at the candidate; every rank has to ask."""
    own = []
    with side_branch(model.module, branches):
        for part in parts:
            batch = part.batch
            with capturing_at(model.module, [(param, part.places[param.name]) for param in group.params]) as seen:
                log_probability_N = target_log_probability(model.target_logits(batch), batch)
                tokens_B = torch.bincount(batch.row_N, minlength=batch.num_rows)
                loss = -(log_probability_N / tokens_B[batch.row_N]).sum()
                delta_of = seen.deltas(loss)
            if not part.is_filler:
                own.append(_piece(part, log_probability_N.detach().exp(), seen.u_NI, delta_of))
    pieces = [piece for of_rank in model.comm.gathered(own) for piece in of_rank]
    least_E = least_probability([(piece.edit_N, piece.probability_N) for piece in pieces], num_edits)
    u_TI, delta_TO, probability_T = {}, {}, {}
    for param in group.params:
        found = [piece.rows[param.name] for piece in pieces]
        order_T = torch.cat([rows.sequence_T for rows in found]).argsort(stable=True)
        of_rows = [least_E[rows.edit_T] if rows.probability_T is None else rows.probability_T for rows in found]
        u_TI[param.name] = torch.cat([rows.u_TI for rows in found])[order_T].to(model.device)
        delta_TO[param.name] = torch.cat([rows.delta_TO for rows in found])[order_T].to(model.device)
        probability_T[param.name] = torch.cat(of_rows)[order_T].to(model.device)
    return Reading(u_TI=u_TI, delta_TO=delta_TO, probability_T=probability_T, least_E=least_E)


def read_least(
    model: EditableModel, edits: Sequence[Edit], rephrase_rows: int, branches: Mapping[str, Branch]
) -> Tensor:
    """Probability of each edit's least probable target token, E, at the candidate; every rank has to ask."""
    own = []
    with torch.no_grad(), side_branch(model.module, branches):
        for part in parts_of(model, edits, Group(params=(), kind="answer"), rephrase_rows):
            probability_N = target_log_probability(model.target_logits(part.batch), part.batch).exp()
            if not part.is_filler:
                own.append((part.edit_B[part.batch.row_N].cpu(), probability_N.cpu()))
    return least_probability([piece for of_rank in model.comm.gathered(own) for piece in of_rank], len(edits))


def _piece(part: Part, probability_N: Tensor, u_of: Mapping[str, Tensor], delta_of: Mapping[str, Tensor]) -> Piece:
    rows = {}
    for name, (row_T, _) in part.places.items():
        is_target = row_T is part.batch.row_N
        rows[name] = Rows(
            sequence_T=part.sequence_B[row_T].cpu(),
            edit_T=part.edit_B[row_T].cpu(),
            u_TI=u_of[name].cpu(),
            delta_TO=delta_of[name].cpu(),
            probability_T=probability_N.cpu() if is_target else None,
        )
    return Piece(edit_N=part.edit_B[part.batch.row_N].cpu(), probability_N=probability_N.cpu(), rows=rows)


def least_probability(pieces: Sequence[tuple[Tensor, Tensor]], num_edits: int) -> Tensor:
    """The least probability of each edit's target tokens, E.

    Args:
        pieces: which edit each target token is of, and how probable it is.
        num_edits: E.

    Raises:
        EditorFailed: if one is not finite.
    """
    edit_N, probability_N = (torch.cat(part) for part in zip(*pieces, strict=True))
    if not bool(torch.isfinite(probability_N).all()):
        raise EditorFailed("expected finite probabilities of the target tokens, got NaN or infinity")
    return torch.ones(num_edits).scatter_reduce(0, edit_N, probability_N, "amin")
