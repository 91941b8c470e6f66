"""Edits as rows of keys and shifts that are looked up; `editors.evaluation.gated` runs a model with them.

    lookup = Lookup(unit_RI=keys, shift_RO=shifts, gate=0.8)
    added_BLO = lookup(x_BLI)

Legend: B sequences, L padded length, R rows of the edits, H shifts, I in_features, O out_features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from editors.methods.batch_update import BatchUpdate
from editors.solve.ledger import Ledger
from editors.solve.rows import Ranges

USUAL = 1 / 16
"""Part of the mean of `k^T C^-1 k` over plain text below which a key is left out. The mean is the number of dimensions.
Of a kind of key that a share f of all tokens have it is at most 1 / f, however long they are. On SmolLM2, subjects have
.4 and more of the mean, and first tokens .01."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lookup:
    """Keys of an inner layer and what is added to its output where the input is like one of them."""

    unit_RI: Tensor
    """Keys at length 1, fp32; zeros, which no input is like, for one that is usual or was not read yet."""
    shift_RO: Tensor
    """What each adds, fp32; zeros for a guard."""
    gate: float
    """Least cosine from which something is added; above 0."""

    @classmethod
    def of(cls, update: BatchUpdate, name: str, is_usual_R: Tensor, gate: float) -> Lookup:
        """Return what a batch asks of an inner parameter, but for the rows with a usual key."""
        # The update's spread is the root of each row's weight in a solve; here a row adds the whole shift.
        asks_RH = (update.spread[name] > 0).to(update.asked[name].dtype)
        unit_RI = torch.nn.functional.normalize(update.keys[name].float(), dim=1)
        unit_RI = unit_RI.masked_fill(is_usual_R[:, None], 0.0)
        return cls(unit_RI=unit_RI, shift_RO=(asks_RH @ update.asked[name]).float(), gate=gate)

    def __call__(self, x_BLI: Tensor) -> Tensor:
        """Return what is added to the output for an input, B x L x O."""
        with torch.no_grad():
            cosine_BLR = torch.nn.functional.normalize(x_BLI, dim=-1) @ self.unit_RI.T
            nearest_BL, row_BL = cosine_BLR.max(dim=-1)
        return self.shift_RO[row_BL] * (nearest_BL >= self.gate)[..., None]

    def of_rows(self, first: int, end: int) -> Lookup:
        """Return a lookup in some of the rows."""
        return replace(self, unit_RI=self.unit_RI[first:end], shift_RO=self.shift_RO[first:end])

    @property
    def num_bytes(self) -> int:
        """Size of the keys and the shifts."""
        return sum(part.numel() * part.element_size() for part in (self.unit_RI, self.shift_RO))


class GatedMemory:
    """The rows of all edits that hold, by inner parameter.

    Args:
        gate: as of `Lookup`.
        keeps_one: whether a new batch of edits takes the place of the one before, as where edits are single.

    Attributes:
        lookups: inner parameter -> the lookup in the rows of all edits.
    """

    def __init__(self, gate: float, *, keeps_one: bool = False) -> None:
        self.gate, self._keeps_one = gate, keeps_one
        self.lookups: dict[str, Lookup] = {}
        self._of_fact: dict[str, dict[str, Lookup]] = {}

    def without(self, facts: Sequence[str]) -> dict[str, Lookup]:
        """Return the lookups without some facts, which are corrected again."""
        gone = self._of_fact.keys() if self._keeps_one else set(facts)
        if not gone & self._of_fact.keys():
            return dict(self.lookups)
        return merged([rows for fact, rows in self._of_fact.items() if fact not in gone])

    def take(self, asked: Mapping[str, Lookup], ranges: Mapping[str, Ranges], fact_of: Mapping[str, str]) -> int:
        """Remember a batch, and return its size.

        Args:
            asked: what it asks of each inner parameter.
            ranges: which rows each edit has there.
            fact_of: edit id -> the fact that it corrects, of each of its edits.
        """
        gone = set(self._of_fact) if self._keeps_one else set(fact_of.values())
        self._of_fact = {fact: rows for fact, rows in self._of_fact.items() if fact not in gone}
        for name, lookup in asked.items():
            for edit_id, first, end in ranges[name]:
                self._of_fact.setdefault(fact_of[edit_id], {})[name] = lookup.of_rows(first, end)
        self.lookups = merged(list(self._of_fact.values()))
        return sum(rows.num_bytes for fact in set(fact_of.values()) for rows in self._of_fact.get(fact, {}).values())


class UsualKeys:
    """Which rows of a batch have a key that plain text is full of.

    Args:
        ledger: of the base, without rows: its matrices are those of the prior.
        strength: the prior's.
    """

    def __init__(self, ledger: Ledger, strength: float) -> None:
        self._matrices, self._strength = ledger.without(), strength

    def rows(self, update: BatchUpdate, name: str) -> Tensor:
        """Return whether each row is usual with its key as it is now, R."""
        root_R = update.spread[name].sum(dim=1)  # a row asks for one shift; a guard for none, and weighs 1
        keys_RI = update.keys[name].double() / root_R.where(root_R > 0, 1.0)[:, None]
        # A is c C and a ridge, so this is k^T C^-1 k.
        share_R = self._strength * (keys_RI * self._matrices.factor(name).solve(keys_RI.T).T).sum(dim=1)
        return share_R < USUAL * keys_RI.shape[1]


def merged(parts: Sequence[Mapping[str, Lookup]]) -> dict[str, Lookup]:
    """Return one lookup by inner parameter in the rows of all parts."""
    found: dict[str, list[Lookup]] = {}
    for part in parts:
        for name, lookup in part.items():
            found.setdefault(name, []).append(lookup)
    return {
        name: replace(
            lookups[0],
            unit_RI=torch.cat([lookup.unit_RI for lookup in lookups]),
            shift_RO=torch.cat([lookup.shift_RO for lookup in lookups]),
        )
        for name, lookups in found.items()
    }
