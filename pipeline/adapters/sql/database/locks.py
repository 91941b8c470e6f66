"""The lock that orders all writers of a lineage. Every one takes it before it touches edits, snapshots or the chain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select

from pipeline.adapters.sql.database.rows import record_of
from pipeline.adapters.sql.database.tables import lineages
from pipeline.domain.errors import UnknownLineage
from pipeline.domain.gates import GatePolicy
from pipeline.domain.ledger.upkeep import Upkeep
from pipeline.domain.review.policies import ApprovalPolicy, policy_of


@dataclass(frozen=True, kw_only=True, slots=True)
class LockedLineage:
    """A lineage as it stands while its row is locked."""

    lineage_id: str
    """UUID of the lineage."""
    name: str
    """Unique name; also the name of its audit chain."""
    head_id: str | None
    """The newest snapshot; None before the first."""
    champion_id: str | None
    """The snapshot that is live; None for the base."""
    seq: int
    """Place of the head; 0 before the first snapshot."""
    num_batches: int
    """Batches claimed so far."""
    num_activations: int
    """Activations of edits so far: the place of the newest."""
    hold: str | None
    """Why no batch may start; None if one may."""
    base_digest: str
    """SHA-256 of the base model."""
    approval: ApprovalPolicy
    """Who has to approve its snapshots."""
    policy: Mapping[str, Any]
    """Fields of its gate policy."""
    editor: Mapping[str, Any]
    """Its editor's settings, as they are kept."""
    upkeep: Upkeep
    """What it does by itself to stay as good as it is."""

    @property
    def doorbell(self) -> dict[str, Any]:
        """Payload of a debt of kind `doorbell`."""
        return {"lineage": self.name, "base_digest": self.base_digest}

    @property
    def policy_digest(self) -> str:
        """SHA-256 of the thresholds that are in force."""
        return GatePolicy.from_stored(self.policy).digest


def lineage_id_of(connection: Connection, name: str) -> str:
    """Return the id of a lineage, without a lock.

    Raises:
        UnknownLineage: if there is none.
    """
    lineage_id = connection.scalar(select(lineages.c.lineage_id).where(lineages.c.name == name))
    if lineage_id is None:
        raise _unknown(name)
    return str(lineage_id)


def lock_lineage(connection: Connection, name: str) -> LockedLineage:
    """Lock a lineage until the transaction ends.

    The lock leaves the key alone, so intake, whose rows refer to the lineage, does not wait for it.

    Raises:
        UnknownLineage: if there is none.
    """
    query = select(lineages).where(lineages.c.name == name).with_for_update(key_share=True)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise _unknown(name)
    return record_of(
        LockedLineage,
        row,
        head_id=row.head_snapshot_id,
        champion_id=row.champion_snapshot_id,
        approval=policy_of(row.approval_policy, row.approval_rule),
        upkeep=Upkeep.from_stored(row.upkeep),
    )


def _unknown(name: str) -> UnknownLineage:
    return UnknownLineage(f"expected the name of a lineage, got {name!r:.120}", lineage=name)
