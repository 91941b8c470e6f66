"""The frames of a batch of edits as a model reads them: keys, gradients and target probabilities.

Batches are cut alike for any number of ranks that hold the model together. A pass asks an edit again or not by a
threshold, and where batches were cut otherwise a last bit could decide it otherwise.

Legend: T edit rows, N target tokens, S sequences, E edits, I in_features, O out_features, H shifts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editors.methods.frames import EditFrames
from editors.methods.pairs import Pairs, read_keys, read_pairs
from editors.models.comm import own_share
from editors.models.families import EditableModel, InnerParam
from editors.models.hooks import Addition, side_branch
from editors.models.left_context import Begun
from editors.models.tokens import Encoded, KeyTokens, TargetBatch, chunks, cut
from pipeline.domain.errors import EditorFailed

READ_TOKENS = 256
"""Most padded tokens of one forward and backward: what the blocks keep for it is most of an edit's memory. Two ranks
share a usual batch at this size."""
LONGEST_LEFT, MOST_LEFT = 64, 4096
"""Most tokens at the beginning of a sequence, and at those of all sequences of a batch, that are read once and kept:
what attention keeps of a token takes .05 MB in a model of 135 million parameters."""
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
    """How many rows each of the edits has that have any."""

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
        is_subject = group.kind == "subject"
        encoded: list[Encoded] = []
        edit_S: list[int] = []
        is_guard_S: list[bool] = []
        asked_of: list[tuple[int, ...]] = []
        for edit, of_edit in enumerate(frames):
            pairs = zip(of_edit.asked, of_edit.answered, strict=True)
            asked = [frame for frame, is_answered in pairs if is_answered or is_subject]
            others = of_edit.keyed if is_subject else ()
            asked_of.append(tuple(range(len(encoded), len(encoded) + len(asked))))
            encoded += [*asked, *others, *of_edit.guards]
            is_guard_S += [False] * (len(asked) + len(others)) + [True] * len(of_edit.guards)
            edit_S += [edit] * (len(encoded) - len(edit_S))
        return cls(
            group=group,
            encoded=tuple(encoded),
            edit_S=tuple(edit_S),
            asked_of=tuple(asked_of),
            is_guard_S=tuple(is_guard_S),
        )

    def rows(self, model: EditableModel, edits: Sequence[int], *, are_shared: bool) -> dict[str, Rows]:
        """Return the rows that some edits have in each inner parameter of the group.

        Args:
            model: says which tokens are keys.
            edits: places of the edits, in order; only they have rows.
            are_shared: whether the frames of an edit share their shifts; else each row has one of its own.
        """
        wanted = set(edits)
        own = [place for place, edit in enumerate(self.edit_S) if edit in wanted]
        batch = model.pack([self.encoded[place] for place in own])
        found = {}
        for param in self.group.params:
            row_T = model.key_positions(batch, param, self.group.kind)[0].tolist()
            predicts = model.keys_predict_target(param, self.group.kind)
            sequence_T = [own[row] for row in row_T]
            found[param.name] = self._rows(sequence_T, edits, predicts_target=predicts, are_shared=are_shared)
        return found

    def _rows(self, sequence_T: list[int], edits: Sequence[int], *, predicts_target: bool, are_shared: bool) -> Rows:
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
            lengths=tuple(lengths[edit] for edit in edits),
        )


class Reader:
    """Reads the asked sequences of a group again and again.

    What enters the group's first layer, and what stands left of a sequence's first key, is computed once, at the first
    candidate that is read and for all sequences of the edits that are read then: nothing before the layer may change
    meanwhile, no other edit may be read later, and what later candidates give at tokens that ask for nothing is left
    out (DECISIONS.md, 86). Ranks run their batches in rounds, one each.

    Args:
        model: what reads.
        sequences: the edits' sequences.
        keeps_left: whether what stands left of keys is read once; lineages of before frames go on as they did.
    """

    def __init__(self, model: EditableModel, sequences: Sequences, *, keeps_left: bool = True) -> None:
        self._model, self._sequences = model, sequences
        # A model that rotates a batch by its longest sequence reads whole ones, so they are cut into batches as such.
        self._keeps_left = keeps_left and model.rotation_change is None
        self._start: dict[int, int] = {}
        self._begun: dict[int, Begun | None] = {}

    def read(self, chosen: Sequence[int], branches: Mapping[str, Addition], *, has_keys: bool = True) -> Pairs:
        """Return keys, gradients and target probabilities of some sequences at the candidate; every rank has to ask.

        Args:
            chosen: asked sequences, in order; `Pairs` numbers them from 0.
            branches: the candidate.
            has_keys: whether keys and gradients are read, which costs a backward.

        Raises:
            EditorFailed: if a probability is not finite.
        """
        model, group = self._model, self._sequences.group
        params = group.params if has_keys else ()
        with side_branch(model.module, branches):
            if not self._begun:
                self._begin({self._sequences.edit_S[place] for place in chosen})
            pairs = read_pairs(
                model,
                self._batches_of(chosen),
                lambda batch: {param.name: model.key_positions(batch, param, group.kind) for param in params},
            )
        if not bool(torch.isfinite(pairs.probability_N).all()):
            raise EditorFailed("expected finite probabilities of the target tokens, got NaN or infinity")
        return pairs

    def _begin(self, edits: Collection[int]) -> None:
        """Read what is computed once of some edits' sequences."""
        asked = [place for edit in sorted(edits) for place in self._sequences.asked_of[edit]]
        encoded, group = [self._sequences.encoded[place] for place in asked], self._sequences.group
        starts = _starts(encoded, group.kind) if self._keeps_left else [0] * len(encoded)
        self._start = dict(zip(asked, starts, strict=True))
        self._begun = dict(zip(asked, self._model.begun(encoded, starts, group.params), strict=True))

    def _batches_of(self, chosen: Sequence[int]) -> Iterator[tuple[list[int], TargetBatch]]:
        """Yield this rank's batches of some sequences, each with their places among the chosen."""
        encoded = [self._sequences.encoded[place] for place in chosen]
        rests = [cut(one, self._start[place]) for one, place in zip(encoded, chosen, strict=True)]
        most, change = READ_TOKENS * self._model.times_more, self._model.rotation_change
        plan = list(chunks(rests, max_tokens=most, change=change))
        own = own_share(self._model.comm, plan)
        fillers = -(-len(plan) // self._model.comm.num_ranks) - len(own)
        for number, group in enumerate([*own, *plan[:1] * fillers]):
            begun = [self._begun[chosen[index]] for index in group]
            batch = self._model.pack_begun([encoded[index] for index in group], begun, self._sequences.group.params)
            # A rank without a batch in the last round runs one that is dropped: a forward waits for all ranks.
            yield group if number < len(own) else [], batch


def _starts(sequences: Sequence[Encoded], kind: KeyTokens) -> list[int]:
    """Return the place in each prompt of the first token that a shift may change: nothing left of it asks for one.

    A subject that is named twice has its key at the last mention, but what is asked there comes at the first one too.
    Sequences that are long, or for which there is no room, begin at 0.
    """
    starts, room = [], MOST_LEFT
    for sequence in sequences:
        first, end = len(sequence.prompt_ids) - 1, sequence.subject_end
        if kind == "subject":
            first = 0 if end is None else sequence.prompt_ids.index(sequence.prompt_ids[end])
        starts.append(first if first <= min(LONGEST_LEFT, room) else 0)
        room -= starts[-1]
    return starts


def read_keys_of(
    model: EditableModel, asked: Sequences, chosen: Sequence[int], branches: Mapping[str, Addition]
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
