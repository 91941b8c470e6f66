"""Knows the rows of every active edit and the sums that define the edited weights. Knows no model.

    A = C0 + lambda I + sum K^T K        B = sum K^T Y        S = A^-1 B        C0 = c mean(k k^T) over plain text

Lambda is a fraction of the mean diagonal of C0.

Sums are fp64, batch by batch in order, so that a ledger read from files has the same bits as the one that lived on;
rows that leave are not subtracted, the sum is made again without them.

Legend: T rows, I in_features, O out_features.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from editors.solve.gram import Gram
from editors.solve.linear import Factored
from editors.solve.prior import Prior
from editors.solve.rows import EditRows
from pipeline.domain.errors import IntegrityBroken, UnknownRecord
from pipeline.domain.rank_api import FileRef, LedgerRows


class Ledger:
    """The active edits of a lineage, oldest first, and what they ask for together.

    Args:
        prior: second moments of keys over plain text.
        strength: c, the weight of the prior.
        ridge: lambda of each inner parameter, as a fraction of the mean diagonal of C0.
        batches: rows of the active edits.
    """

    def __init__(
        self,
        prior: Prior,
        *,
        strength: float,
        ridge: float,
        batches: Sequence[EditRows] = (),
    ) -> None:
        self.prior = prior
        self.strength = strength
        self.batches = tuple(batch for batch in batches if batch.edit_ids)
        self.ridge = ridge
        self._sums = _Sums(prior, strength, ridge, self.batches)

    @classmethod
    def from_files(
        cls,
        prior: FileRef,
        rows: Sequence[LedgerRows],
        *,
        strength: float,
        ridge: float,
        names: Sequence[str] | None = None,
    ) -> Self:
        """Read a ledger back: the prior, and of each snapshot's rows those of the edits that still count.

        Args:
            prior: its file.
            rows: files of rows, oldest first.
            strength: c.
            ridge: lambda's fraction.
            names: inner parameters to read; all if None.

        Raises:
            IntegrityBroken: if a file or an edit's rows are not what was recorded.
        """
        batches = []
        for item in rows:
            if not item.edit_ids:
                continue
            batch = EditRows.load(Path(item.file.path), item.file.digest)
            if missing := set(item.edit_ids) - set(batch.edit_ids):
                raise IntegrityBroken(f"expected rows of edit {min(missing)} in {item.file.path}, got none")
            kept = batch if names is None else batch.of_params(names)
            batches.append(kept.only(set(item.edit_ids)))
        read = Prior.load(Path(prior.path), prior.digest, names=names)
        return cls(read, strength=strength, ridge=ridge, batches=batches)

    @property
    def edit_ids(self) -> tuple[str, ...]:
        """Every active edit."""
        return tuple(edit_id for batch in self.batches for edit_id in batch.edit_ids)

    def without(self, edit_ids: Collection[str]) -> Self:
        """A ledger of its own without some edits.

        Raises:
            UnknownRecord: for an edit that has no rows here.
        """
        if missing := set(edit_ids) - set(self.edit_ids):
            raise UnknownRecord(f"expected an active edit to remove, got {min(missing)}", edit_id=min(missing))
        staying = set(self.edit_ids) - set(edit_ids)
        batches = [batch.only(staying) for batch in self.batches]
        other = type(self)(self.prior, strength=self.strength, ridge=self.ridge, batches=batches)
        if not edit_ids:
            self._sums.is_shared, other._sums = True, self._sums
        return other

    def rows_of(self, name: str, edit_ids: Collection[str]) -> tuple[Tensor, Tensor]:
        """Keys (T x I) and targets (T x O) of some edits for an inner parameter, fp64, oldest first."""
        chosen = [batch.only(edit_ids) for batch in self.batches]
        keys = torch.cat([batch.keys[name] for batch in chosen])
        targets = torch.cat([batch.targets[name] for batch in chosen])
        return keys.double(), targets.double()

    def matrix(self, name: str) -> Tensor:
        """A (I x I), fp64, in memory of its own."""
        return self._sums.of(name).matrix()

    def right_side(self, name: str) -> Tensor:
        """B (I x O), fp64."""
        keys_TI, targets_TO = self.rows_of(name, self.edit_ids)
        return keys_TI.T @ targets_TO

    def factor(self, name: str) -> Factored:
        """The Cholesky factor of A; good until rows are committed.

        Raises:
            EditorFailed: if A is not positive definite.
        """
        return self._sums.of(name).factor()

    @property
    def jitter(self) -> dict[str, float]:
        """Inner parameters whose matrix was not positive definite as it was -> what was added to its diagonal."""
        return self._sums.jitter

    def whole_shift(self, name: str) -> Tensor:
        """S = A^-1 B (I x O), fp64: the weights that the active rows define."""
        return self.factor(name).solve(self.right_side(name))

    def commit(self, rows: EditRows, removed_ids: Collection[str] = ()) -> None:
        """Take a kept candidate's rows in and the removed edits' rows out.

        Args:
            rows: of every inner parameter that is kept here; those of others are left out.
            removed_ids: edits that leave.
        """
        rows = rows.of_params([name for name in rows.keys if name in self.prior.moments])
        staying = set(self.edit_ids) - set(removed_ids)
        if removed_ids:
            self.batches = tuple(batch for held in self.batches if (batch := held.only(staying)).edit_ids)
            self._sums = _Sums(self.prior, self.strength, self.ridge, self.batches)
        if rows.edit_ids:
            self._sums = self._sums.extended(rows)
            self.batches = (*self.batches, rows)


class _Sums:
    """A of each inner parameter, made when first asked for."""

    def __init__(self, prior: Prior, strength: float, ridge: float, batches: Sequence[EditRows]) -> None:
        self._prior, self._strength, self._ridge, self._batches = prior, strength, ridge, tuple(batches)
        self._made: dict[str, Gram] = {}
        self.is_shared = False
        """Whether two ledgers stand on them."""

    def of(self, name: str) -> Gram:
        """Not to be added to."""
        if name not in self._made:
            matrix_II = self._prior.moments[name].double() * self._strength
            matrix_II.diagonal().add_(self._ridge * float(matrix_II.diagonal().mean()))
            made = Gram(matrix_II, name=name)
            for batch in self._batches:
                made.add(batch.keys[name].double())
            self._made[name] = made
        return self._made[name]

    @property
    def jitter(self) -> dict[str, float]:
        """Of those that needed one."""
        return {name: made.jitter for name, made in self._made.items() if made.jitter > 0}

    def extended(self, rows: EditRows) -> _Sums:
        """The sums with one more batch, in the same memory unless it is shared; these are then made anew if need be."""
        longer = _Sums(self._prior, self._strength, self._ridge, (*self._batches, rows))
        for name in list(self._made):
            made = self._made[name].copied() if self.is_shared else self._made.pop(name)
            made.add(rows.keys[name].double())
            longer._made[name] = made
        return longer
