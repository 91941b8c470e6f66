"""Which lineage and which snapshot a person means, and the weights that these are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.domain.errors import InvalidInput

if TYPE_CHECKING:
    from pipeline.domain.rank_api import LoadPlan
    from pipeline.storage import Stores


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The weights that a person means."""

    plan: LoadPlan
    """What they are loaded from."""
    is_unapproved: bool
    """Whether the champion was asked for and there is none yet, so that these are the base's."""


def chosen(kept: Stores, lineage: str | None, ref: str) -> Choice:
    """Return the weights of a lineage that are `champion`, `head` or `base`, or a snapshot's seq or id.

    Raises:
        InvalidInput: if there is no such lineage or snapshot, or no lineage is named and there is not exactly one.
        IntegrityBroken: if a file of the snapshot is missing or changed.
        Unavailable: if the database does not answer.
    """
    name = lineage_name(kept, lineage)
    is_unapproved = ref == "champion" and kept.lineages.lineage(name).champion_id is None
    is_base = ref == "base" or is_unapproved
    snapshot_id = None if is_base else kept.snapshots.snapshot(name, ref).snapshot_id
    return Choice(plan=kept.snapshots.load_plan(name, snapshot_id=snapshot_id), is_unapproved=is_unapproved)


def lineage_name(kept: Stores, given: str | None) -> str:
    """Return the lineage that is meant: the one given, or the only one there is.

    Raises:
        InvalidInput: if none is given and there is not exactly one, or there is none of that name.
    """
    if given:
        return kept.lineages.lineage(given).settings.name
    names = [found.settings.name for found in kept.lineages.lineages()]
    if len(names) != 1:
        raise InvalidInput(f"expected --lineage, got none and there are {len(names)}: {', '.join(names) or 'none'}")
    return names[0]
