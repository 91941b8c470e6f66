"""The frames of a batch of edits as a model reads them: keys, gradients and target probabilities.

Batches are cut alike for any number of ranks that hold the model together. A pass asks an edit again or not by a
threshold, and where batches were cut otherwise a last bit could decide it otherwise.

Legend: T edit rows, N target tokens, S sequences, E edits, I in_features, O out_features, H shifts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from editors.methods.frames import EditFrames
from editors.methods.pairs import Pairs, read_keys, read_pairs
from editors.models.families import EditableModel, InnerParam
from editors.models.hooks import Branch, side_branch
from editors.models.tokens import Encoded, KeyTokens
from pipeline.domain.errors import EditorFailed

READ_TOKENS = 256
"""Most padded tokens of one forward and backward: what the blocks keep for it is most of an edit's memory. Two ranks
share a usual batch at this size."""
KEY_TOKENS = 1024
"""Most padded tokens of a forward that only reads keys."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Inner parameters that are asked together."""

    params: tuple[InnerParam, ...]
    """In the order in which they run."""
    kind: KeyTokens
    """Which tokens are their rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """The rows of some edits in one inner parameter: an edit's rows lie together, sequence by sequence."""

    sequence_T: Tensor
    """The sequence that each row belongs to; does not decrease."""
    shift_T: Tensor
    """The shift that each row asks for; -1 for a guard's."""
    weight_T: Tensor
    """Weight of each row in the solve."""
    num_shifts: int
    """How many shifts there are, H."""
    predicts_target: bool
    """Whether the rows are the tokens that predict the target's."""
    lengths: tuple[int, ...]
    """How many rows each edit has, E."""

    def of_sequences(self, chosen: Sequence[int]) -> Tensor:
        """Return which rows are of some sequences, which are given in their order."""
        return torch.isin(self.sequence_T, torch.tensor(list(chosen), dtype=torch.long)).nonzero()[:, 0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sequences:
    """The sequences of some edits that a group reads: those of an edit lie together, the asked ones first."""

    group: Group
    """The inner parameters that read them."""
    encoded: tuple[Encoded, ...]
    """All sequences, S."""
    edit_S: tuple[int, ...]
    """The edit of each sequence, by its place among the edits."""
    asked_of: tuple[tuple[int, ...], ...]
    """For each edit, its sequences in which the target follows; the first is its own prompt."""
    is_guard_S: tuple[bool, ...]
    """Whether a sequence is a guard's."""

    @classmethod
    def of(cls, frames: Sequence[EditFrames], group: Group) -> Sequences:
        """Return the sequences of edits for a group: where rows are answer tokens, only those that are answered."""
        encoded: list[Encoded] = []
        edit_S: list[int] = []
        is_guard_S: list[bool] = []
        asked_of: list[tuple[int, ...]] = []
        for edit, of_edit in enumerate(frames):
            is_subject = group.kind == "subject"
            pairs = zip(of_edit.asked, of_edit.answered, strict=True)
            asked = [frame for frame, is_answered in pairs if is_answered or is_subject]
            others = [*(of_edit.keyed if is_subject else ()), *of_edit.guards]
            asked_of.append(tuple(range(len(encoded), len(encoded) + len(asked))))
            encoded += [*asked, *others]
            edit_S += [edit] * (len(asked) + len(others))
            is_guard_S += [False] * (len(encoded) - len(is_guard_S) - len(of_edit.guards))
            is_guard_S += [True] * len(of_edit.guards)
        return cls(
            group=group,
            encoded=tuple(encoded),
            edit_S=tuple(edit_S),
            asked_of=tuple(asked_of),
            is_guard_S=tuple(is_guard_S),
        )

    def without_params(self) -> Sequences:
        """Return the same sequences for a reading without keys and gradients."""
        return replace(self, group=Group(params=(), kind=self.group.kind))

    def rows(self, model: EditableModel, *, are_shared: bool) -> dict[str, Rows]:
        """Return the rows that the edits have in each inner parameter of the group.

        Args:
            model: says which tokens are keys.
            are_shared: whether the frames of an edit share their shifts; else each row has one of its own.
        """
        batch = model.pack(self.encoded)
        found = {}
        for param in self.group.params:
            sequence_T = model.key_positions(batch, param, self.group.kind)[0].tolist()
            predicts = model.keys_predict_target(param, self.group.kind)
            found[param.name] = self._rows(sequence_T, predicts_target=predicts, are_shared=are_shared)
        return found

    def _rows(self, sequence_T: list[int], *, predicts_target: bool, are_shared: bool) -> Rows:
        """Number the shifts: of subject tokens one an edit, of answer tokens one for each token of its target."""
        shifts: dict[tuple[int, int], int] = {}
        shift_T: list[int] = []
        lengths, framed = [0] * len(self.asked_of), [0] * len(self.asked_of)
        place, last = 0, -1
        for row, sequence in enumerate(sequence_T):
            edit = self.edit_S[sequence]
            place = place + 1 if sequence == last else 0
            last = sequence
            lengths[edit] += 1
            if self.is_guard_S[sequence]:
                shift_T.append(-1)
                continue
            framed[edit] += 1
            key = (edit, place if predicts_target else 0) if are_shared else (-1, row)
            shift_T.append(shifts.setdefault(key, len(shifts)))
        # A subject's rows weigh as much as one; those of answer tokens differ more and count each.
        is_mean = are_shared and not predicts_target
        weights = [
            1 / framed[self.edit_S[sequence]] if is_mean and shift >= 0 else 1.0
            for sequence, shift in zip(sequence_T, shift_T, strict=True)
        ]
        return Rows(
            sequence_T=torch.tensor(sequence_T, dtype=torch.long),
            shift_T=torch.tensor(shift_T, dtype=torch.long),
            weight_T=torch.tensor(weights, dtype=torch.float64),
            num_shifts=len(shifts),
            predicts_target=predicts_target,
            lengths=tuple(lengths),
        )


def read(model: EditableModel, asked: Sequences, chosen: Sequence[int], branches: Mapping[str, Branch]) -> Pairs:
    """Return keys, gradients and target probabilities of some sequences at the candidate; every rank has to ask.

    Args:
        model: as it is now.
        asked: the sequences; `Pairs` numbers the chosen ones from 0.
        chosen: which of them, in order.
        branches: the candidate.

    Raises:
        EditorFailed: if a probability is not finite.
    """
    group = asked.group
    sequences = [asked.encoded[place] for place in chosen]
    with side_branch(model.module, branches):
        pairs = read_pairs(
            model,
            (
                (places, model.prefixed(batch, group.params) if group.params else batch)
                for places, batch in model.chunked_alike(sequences, max_tokens=READ_TOKENS)
            ),
            lambda batch: {param.name: model.key_positions(batch, param, group.kind) for param in group.params},
        )
    if not bool(torch.isfinite(pairs.probability_N).all()):
        raise EditorFailed("expected finite probabilities of the target tokens, got NaN or infinity")
    return pairs


def read_keys_of(
    model: EditableModel, asked: Sequences, chosen: Sequence[int], branches: Mapping[str, Branch]
) -> dict[str, Tensor]:
    """Return the keys (T x I, fp32) of some sequences at the candidate, by inner parameter.

    Every rank has to ask. It costs a part of a forward: up to the last layer of the group.
    """
    group = asked.group
    sequences = [asked.encoded[place] for place in chosen]
    with side_branch(model.module, branches):
        return read_keys(
            model,
            model.chunked_alike(sequences, max_tokens=KEY_TOKENS),
            group.params,
            lambda batch: {param.name: model.key_positions(batch, param, group.kind) for param in group.params},
        )
