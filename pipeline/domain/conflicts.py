"""Which of several corrections of one fact holds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from pipeline.domain.language.spelling import exact
from pipeline.domain.reasons import quoted


@dataclass(frozen=True, kw_only=True, slots=True)
class Claimant:
    """A correction, as far as it matters to others of the same fact."""

    edit_id: str
    """UUID of the correction."""
    request_id: str
    """The producer's id of it, by which people know it."""
    prompt: str
    """What it is about, for people; of a chat its last turn."""
    conflict_key: str
    """The key of its fact."""
    target_new: str
    """What it asks for."""
    occurred_at: datetime
    """When it was made."""
    origin: tuple[str, int, int]
    """Topic, partition and offset: decides between corrections of the same moment."""

    @property
    def place(self) -> tuple[datetime, tuple[str, int, int], str]:
        """The later place wins."""
        return self.occurred_at, self.origin, self.edit_id

    def asks_the_same(self, other: Claimant) -> bool:
        """Return whether both ask for the same target, letter by letter: a correction may be one of a spelling."""
        return exact(self.target_new) == exact(other.target_new)


@dataclass(frozen=True, kw_only=True, slots=True)
class Superseded:
    """A waiting correction that another one makes needless."""

    edit_id: str
    """The one that goes."""
    superseded_by: str
    """The one that holds instead."""
    reason: str
    """Why, in one sentence."""


def superseded(waiting: Sequence[Claimant], active: Sequence[Claimant]) -> tuple[Superseded, ...]:
    """Return the waiting corrections that need not be made: at most one of each fact is left.

    Args:
        waiting: every waiting correction of the facts concerned.
        active: the corrections of these facts that the head holds.
    """
    # One a fact, but where keys were told apart by an older version: then the latest holds.
    held = {claimant.conflict_key: claimant for claimant in sorted(active, key=lambda claimant: claimant.place)}
    of_fact: dict[str, list[Claimant]] = defaultdict(list)
    for claimant in sorted(waiting, key=lambda claimant: claimant.place):
        of_fact[claimant.conflict_key].append(claimant)
    return tuple(loser for key, claimants in of_fact.items() for loser in _losers(claimants, held.get(key)))


def _losers(claimants: list[Claimant], held: Claimant | None) -> list[Superseded]:
    """Return losers among the corrections of one fact, oldest first."""
    *earlier, latest = claimants
    if held is not None and latest.place < held.place:
        return [_loses(claimant, held) for claimant in claimants]
    losers = [_loses(claimant, latest) for claimant in earlier]
    if held is not None and latest.asks_the_same(held):
        losers.append(_loses(latest, held))
    return losers


def _loses(loser: Claimant, winner: Claimant) -> Superseded:
    if loser.asks_the_same(winner):
        reason = f"duplicate of {winner.request_id}, {quoted(winner.prompt)}"
    else:
        reason = f"older than {winner.request_id}, {quoted(winner.prompt)}, which corrects the same fact"
    return Superseded(edit_id=loser.edit_id, superseded_by=winner.edit_id, reason=reason)
