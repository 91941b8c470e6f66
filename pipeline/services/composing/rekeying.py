"""What ranks are told of a ledger that is solved anew: which edits are read again, under which prior."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.domain.ledger.upkeep import Resolving
from pipeline.domain.lineages import Lineage
from pipeline.domain.rank_api import Rekeying

if TYPE_CHECKING:
    from pipeline.adapters.sql.queue import SqlEditQueue
    from pipeline.adapters.sql.snapshots import SqlSnapshotStore


def rekeying_of(
    resolving: Resolving, lineage: Lineage, *, queue: SqlEditQueue, snapshots: SqlSnapshotStore
) -> Rekeying:
    """Return how the ledger of a lineage's head is solved anew.

    Args:
        resolving: what is owed.
        lineage: as it stands.
        queue: says which edits the head holds.
        snapshots: says where their rows were before a snapshot that is undone.
    """
    name, editor = lineage.settings.name, lineage.settings.editor
    if resolving.undoes is not None:
        strength, rows = snapshots.ledger_before(name, undone_id=resolving.undoes)
        return Rekeying(prior_strength=editor.prior_strength if strength is None else strength, rows=rows)
    strength = lineage.prior_strength if resolving.prior_strength is None else resolving.prior_strength
    return Rekeying(prior_strength=strength, edits=queue.active(name) if resolving.rekeys else ())
