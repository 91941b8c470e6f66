"""What a process keeps: the stores on one pool of connections, and the files beside them.

Whatever is built here is imported where it is built: a command shows its help without any of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.adapters.file_artifacts import FileArtifacts
    from pipeline.adapters.sql.audit import SqlAuditStore
    from pipeline.adapters.sql.history import SqlHistoryStore
    from pipeline.adapters.sql.intake import SqlIntakeStore
    from pipeline.adapters.sql.leases import SqlLeaseStore
    from pipeline.adapters.sql.lineages import SqlLineageStore
    from pipeline.adapters.sql.mirror import SqlMirrorStore
    from pipeline.adapters.sql.outbox import SqlOutboxStore
    from pipeline.adapters.sql.pruning import SqlPruneStore
    from pipeline.adapters.sql.queue import SqlEditQueue
    from pipeline.adapters.sql.review import SqlReviewStore
    from pipeline.adapters.sql.snapshots import SqlSnapshotStore
    from pipeline.adapters.sql.standing import SqlStanding
    from pipeline.adapters.sql.web.people import SqlPeopleStore
    from pipeline.adapters.sql.web.stores import ApiStores
    from pipeline.config import Settings
    from pipeline.telemetry.health import Check


@dataclass(frozen=True, kw_only=True, slots=True)
class Stores:
    """Everything that is kept in the database, and the files beside it."""

    intake: SqlIntakeStore
    """Messages that are taken in, and the offsets of the topic."""
    lineages: SqlLineageStore
    """Lineages, and the files that they stand on."""
    leases: SqlLeaseStore
    """Who may write a lineage now."""
    queue: SqlEditQueue
    """Edits that wait for a worker."""
    snapshots: SqlSnapshotStore
    """Snapshots and what a group loads for them."""
    review: SqlReviewStore
    """Decisions about snapshots, and reverts."""
    mirror: SqlMirrorStore
    """What the registry has to show."""
    outbox: SqlOutboxStore
    """Side effects that are owed."""
    audit: SqlAuditStore
    """The chained lines of history."""
    history: SqlHistoryStore
    """Views for people, which change nothing."""
    pruning: SqlPruneStore
    """Rows and files that nothing needs any more."""
    artifacts: FileArtifacts
    """Files of deltas, accumulators and ledger rows."""
    standing: SqlStanding
    """What waits, for those who operate this."""
    is_answering: Check
    """Raises if the database does not answer."""
    people: SqlPeopleStore
    """Who may use the HTTP API."""
    api: ApiStores
    """What only the HTTP API and its webhooks ask."""


@lru_cache(maxsize=4)
def stores(settings: Settings) -> Stores:
    """The stores of a process; one connection pool for all of them.

    Raises:
        Misconfigured: if no database is named; later, if its login is a superuser.
    """
    from pipeline.adapters import reachability
    from pipeline.adapters.sql.audit import SqlAuditStore
    from pipeline.adapters.sql.database.engine import connect, for_a_process
    from pipeline.adapters.sql.history import SqlHistoryStore
    from pipeline.adapters.sql.intake import SqlIntakeStore
    from pipeline.adapters.sql.leases import SqlLeaseStore
    from pipeline.adapters.sql.lineages import SqlLineageStore
    from pipeline.adapters.sql.mirror import SqlMirrorStore
    from pipeline.adapters.sql.outbox import SqlOutboxStore
    from pipeline.adapters.sql.pruning import SqlPruneStore
    from pipeline.adapters.sql.queue import SqlEditQueue
    from pipeline.adapters.sql.review import SqlReviewStore
    from pipeline.adapters.sql.snapshots import SqlSnapshotStore
    from pipeline.adapters.sql.standing import SqlStanding
    from pipeline.adapters.sql.web.people import SqlPeopleStore
    from pipeline.adapters.sql.web.stores import api_stores

    settings.require("database_url")
    engine = for_a_process(connect(settings.database_url.get_secret_value(), settings.database_role))
    artifacts = artifacts_of(settings)
    return Stores(
        intake=SqlIntakeStore(engine),
        lineages=SqlLineageStore(engine),
        leases=SqlLeaseStore(engine),
        queue=SqlEditQueue(engine),
        snapshots=SqlSnapshotStore(engine, artifacts),
        review=SqlReviewStore(engine),
        mirror=SqlMirrorStore(engine, artifacts),
        outbox=SqlOutboxStore(engine),
        audit=SqlAuditStore(engine),
        history=SqlHistoryStore(engine),
        pruning=SqlPruneStore(engine),
        artifacts=artifacts,
        standing=SqlStanding(engine),
        is_answering=reachability.database(engine),
        people=SqlPeopleStore(engine),
        api=api_stores(engine),
    )


def artifacts_of(settings: Settings) -> FileArtifacts:
    """Return the artifact store: a folder, or a bucket with that folder as cache.

    Raises:
        Misconfigured: if the bucket's URL is none.
    """
    from pipeline.adapters.file_artifacts import FileArtifacts
    from pipeline.adapters.object_artifacts import ObjectArtifacts

    root = settings.artifact_root.absolute()
    if not settings.artifact_bucket:
        return FileArtifacts(root)
    return ObjectArtifacts(settings.artifact_bucket, cache=root, endpoint=settings.artifact_endpoint)


def make_bucket(settings: Settings) -> None:
    """Make the bucket of the artifact store, if that is one and is not there yet."""
    from pipeline.adapters.object_artifacts import ObjectArtifacts

    kept = artifacts_of(settings)
    if isinstance(kept, ObjectArtifacts):
        kept.make_bucket()
