"""A cache of what enters the first edited block, for sequences that are asked again and again.

The halves of a failing batch are tried one after the other, and each asks the same sequences; training asks them once
a round. No edit changes the blocks before the first edited one, so only those from there on are run again. What memory
has no room for may go to disk.

Legend: B sequences, L padded length, S length of one sequence, H hidden size.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from editors.measure.scoring import Prepared
from editors.measure.spill_file import SpillFile
from editors.models.families import EditableModel
from editors.models.tokens import Encoded, Prefix, TargetBatch

MAX_BYTES = 64 * 2**20
"""Most memory that is kept, bytes; what was not asked for the longest time goes first."""


class PrefixCache:
    """Prepares batches with the hidden states that are known of their sequences, for all edits of one base.

    A sequence's hidden states do not depend on the batch it was in, up to rounding. Ranks that hold a model together
    keep nothing: one that knows a sequence would run other blocks than one that does not, and wait for ever.

    Args:
        model: the model that is asked.
        max_bytes: most memory to keep, bytes.
        disk: takes what memory has no room for; it is dropped if None.

    Attributes:
        num_bytes: size of what is kept in memory.
        num_computed: how many sequences had to be computed.
    """

    def __init__(self, model: EditableModel, *, max_bytes: int = MAX_BYTES, disk: SpillFile | None = None) -> None:
        self._model, self._max_bytes, self._disk = model, max_bytes, disk
        self._kind: Prefix | None = None
        self._has_prefixes = True
        self.num_computed = 0
        self.num_bytes = 0
        self._known: OrderedDict[tuple[int, ...], Prefix] = OrderedDict()

    def prepare(self, sequences: Sequence[Encoded]) -> Prepared:
        """Return batches of bounded size with their hidden states; those that are not known are computed together."""
        return self._prepared(sequences, None, is_alone=False)

    def prepare_alone(self, sequences: Sequence[Encoded], *, max_tokens: int | None = None) -> Prepared:
        """Return batches of bounded size, with hidden states that were computed for each sequence by itself.

        Their bits depend neither on what the sequences were asked with before nor on what is still known of them.
        """
        return self._prepared(sequences, max_tokens, is_alone=True)

    def _prepared(self, sequences: Sequence[Encoded], max_tokens: int | None, *, is_alone: bool) -> Prepared:
        batches = self._model.chunked(sequences, max_tokens=max_tokens)
        if self._model.comm.num_ranks > 1:
            return list(batches)
        distinct = {_inputs(sequence): sequence for sequence in sequences}
        own = {inputs: prefix for inputs in distinct if (prefix := self._known_prefix(inputs)) is not None}
        unknown = [sequence for inputs, sequence in distinct.items() if inputs not in own]
        for together in [[sequence] for sequence in unknown] if is_alone else [unknown]:
            own |= self._computed(together)
        for inputs, prefix in own.items():
            self._keep(inputs, prefix)
        prepared = [
            (places, _joined(batch, [own[_inputs(sequences[place])] for place in places]) if own else batch)
            for places, batch in batches
        ]
        self._forget()
        return prepared

    def _known_prefix(self, inputs: tuple[int, ...]) -> Prefix | None:
        """Return what memory or the disk has."""
        if inputs in self._known or self._disk is None or self._kind is None:
            return self._known.get(inputs)
        hidden_1SH = self._disk.get(inputs)
        return None if hidden_1SH is None else replace(self._kind, hidden_BLH=hidden_1SH.to(self._model.device))

    def _computed(self, sequences: Sequence[Encoded]) -> dict[tuple[int, ...], Prefix]:
        """Run the blocks before the first edited one; nothing comes of it where the model has none."""
        found: dict[tuple[int, ...], Prefix] = {}
        for places, batch in self._model.chunked(sequences) if self._has_prefixes else ():
            self.num_computed += len(places)
            prefix = self._model.prefixed(batch).prefix
            self._has_prefixes = prefix is not None
            if prefix is None:
                break
            for row, place in enumerate(places):
                inputs = _inputs(sequences[place])
                # A copy without the padding: a view would hold the whole batch for as long as one of its rows.
                self._kind = replace(prefix, hidden_BLH=prefix.hidden_BLH[row : row + 1, : len(inputs)].clone())
                found[inputs] = self._kind
        return found

    def _keep(self, inputs: tuple[int, ...], prefix: Prefix) -> None:
        if inputs not in self._known:
            self.num_bytes += _size(prefix.hidden_BLH)
        self._known[inputs] = prefix
        self._known.move_to_end(inputs)

    def _forget(self) -> None:
        while self.num_bytes > self._max_bytes:
            inputs, oldest = self._known.popitem(last=False)
            self.num_bytes -= _size(oldest.hidden_BLH)
            if self._disk is not None:
                self._disk.put(inputs, oldest.hidden_BLH)


def _joined(batch: TargetBatch, known: Sequence[Prefix]) -> TargetBatch:
    hidden_BLH = torch.nn.utils.rnn.pad_sequence([prefix.hidden_BLH[0] for prefix in known], batch_first=True)
    return replace(batch, prefix=replace(known[0], hidden_BLH=hidden_BLH))


def _inputs(sequence: Encoded) -> tuple[int, ...]:
    return (*sequence.prompt_ids, *sequence.target_ids[:-1])


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
