"""The upkeep of a lineage that grows long: when its ledger is solved anew, and how strong its prior is.

Keys were read on weights that later edits have moved, and every edit costs what has nothing to do with it a little. So
every so many edits the keys may be read again; and where the suite's divergence from the base passes a budget the
prior may get stronger, as a queue that rises with what is lost (LyapLock). Both make a snapshot that gates judge.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any, Self

from pipeline.domain.errors import InvalidInput

STRENGTH_STEP = 1.5
"""By how much the prior's strength rises, or falls, at a time."""
RELAXED_BELOW = 0.5
"""The part of the budget below which a strength that has risen falls again."""
RETRY_AFTER = 256
"""Edits after which a change of the strength that gates or people refused is tried once more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Upkeep:
    """What a lineage does by itself to stay as good as it is; the default is nothing."""

    rekey_every: int = 0
    """Edits after which the keys of all active edits are read again; 0 for never."""
    suite_kl_budget: float = 0.0
    """Nats of KL divergence from the base, mean over the suite, above which the prior gets stronger; 0 for never."""

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any] | None) -> Self:
        """Read it from JSON; a lineage of before has none."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in (stored or {}).items() if name in known})

    def __post_init__(self) -> None:
        if self.rekey_every < 0:
            raise InvalidInput(f"rekey_every: expected a number of edits, or 0 for never; got {self.rekey_every}")
        if not 0 <= self.suite_kl_budget < math.inf:
            raise InvalidInput(f"suite_kl_budget: expected nats, or 0 for none; got {self.suite_kl_budget}")

    def words(self) -> str:
        """Return it for people."""
        often = f"every {self.rekey_every} edits" if self.rekey_every else "only when asked for"
        budget = (
            f"the prior gets stronger where the suite's KL passes {self.suite_kl_budget:.3g}"
            if self.suite_kl_budget
            else "the prior's strength stays"
        )
        return f"keys are read again {often}; {budget}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolving:
    """A ledger that is to be solved anew, as a piece of work that a lineage owes."""

    prior_strength: float | None = None
    """The strength of the prior from then on; None for that of the head."""
    rekeys: bool = False
    """Whether the keys of all active edits are read again."""
    undoes: str | None = None
    """Id of a snapshot that was solved anew: the strength and the keys go back to what they were before it."""
    place: int = 0
    """How many edits had come into the head when it was asked for."""

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> Self:
        """Read it from JSON."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in stored.items() if name in known})

    def as_json(self) -> dict[str, Any]:
        """Return it as it is kept with what is owed."""
        return asdict(self)

    def words(self) -> str:
        """Return what is done, for people."""
        if self.undoes is not None:
            return "the ledger as it was before a snapshot in which it was solved anew"
        parts = ["keys read again"] if self.rekeys else []
        parts += [f"prior strength {self.prior_strength:.4g}"] if self.prior_strength is not None else []
        return " and ".join(parts) or "the ledger solved anew"


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """How a lineage stands after a batch, as far as its upkeep needs it."""

    base_strength: float
    """The prior's strength as the editor's settings have it."""
    strength: float
    """Its strength now."""
    suite_kl: float | None
    """Mean KL divergence of the suite from the base, nats; None if it was not measured."""
    num_activations: int
    """How many edits have come into the head."""
    rekeyed_at: int = 0
    """How many had when keys were last read again, or that was last tried."""
    refused_at: int | None = None
    """How many had when the last change of the strength was refused, by gates or by a person; None if it was not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Owed:
    """A piece of work that is owed to a lineage's head and brings no new edit."""

    what: str
    """What it does, for people."""
    actor: str
    """Who asked for it."""
    reason: str
    """Why; may be empty."""
    asked_at: datetime
    """When they did, by the database's clock."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerStanding:
    """How the ledger of a lineage's head stands."""

    rekeyed_seq: int | None
    """The snapshot in which its keys were last read again; None if they are those of when each edit came in."""
    rekeyed_at: datetime | None
    """When that was made, by the database's clock."""
    edits_since: int | None
    """How many edits have come in since then."""
    owed: tuple[Owed, ...] = ()
    """What is owed, oldest first."""


def in_force(solved: Sequence[tuple[int, int | None]]) -> tuple[int, ...]:
    """Return the snapshots that were solved anew and whose ledgers the head stands on, oldest first.

    What brings an older ledger back is one of them, on what there was before the snapshot that it undoes.

    Args:
        solved: the place of each snapshot that was solved anew, oldest first, and the place of the one that it undoes.
    """
    before: dict[int, tuple[int, ...]] = {}
    now: tuple[int, ...] = ()
    for seq, undone in solved:
        before[seq] = now
        now = (*(now if undone is None else before[undone]), seq)
    return now


def due(upkeep: Upkeep, on: Standing) -> Resolving | None:
    """Return how the ledger is to be solved anew after a batch; None if it is not."""
    rekeys = 0 < upkeep.rekey_every <= on.num_activations - on.rekeyed_at
    strength = _strength(upkeep, on)
    if strength is None and not rekeys:
        return None
    return Resolving(prior_strength=strength, rekeys=rekeys, place=on.num_activations)


def why(upkeep: Upkeep, on: Standing, resolving: Resolving) -> str:
    """Return why a ledger is to be solved anew after a batch, with the bound that asks for it."""
    parts = []
    if resolving.rekeys:
        parts.append(f"{on.num_activations - on.rekeyed_at} edits since keys were read, {upkeep.rekey_every} at most")
    if resolving.prior_strength is not None:
        parts.append(
            f"the suite's KL is {on.suite_kl or 0.0:.3g}, the budget {upkeep.suite_kl_budget:.3g}: "
            f"prior strength {on.strength:.4g} becomes {resolving.prior_strength:.4g}"
        )
    return "upkeep: " + "; ".join(parts)


def _strength(upkeep: Upkeep, on: Standing) -> float | None:
    """Return the strength that the prior should have from now on; None for the one that it has."""
    if not upkeep.suite_kl_budget or on.suite_kl is None:
        return None
    if on.refused_at is not None and on.num_activations - on.refused_at < RETRY_AFTER:
        return None
    if on.suite_kl > upkeep.suite_kl_budget:
        return on.strength * STRENGTH_STEP
    if on.strength > on.base_strength and on.suite_kl < RELAXED_BELOW * upkeep.suite_kl_budget:
        return max(on.strength / STRENGTH_STEP, on.base_strength)
    return None
