"""A batch of edits as a model reads it: keys, gradients and target probabilities, at the weights or at a candidate.

Batches are cut alike for any number of ranks that hold the model together. A pass asks an edit again or not by a
threshold, and where batches were cut otherwise a last bit could decide it otherwise.

Legend: T edit rows, N target tokens, S sequences, E edits, I in_features, O out_features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editors.methods.pairs import read_pairs
from editors.models.families import EditableModel, InnerParam, TargetBatch
from editors.models.hooks import Branch, side_branch
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
class EditSequences:
    """The sequences of some edits: the prompt of each, and the rephrases that are edit rows too."""

    group: Group
    """The inner parameters to read."""
    edit_S: list[int]
    """The edit of each sequence, by its place among the edits."""
    batches: list[tuple[list[int], TargetBatch]]
    """This rank's batches, each with the places of its sequences; see `EditableModel.chunked_alike`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What a forward and a backward say about the edits of a group, its rows in the order of the edits."""

    u_TI: dict[str, Tensor]
    """Inner parameter -> keys, fp32."""
    delta_TO: dict[str, Tensor]
    """Inner parameter -> gradients of the loss at its outputs, fp32."""
    probability_T: dict[str, Tensor]
    """Inner parameter -> probability of a row's target token; of its edit's least probable one where it has none."""
    least_E: Tensor
    """Probability of the least probable target token of each edit."""


def edit_sequences(model: EditableModel, edits: Sequence[Edit], group: Group, rephrase_rows: int) -> EditSequences:
    """Return the edits' sequences as this rank's batches of bounded size, ready for `read`.

    What enters the first layer of the group is computed here, once for all passes: enter the side branches that stay.
    """
    sequences, edit_S = _encoded(model, edits, rephrase_rows)
    batches = [
        (places, model.prefixed(batch, group.params) if group.params else batch)
        for places, batch in model.chunked_alike(sequences, max_tokens=READ_TOKENS)
    ]
    return EditSequences(group=group, edit_S=edit_S, batches=batches)


def rows_of_edits(
    model: EditableModel, edits: Sequence[Edit], group: Group, rephrase_rows: int
) -> dict[str, list[int]]:
    """Return how many rows each edit has in each inner parameter of a group."""
    sequences, edit_S = _encoded(model, edits, rephrase_rows)
    batch = model.pack(sequences)
    edit_B = torch.tensor(edit_S, dtype=torch.long, device=model.device)
    row_T = {param.name: model.key_positions(batch, param, group.kind)[0] for param in group.params}
    return {name: torch.bincount(edit_B[rows], minlength=len(edits)).tolist() for name, rows in row_T.items()}


def read(model: EditableModel, asked: EditSequences, branches: Mapping[str, Branch]) -> Reading:
    """Return keys, gradients and target probabilities of all rows at the candidate; every rank has to ask.

    Raises:
        EditorFailed: if a probability is not finite.
    """
    group = asked.group
    with side_branch(model.module, branches):
        pairs = read_pairs(
            model,
            asked.batches,
            lambda batch: {param.name: model.key_positions(batch, param, group.kind) for param in group.params},
        )
    _require_finite(pairs.probability_N)
    least_E = pairs.least(asked.edit_S)
    edit_S = torch.tensor(asked.edit_S, device=model.device)
    probability_T = {
        param.name: pairs.probability_N
        if model.keys_predict_target(param, group.kind)
        else least_E[edit_S[pairs.sequence_T[param.name]]]
        for param in group.params
    }
    return Reading(u_TI=pairs.u_TI, delta_TO=pairs.delta_TO, probability_T=probability_T, least_E=least_E)


def read_least(
    model: EditableModel, edits: Sequence[Edit], rephrase_rows: int, branches: Mapping[str, Branch]
) -> Tensor:
    """Return the probability of each edit's least probable target token, E, at the candidate; every rank has to ask.

    Raises:
        EditorFailed: if a probability is not finite.
    """
    with side_branch(model.module, branches):
        asked = edit_sequences(model, edits, Group(params=(), kind="answer"), rephrase_rows)
        pairs = read_pairs(model, asked.batches, lambda _batch: {})
    _require_finite(pairs.probability_N)
    return pairs.least(asked.edit_S)


def _require_finite(probability_N: Tensor) -> None:
    if not bool(torch.isfinite(probability_N).all()):
        raise EditorFailed("expected finite probabilities of the target tokens, got NaN or infinity")


def _encoded(model: EditableModel, edits: Sequence[Edit], rephrase_rows: int) -> tuple[list[Encoded], list[int]]:
    """Encode the edits, each followed by the rephrases that are edit rows, and say which edit each sequence is of."""
    asked = [
        (place, prompt, edit.request)
        for place, edit in enumerate(edits)
        for prompt in (edit.request.prompt, *edit.request.row_rephrases(rephrase_rows))
    ]
    sequences = [model.encode_pair(prompt, request.target_new, request.subject) for _, prompt, request in asked]
    return sequences, [place for place, _, _ in asked]
