"""The ledger: the rows of every active edit, which define the edited weights.

    A = C0 + lambda I + sum K^T K        B = sum K^T Y        S = A^-1 B        C0 = c mean(k k^T) over plain text

Lambda is a fraction of the mean diagonal of C0. Sums are fp64. Rows that leave are not subtracted: what they were part
of is summed again without them (see `blocks`), so that a ledger read from files has the bits of the one that lived on.

    remaining = ledger.without(["a"])      # nothing changes yet
    remaining.factor(name).solve(right)
    ledger.commit(rows, ["a"])             # takes over what `remaining` has made

Legend: T rows, I in_features, O out_features.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from editors.solve.blocks import ActiveRows
from editors.solve.gram import Gram
from editors.solve.linear import Factored
from editors.solve.prior import Prior
from editors.solve.rows import EditRows, load_batches
from editors.solve.shared_targets import SharedTargets
from pipeline.domain.errors import EditorFailed, IntegrityBroken
from pipeline.domain.rank_api import FileRef, LedgerRows


class Matrices:
    """A of each inner parameter without some of the edits, and its factor; each is made when it is first asked for.

    Args:
        rows: of the active edits.
        gone: the edits that are left out.
        made: matrices that there are already.
    """

    def __init__(
        self, rows: ActiveRows, gone: frozenset[str] = frozenset(), *, made: dict[str, Gram] | None = None
    ) -> None:
        self.gone = gone
        self._rows, self._made = rows, made or {}

    def matrix(self, name: str) -> Tensor:
        """A (I x I), fp64, in memory of its own."""
        return self._gram(name).matrix()

    def factor(self, name: str) -> Factored:
        """The Cholesky factor of A; good until rows are committed.

        Raises:
            EditorFailed: if A is not positive definite.
        """
        return self._gram(name).factor()

    @property
    def jitter(self) -> dict[str, float]:
        """Inner parameters whose matrix was not positive definite as it was -> what was added to its diagonal."""
        return {name: made.jitter for name, made in self._made.items() if made.jitter > 0}

    def extended(self, rows: EditRows) -> dict[str, Gram]:
        """The matrices that there are, with the rows of one more batch, in the same memory.

        Those that get another block are left out; so are those taken from here when there is no memory: they are made
        again from the rows when somebody asks.
        """
        longer = {}
        for name in [name for name in self._made if not self._rows.begins_block(name, rows)]:
            longer[name] = self._made.pop(name)
            longer[name].add(rows.keys_of(name))
        return longer

    def _gram(self, name: str) -> Gram:
        if name not in self._made:
            self._made[name] = self._rows.gram(name, self.gone)
        return self._made[name]


class Ledger:
    """The active edits of a lineage, oldest first, and what they ask for together.

    Args:
        prior: second moments of keys over plain text.
        strength: c, the weight of the prior.
        ridge: lambda of each inner parameter, as a fraction of the mean diagonal of C0.
        batches: rows of the active edits.
        device: where matrices are added up and factored; rows are on the CPU.

    Attributes:
        prior: second moments of keys over plain text.
        strength: c.
        device: the device of the matrices. A solve takes its right side from any device and gives it back there.
    """

    def __init__(
        self,
        prior: Prior,
        *,
        strength: float,
        ridge: float,
        batches: Sequence[EditRows] = (),
        device: torch.device | str = "cpu",
    ) -> None:
        self.prior, self.device, self.strength = prior, torch.device(device), strength
        self._ridge = ridge
        self._rows = ActiveRows(prior, strength=strength, ridge=ridge, device=device)
        for batch in batches:
            self._rows.take(batch)
        self._matrices = Matrices(self._rows)
        self._tried = self._matrices

    @classmethod
    def from_files(
        cls,
        prior: FileRef,
        rows: Sequence[LedgerRows],
        *,
        strength: float,
        ridge: float,
        names: Sequence[str] | None = None,
        device: torch.device | str = "cpu",
    ) -> Self:
        """Read a ledger back: the prior, and of each file of rows those of the edits that still count.

        Args:
            prior: its file.
            rows: files of rows, oldest first; a file of several batches may be named several times in a row.
            strength: c.
            ridge: lambda's fraction.
            names: inner parameters to read; all if None.
            device: where matrices are added up and factored.

        Raises:
            IntegrityBroken: if a file or an edit's rows are not what was recorded.
        """
        known = Prior.load(Path(prior.path), prior.digest, names=names)
        ledger = cls(known, strength=strength, ridge=ridge, device=device)
        for batch, wanted in _read(rows):
            kept = batch if names is None else batch.of_params(names)
            ledger._rows.take(kept, only=wanted)
        return ledger

    @property
    def edit_ids(self) -> tuple[str, ...]:
        """Every active edit."""
        return self._rows.edit_ids

    @property
    def batches(self) -> tuple[EditRows, ...]:
        """The rows of every active edit, batch by batch."""
        return self._rows.batches

    def without(self, edit_ids: Collection[str] = ()) -> Matrices:
        """The matrices without some edits; those of the last removal that was asked for are still there.

        Raises:
            UnknownRecord: for an edit that has no rows here.
        """
        self._rows.require(edit_ids)
        gone = frozenset(edit_ids)
        if not gone:
            return self._matrices
        if self._tried.gone != gone:
            self._tried = Matrices(self._rows, gone)
        return self._tried

    def forget_trials(self) -> None:
        """Let go of what was made for trials without some edits, which those of one batch share."""
        self._tried = self._matrices
        self._rows.forget_trials()

    def rows_of(self, name: str, edit_ids: Collection[str]) -> tuple[Tensor, Tensor]:
        """Keys (T x I) and targets (T x O) of some edits for an inner parameter, fp64 on the CPU, oldest first."""
        return self._rows.rows_of(name, edit_ids)

    def targets_of(self, name: str, edit_id: str) -> Tensor | SharedTargets:
        """Return the targets of an active edit's rows for an inner parameter, as they are kept.

        Raises:
            UnknownRecord: if it has no rows here.
        """
        self._rows.require([edit_id])
        return self._rows.targets_of(name, edit_id)

    def shift(self, name: str) -> Tensor:
        """Return S = A^-1 B of an inner parameter, I x O, fp64 on the CPU: what the rows of all edits ask for together.

        Raises:
            EditorFailed: if A is not positive definite.
        """
        right_IO: Tensor | None = None
        for of_batch in self._rows.each(name):
            keys_TI, targets_TO = (part.double().to(self.device) for part in of_batch)
            asked_IO = keys_TI.T @ targets_TO
            right_IO = asked_IO if right_IO is None else right_IO.add_(asked_IO)
        if right_IO is None:
            raise EditorFailed("expected a ledger with edits to solve, got one without")
        return self.without().factor(name).solve(right_IO).cpu()

    def prior_matrix(self, name: str, strength: float) -> Tensor:
        """Return C0 + lambda I of an inner parameter for a strength (of a difference of two, the difference)."""
        return self._rows.prior_matrix(name, strength)

    def at(self, strength: float, batches: Sequence[EditRows] | None = None, *, names: Sequence[str] = ()) -> Ledger:
        """Return a ledger of another strength, with other rows if some are given; this one stays as it is.

        Args:
            strength: c.
            batches: the rows; this ledger's if None. Of two ledgers that share rows only one may go on.
            names: inner parameters that it is of; all if there is none.
        """
        prior = self.prior if not names else self.prior.only(names)
        changed = Ledger(prior, strength=strength, ridge=self._ridge, batches=batches or (), device=self.device)
        if batches is None:
            changed._rows = self._rows.at(strength)
            changed._matrices = changed._tried = Matrices(changed._rows)
        return changed

    def commit(self, rows: EditRows, removed_ids: Collection[str] = ()) -> None:
        """Take a kept candidate's rows in and the removed edits' rows out.

        Args:
            rows: of every inner parameter that is kept here; those of others are left out.
            removed_ids: edits that leave.

        Raises:
            UnknownRecord: for a removed edit that has no rows here; nothing has changed then.
        """
        rows = rows.of_params([name for name in rows.keys if name in self.prior.moments])
        made = self.without(removed_ids).extended(rows)
        self._matrices = self._tried = Matrices(self._rows, made=made)
        self._rows.drop(removed_ids)
        self._rows.take(rows)


def batches_of(rows: Sequence[LedgerRows]) -> Iterator[EditRows]:
    """Yield the rows of the edits that count in some files, batch by batch, for all inner parameters.

    Raises:
        IntegrityBroken: if a file or an edit's rows are not what was recorded.
    """
    for batch, wanted in _read(rows):
        if (kept := batch.only(wanted.intersection(batch.edit_ids))).edit_ids:
            yield kept


def _read(rows: Sequence[LedgerRows]) -> Iterator[tuple[EditRows, set[str]]]:
    """Yield each batch of some files, and which edits of its file count; checks that all of these are there."""
    for file, items in groupby(rows, lambda item: item.file):
        wanted = {edit_id for item in items for edit_id in item.edit_ids}
        batches = load_batches(Path(file.path), file.digest) if wanted else ()
        yield from ((batch, wanted) for batch in batches)
        if missing := wanted - {edit_id for batch in batches for edit_id in batch.edit_ids}:
            raise IntegrityBroken(f"expected rows of edit {min(missing)} in {file.path}, got none")
