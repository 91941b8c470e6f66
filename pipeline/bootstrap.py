"""Builds services out of settings. The only place that knows which adapter stands behind which port."""

from __future__ import annotations

import os
import socket
import uuid
from dataclasses import dataclass
from functools import lru_cache

from sqlalchemy import Engine

from pipeline.adapters.celery_doorbell import CeleryDoorbell
from pipeline.adapters.file_artifacts import FileArtifacts
from pipeline.adapters.kafka_publisher import KafkaPublisher
from pipeline.adapters.mlflow_registry import MlflowRegistry
from pipeline.adapters.outbox_handlers import OutboxHandlers
from pipeline.adapters.sql_audit import SqlAuditStore
from pipeline.adapters.sql_engine import connect
from pipeline.adapters.sql_history import SqlHistoryStore
from pipeline.adapters.sql_intake import SqlIntakeStore
from pipeline.adapters.sql_leases import SqlLeaseStore
from pipeline.adapters.sql_lineages import SqlLineageStore
from pipeline.adapters.sql_mirror import SqlMirrorStore
from pipeline.adapters.sql_outbox import SqlOutboxStore
from pipeline.adapters.sql_queue import SqlEditQueue
from pipeline.adapters.sql_review import SqlReviewStore
from pipeline.adapters.sql_snapshots import SqlSnapshotStore
from pipeline.config import Settings
from pipeline.services.editing import EditPolicy, EditService
from pipeline.services.ports import EditorGroup


@dataclass(frozen=True, kw_only=True, slots=True)
class Stores:
    """Everything that is kept in the database, and the files beside it."""

    intake: SqlIntakeStore
    lineages: SqlLineageStore
    leases: SqlLeaseStore
    queue: SqlEditQueue
    snapshots: SqlSnapshotStore
    review: SqlReviewStore
    mirror: SqlMirrorStore
    outbox: SqlOutboxStore
    audit: SqlAuditStore
    history: SqlHistoryStore
    artifacts: FileArtifacts


@lru_cache(maxsize=4)
def stores(settings: Settings) -> Stores:
    """The stores of a process; one connection pool for all of them."""
    settings.require("database_url")
    engine: Engine = connect(settings.database_url.get_secret_value(), settings.database_role)
    artifacts = FileArtifacts(settings.artifact_root.absolute())
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
        artifacts=artifacts,
    )


def edit_service(settings: Settings, group: EditorGroup) -> EditService:
    """The use case of an edit worker, around the group that it drives."""
    kept = stores(settings)
    return EditService(
        leases=kept.leases,
        lineages=kept.lineages,
        queue=kept.queue,
        snapshots=kept.snapshots,
        artifacts=kept.artifacts,
        group=group,
        policy=EditPolicy(
            owner=_owner(),
            lease_ttl=settings.lease_ttl,
            batch_max_wait=settings.batch_max_wait,
            max_attempts=settings.max_attempts,
        ),
    )


@lru_cache(maxsize=1)
def _owner() -> str:
    """This process in leases: host, process id, and a part that no other process has."""
    return f"worker:{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
