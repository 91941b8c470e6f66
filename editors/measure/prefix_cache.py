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
        disk: takes what memory has no room for; it is dropped if None. Only `prepare_alone` reads it.

    Attributes:
        num_bytes: size of what is kept in memory.
        num_computed: how many sequences `prepare_alone` had to compute.
    """

    def __init__(self, model: EditableModel, *, max_bytes: int = MAX_BYTES, disk: SpillFile | None = None) -> None:
        self._model, self._max_bytes, self._disk = model, max_bytes, disk
        self._kind: Prefix | None = None
        self._has_prefixes = True
        self.num_computed = 0
        self.num_bytes = 0
        self._known: OrderedDict[tuple[int, ...], Prefix] = OrderedDict()

    def prepare(self, sequences: Sequence[Encoded]) -> Prepared:
        """Return batches of bounded size with their hidden states; those that are not known yet are computed."""
        if self._model.comm.num_ranks > 1:
            return list(self._model.chunked(sequences))
        is_known = [_inputs(sequence) in self._known for sequence in sequences]
        prepared: Prepared = []
        for wanted in (True, False):  # a batch is known whole or not at all: what is known is not run again
            chosen = [place for place, known in enumerate(is_known) if known is wanted]
            for places, batch in self._model.chunked([sequences[place] for place in chosen]):
                own = [chosen[place] for place in places]
                parts = [sequences[place] for place in own]
                prepared.append((own, self._assembled(batch, parts) if wanted else self._computed(batch, parts)))
        self._forget()
        return prepared

    def prepare_alone(self, sequences: Sequence[Encoded], *, max_tokens: int | None = None) -> Prepared:
        """Return batches of bounded size, with hidden states that were computed for each sequence by itself.

        Their bits depend neither on what the sequences were asked with before nor on what is still known of them.
        """
        if self._model.comm.num_ranks > 1:
            return list(self._model.chunked(sequences, max_tokens=max_tokens))
        own = {_inputs(sequence): self._alone(sequence) for sequence in sequences}
        prepared: Prepared = []
        for places, batch in self._model.chunked(sequences, max_tokens=max_tokens):
            known = [prefix for place in places if (prefix := own[_inputs(sequences[place])]) is not None]
            prepared.append((places, _joined(batch, known) if known else batch))
        self._forget()
        return prepared

    def _alone(self, sequence: Encoded) -> Prefix | None:
        """Return what enters the first edited block; None where no block comes before it."""
        inputs = _inputs(sequence)
        if inputs in self._known:
            self._known.move_to_end(inputs)
        elif self._has_prefixes and (found := self._stored(inputs) or self._new(sequence)) is not None:
            self._keep(inputs, found, 0)
        return self._known.get(inputs)

    def _stored(self, inputs: tuple[int, ...]) -> Prefix | None:
        hidden_1SH = self._disk.get(inputs) if self._disk is not None else None
        if hidden_1SH is None or self._kind is None:
            return None
        return replace(self._kind, hidden_BLH=hidden_1SH.to(self._model.device))

    def _new(self, sequence: Encoded) -> Prefix | None:
        self.num_computed += 1
        self._kind = self._model.prefixed(self._model.pack([sequence])).prefix
        self._has_prefixes = self._kind is not None
        return self._kind

    def _assembled(self, batch: TargetBatch, parts: Sequence[Encoded]) -> TargetBatch:
        for part in parts:
            self._known.move_to_end(_inputs(part))
        return _joined(batch, [self._known[_inputs(part)] for part in parts])

    def _computed(self, batch: TargetBatch, parts: Sequence[Encoded]) -> TargetBatch:
        batch = self._model.prefixed(batch)
        if batch.prefix is not None:
            for row, part in enumerate(parts):
                self._keep(_inputs(part), batch.prefix, row)
        return batch

    def _keep(self, inputs: tuple[int, ...], prefix: Prefix, row: int) -> None:
        hidden_1SH = prefix.hidden_BLH[row : row + 1, : len(inputs)].clone()
        if inputs not in self._known:
            self.num_bytes += _size(hidden_1SH)
        self._known[inputs] = replace(prefix, hidden_BLH=hidden_1SH)

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
