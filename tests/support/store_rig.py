"""The stores on one real database, with a fake of the ranks: files with random bytes. Shortens what tests repeat."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

from pipeline.adapters.file_artifacts import FileArtifacts
from pipeline.adapters.logins import Login
from pipeline.adapters.sql.audit import SqlAuditStore
from pipeline.adapters.sql.database.engine import connect
from pipeline.adapters.sql.intake import SqlIntakeStore
from pipeline.adapters.sql.leases import SqlLeaseStore
from pipeline.adapters.sql.lineages import SqlLineageStore
from pipeline.adapters.sql.mirror import SqlMirrorStore
from pipeline.adapters.sql.queue import SqlEditQueue
from pipeline.adapters.sql.review import SqlReviewStore
from pipeline.adapters.sql.snapshots import SqlSnapshotStore
from pipeline.domain.batches import EditBatch
from pipeline.domain.contract.messages import Message, ParsedMessage, PartitionKey, Poll
from pipeline.domain.edits import EditRequest
from pipeline.domain.gates import GatePolicy, GateReport
from pipeline.domain.judging import judge
from pipeline.domain.lineages import Lease, Lineage, NewLineage, Removal
from pipeline.domain.rank_api import BaseSpec, EditorSettings
from pipeline.domain.review.approvals import Approval, Channel, Decision, Outcome
from pipeline.domain.snapshots import Artifact, Basis, Snapshot, chained_digest
from pipeline.services.ports import NewSnapshot
from tests.support.factories import NOON, make_measurements, make_request, make_score

LINEAGE = "facts"
TTL = timedelta(minutes=5)
MAX_ATTEMPTS = 3
POLICY = GatePolicy()
ASKED_OTHERWISE = {
    "wording": "Australia is governed from",
    "wording_before": "Sydney",
    "wording_after": "Canberra",
}
"""What each edit of a report that passes was asked in other words, and what was answered."""


def passing_report(edit_ids: Sequence[str]) -> GateReport:
    """A report that passes, over these edits."""
    scores = (make_score(edit_id, **ASKED_OTHERWISE) for edit_id in edit_ids)
    report = judge(POLICY, make_measurements(*scores))
    assert report.passed, report.summary
    return report


def failing_report(edit_ids: Sequence[str]) -> GateReport:
    """A report in which every one of these edits fails."""
    scores = (make_score(edit_id, edit_success=False) for edit_id in edit_ids)
    report = judge(POLICY, make_measurements(*scores))
    assert not report.passed
    return report


@dataclass(kw_only=True)
class StoreRig:
    """Every store of one database."""

    url: str
    folder: Path
    offset: int = 0
    partition: PartitionKey = field(
        default_factory=lambda: PartitionKey(cluster_id="c", topic_id=uuid.uuid4().hex, topic="requests", partition=0)
    )

    def __post_init__(self) -> None:
        self.owner = psycopg.connect(self.url, row_factory=dict_row, autocommit=True)
        # Each store has the rights of the process that uses it: without one that it needs, its tests fail.
        self.engines = {login: connect(self.url, login) for login in Login}
        self.engine = self.engines[Login.console]
        self.artifacts = FileArtifacts(self.folder / "artifacts")
        self.intake = SqlIntakeStore(self.engines[Login.intake])
        self.lineages = SqlLineageStore(self.engines[Login.console])
        self.leases = SqlLeaseStore(self.engines[Login.editor])
        self.queue = SqlEditQueue(self.engines[Login.editor])
        self.snapshots = SqlSnapshotStore(self.engines[Login.editor], self.artifacts)
        self.review = SqlReviewStore(self.engines[Login.console])
        self.mirror = SqlMirrorStore(self.engines[Login.control], self.artifacts)
        self.audit = SqlAuditStore(self.engines[Login.auditor])

    def close(self) -> None:
        for engine in self.engines.values():
            engine.dispose()
        self.owner.close()

    def query(self, statement: str, *values: Any) -> list[dict[str, Any]]:
        """Rows of a query, as the database's owner sees them; for what no port shows. A change without any has none.

        Raises:
            ValueError: if it selects no column: there would be no telling its rows from none.
        """
        cursor = self.owner.execute(statement.encode(), values)
        if not cursor.description and (cursor.statusmessage or "").startswith("SELECT"):
            raise ValueError(f"expected a SELECT with a column, got none: {statement}")
        return cursor.fetchall() if cursor.description else []

    def contents(self) -> dict[str, list[dict[str, Any]]]:
        """Every row of every table, to see that a refused write left nothing."""
        tables = self.query("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
        names = [row["tablename"] for row in tables]
        return {name: self.query(f'SELECT * FROM "{name}" t ORDER BY t::text') for name in names}

    def wipe(self) -> None:
        """Empty every table; the guards against that are switched off for the statement. Faster than a new database."""
        tables = self.query("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        names = [f'"{row["tablename"]}"' for row in tables if row["tablename"] != "alembic_version"]
        off = "".join(f"ALTER TABLE {name} DISABLE TRIGGER keeps_history;" for name in names if name != '"outbox"')
        on = off.replace("DISABLE", "ENABLE ALWAYS")
        self.owner.execute(f"{off} TRUNCATE {', '.join(names)}; {on}".encode())

    def new_lineage(self, name: str = LINEAGE, *, batch_size: int = 32) -> Lineage:
        """A lineage with small settings."""
        settings = NewLineage(
            name=name,
            base=BaseSpec(ref="/models/base", digest="b" * 64, task="causal"),
            editor=EditorSettings(
                inner_params=("a.weight", "b.weight"), subject_params=("a.weight",), batch_size=batch_size
            ),
            policy=POLICY,
            prior=self.file("prior"),
            reference=self.file("baseline"),
        )
        return self.lineages.create(settings, actor="cli:tester")

    def file(self, stem: str) -> Artifact:
        """A file with bytes that no other has."""
        path = self.folder / f"{stem}-{uuid.uuid4().hex}.safetensors"
        path.write_bytes(uuid.uuid4().bytes)
        return self.artifacts.put(path)

    def submit(self, *requests: EditRequest) -> list[str]:
        """Record requests as one poll; returns the edit ids in that order."""
        claim = self.intake.take_partition(self.partition)
        messages = []
        for request in requests:
            message = Message(partition=self.partition, offset=claim.next_offset + len(messages), key=None, value=b"{}")
            messages.append(ParsedMessage(message=message, request=request, refusal=None))
        next_offset = claim.next_offset + len(messages)
        self.intake.record([Poll(claim=claim, messages=tuple(messages), next_offset=next_offset)])
        return [self.edit_id(request.request_id) for request in requests]

    def correct(
        self,
        request_id: str,
        *,
        fact: str = "",
        target: str = "Canberra",
        minute: int = 0,
        subject: str | None = None,
    ) -> str:
        """Submit one correction of a fact, made at a minute after noon; returns its edit id."""
        request = make_request(
            request_id,
            prompt=f"The capital of {fact or request_id} is",
            target_new=target,
            occurred_at=NOON + timedelta(minutes=minute),
            subject=subject,
        )
        return self.submit(request)[0]

    def edit_id(self, request_id: str) -> str:
        return str(self.query("SELECT edit_id FROM edit_requests WHERE request_id = %s", request_id)[0]["edit_id"])

    def edit(self, edit_id: str) -> dict[str, Any]:
        return self.query("SELECT * FROM edit_requests WHERE edit_id = %s", edit_id)[0]

    def status(self, edit_id: str) -> str:
        return str(self.edit(edit_id)["status"])

    def lineage(self) -> Lineage:
        return self.lineages.lineage(LINEAGE)

    def acquire(self, owner: str = "worker:a") -> Lease:
        lease = self.leases.acquire(LINEAGE, owner=owner, ttl=TTL, max_attempts=MAX_ATTEMPTS)
        assert lease is not None
        return lease

    def expire_lease(self) -> None:
        """As if the owner had not renewed for too long."""
        self.query("UPDATE leases SET expires_at = clock_timestamp() - interval '1 second'")

    def make_due(self) -> None:
        """As if the waits of all queued edits were over."""
        self.query("UPDATE edit_requests SET next_attempt_at = clock_timestamp() - interval '1 second'")

    def claim(self, lease: Lease, *, limit: int = 32) -> EditBatch | None:
        return self.queue.claim_batch(lease, limit=limit, max_wait=timedelta())

    def new_snapshot(
        self,
        *,
        batch: EditBatch | None = None,
        removal: Removal | None = None,
        accepted: Sequence[str] | None = None,
        parent_id: str | None = None,
        with_accumulator: bool = False,
    ) -> NewSnapshot:
        """What a worker would commit; `accepted` leaves edits of the batch out."""
        if batch is not None and accepted is not None:
            batch = replace(batch, edits=tuple(edit for edit in batch.edits if edit.edit_id in accepted))
        parent_id = batch.parent_id if batch else parent_id
        delta = self.file("delta")
        parent_digest = self.snapshots.snapshot(LINEAGE, parent_id).digest if parent_id else "b" * 64
        return NewSnapshot(
            snapshot_id=str(uuid.uuid4()),
            parent_id=parent_id,
            basis=Basis.parent,
            delta=delta,
            rows=self.file("rows"),
            accumulator=self.file("accumulator") if with_accumulator else None,
            digest=chained_digest(parent_digest, delta.digest),
            report=passing_report([edit.edit_id for edit in batch.edits] if batch else []),
            batch=batch,
            removal=removal,
            seconds={"capture": 0.5, "solve": 0.25},
        )

    def commit_batch(self, lease: Lease, *, limit: int = 32, with_accumulator: bool = False) -> Snapshot:
        """Claim and commit everything that waits."""
        batch = self.claim(lease, limit=limit)
        assert batch is not None
        return self.snapshots.commit(lease, self.new_snapshot(batch=batch, with_accumulator=with_accumulator))

    def commit_removal(self, lease: Lease) -> Snapshot:
        """Carry out the oldest removal."""
        removal = self.queue.next_removal(lease)
        assert removal is not None
        return self.snapshots.commit(lease, self.new_snapshot(removal=removal, parent_id=self.lineage().head_id))

    def active(self, snapshot_id: str | None) -> set[str]:
        return set(self.active_since(snapshot_id))

    def active_since(self, snapshot_id: str | None) -> dict[str, int]:
        """Edits that a snapshot holds, in the order in which they came in, and the snapshot that brought each."""
        held = "edit_id::text, since_seq FROM edit_rows r JOIN snapshots s USING (lineage_id)"
        where = "s.snapshot_id = %s AND int4range(since_seq, until_seq) @> s.seq ORDER BY place"
        return {row["edit_id"]: row["since_seq"] for row in self.query(f"SELECT {held} WHERE {where}", snapshot_id)}

    def actions(self, subject: str) -> list[str]:
        """Audit actions about a record, in order."""
        return [event.action.value for event in self.audit.events(LINEAGE, limit=100_000) if event.subject == subject]

    def debts(self, kind: str) -> list[dict[str, Any]]:
        """Payloads of what is owed of a kind, oldest first."""
        rows = self.query("SELECT payload FROM outbox WHERE kind = %s ORDER BY outbox_id", kind)
        return [row["payload"] for row in rows]

    def asked(self, snapshot: Snapshot, decision: Decision, **changes: Any) -> Approval:
        """A decision by somebody who sees what there is now."""
        fields: dict[str, Any] = {
            "lineage": LINEAGE,
            "snapshot_id": snapshot.snapshot_id,
            "snapshot_digest": snapshot.digest,
            "champion_seen": self.lineage().champion_id,
            "decision": decision,
            "actor": "cli:reviewer (claimed)",
            "is_claimed": True,
            "reason": "looked at it",
            "channel": Channel.cli,
        }
        return Approval(**(fields | changes))

    def decide(self, snapshot: Snapshot, decision: Decision, **changes: Any) -> Outcome:
        return self.review.decide(self.asked(snapshot, decision, **changes))

    def now(self) -> datetime:
        found: datetime = self.query("SELECT clock_timestamp() AS now")[0]["now"]
        return found.astimezone(UTC)
