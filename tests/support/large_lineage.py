"""A lineage of any number of active edits, written by raw SQL, and everything but the ranks that one batch on it costs.

fill(rig, 10_000)
counted = Counted(rig)
with counted:
    one_batch(rig, 32)
print(counted.statements, counted.rows)
"""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from string import Template
from typing import Any

from sqlalchemy import event

from pipeline.adapters.sql.database.rows import artifact_json
from pipeline.adapters.sql.history import SqlHistoryStore
from pipeline.adapters.sql.outbox import SqlOutboxStore
from pipeline.domain.formats.canonical import canonical_json, sha256_file
from pipeline.domain.rank_api import (
    Answer,
    Candidate,
    CandidateOutcome,
    EditorSettings,
    FileRef,
    KeptFiles,
    Loaded,
    LoadPlan,
)
from pipeline.services.announcing import Announcer
from pipeline.services.editing import EditPolicy, EditService
from pipeline.services.ports import OutboxItem
from pipeline.services.registry.mirroring import RegistryMirror
from pipeline.services.relaying import OutboxRelay
from tests.support.factories import make_measurements, make_score
from tests.support.fake_registry import FakeRegistry
from tests.support.store_rig import LINEAGE, MAX_ATTEMPTS, TTL, StoreRig

SUITE_KEYS = tuple(f'["{LINEAGE}","fact {number}"]' for number in (3, 5, 1_000_000))
"""Facts of the suite: two are edited on purpose, one is not."""
GUARD_NAMES = ("thing 4", "nothing")
"""Names that may be guards: the first has an active edit."""

FILL = """
CREATE TEMP TABLE made AS
    SELECT seq, uuidv7() AS snapshot_id, uuidv7() AS batch_id FROM generate_series(1, $num_snapshots) seq;
CREATE TEMP TABLE entering AS
    SELECT place, uuidv7() AS edit_id, (place - 1) / $batch_size + 1 AS seq FROM generate_series(1, $num_edits) place;
INSERT INTO gate_reports (lineage_id, verdict, policy_digest, probe_set_digest, report)
    SELECT lineage_id, 'passed', 'p', 'q', '{}' FROM lineages;
INSERT INTO edit_batches (batch_id, lineage_id, ordinal, lease_epoch, finished_at)
    SELECT batch_id, lineage_id, m.seq, 1, clock_timestamp() FROM made m, lineages;
INSERT INTO snapshots (snapshot_id, lineage_id, seq, parent_id, basis, delta, delta_digest, accumulator, digest,
                       num_active, gate_report_id, batch_id, lease_epoch)
    SELECT m.snapshot_id, lineage_id, m.seq, parent.snapshot_id, 'parent', '$delta', 'd',
           CASE WHEN m.seq % 32 = 0 OR m.seq = $num_snapshots THEN '$accumulator'::jsonb END,
           lpad(m.seq::text, 64, '0'), least(m.seq * $batch_size, $num_edits), gate_report_id, m.batch_id, 1
    FROM made m LEFT JOIN made parent ON parent.seq = m.seq - 1, lineages JOIN gate_reports USING (lineage_id);
INSERT INTO edit_requests (edit_id, lineage_id, request_id, payload_digest, conflict_key, subject, prompt, target_new,
                           rephrases, locality, portability, occurred_at, cluster_id, topic_id, topic, partition,
                           "offset", status)
    SELECT edit_id, lineage_id, 'old-' || place, 'p', format('["%s","fact %s"]', name, place), 'Thing ' || place,
           'fact ' || place, 'x',
           '[]', '[]', '[]', '2026-01-01'::timestamptz + place * interval '1 second', 'c', 'old', 'old', 0, place,
           'snapshotted'
    FROM entering, lineages;
INSERT INTO batch_edits (batch_id, edit_id, outcome)
    SELECT batch_id, edit_id, 'snapshotted' FROM entering JOIN made USING (seq);
INSERT INTO edit_rows (lineage_id, place, edit_id, snapshot_id, since_seq, rows)
    SELECT lineage_id, place, edit_id, snapshot_id, e.seq, '$rows'
    FROM entering e JOIN made m ON m.seq = e.seq, lineages;
UPDATE lineages SET num_activations = $num_edits, num_batches = $num_snapshots, seq = $num_snapshots,
    head_snapshot_id = (SELECT snapshot_id FROM made ORDER BY seq DESC LIMIT 1);
DROP TABLE made, entering;
VACUUM ANALYZE;
"""

WORKED = """
SELECT relname AS table, coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0) AS read,
       n_tup_ins + n_tup_upd + n_tup_del AS written
FROM pg_stat_user_tables
"""


def fill(rig: StoreRig, num_edits: int, *, batch_size: int = 32) -> None:
    """Give the rig's only lineage a head of so many active edits, one of each fact `fact 1`, `fact 2`, …"""
    files = {name: json.dumps(artifact_json(rig.file(name))) for name in ("delta", "accumulator", "rows")}
    sizes = {"num_edits": num_edits, "batch_size": batch_size, "num_snapshots": -(-num_edits // batch_size)}
    for statement in Template(FILL).substitute(files, **sizes).split(";"):  # VACUUM runs alone, in no transaction
        if statement.strip():
            rig.owner.execute(statement.encode())


def submit(rig: StoreRig, num_edits: int, *, stem: str) -> None:
    """Let corrections wait: the first of an active fact, the others of new ones."""
    rig.correct(f"{stem}-0", target=stem)
    key = canonical_json([LINEAGE, "fact 7"])
    change = "UPDATE edit_requests SET prompt = 'fact 7', conflict_key = %s WHERE request_id = %s"
    rig.query(change, key, f"{stem}-0")
    for number in range(1, num_edits):
        rig.correct(f"{stem}-{number}", minute=number)


class HoldingGroup:
    """An `EditorGroup` that holds whatever it is asked for, and passes every candidate."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.candidates: list[Candidate] = []

    def resume(self, lineage: str, *, snapshot_id: str | None, editor: EditorSettings, epoch: int) -> Loaded | None:
        return Loaded(suite_keys=SUITE_KEYS, guard_names=GUARD_NAMES)

    def load(self, plan: LoadPlan, *, epoch: int) -> Loaded:
        raise AssertionError("nothing is loaded again that is held")

    def try_edits(self, candidate: Candidate) -> CandidateOutcome:
        self.candidates.append(candidate)
        scores = [make_score(edit.edit_id) for edit in candidate.added]
        return CandidateOutcome(
            measurements=make_measurements(*scores), num_passes=1, num_rows=len(scores), seconds={"solve": 0.1}
        )

    def keep(self, candidate_id: str, *, folder: Path, with_accumulator: bool) -> KeptFiles:
        return KeptFiles(delta=self._file("delta"), rows=self._file("rows"), accumulator=None)

    def held(self, snapshot_id: str, *, digest: str) -> None:
        pass

    def generate(self, prompts: Sequence[str], *, max_new_tokens: int) -> tuple[Answer, ...]:
        raise AssertionError("nobody asks")

    def _file(self, stem: str) -> FileRef:
        path = self.folder / f"{stem}-{uuid.uuid4().hex}"
        path.write_bytes(uuid.uuid4().bytes)
        return FileRef(path=str(path), digest=sha256_file(path))


class Listeners:
    """A doorbell, a publisher and dead letters of which nobody takes notice."""

    def ring(self, lineage: str, *, base_digest: str) -> None:
        pass

    def publish(self, topic: str, *, key: str, value: bytes | None, headers: Any = ()) -> None:
        pass


def one_batch(rig: StoreRig, group: HoldingGroup) -> int:
    """Claim, compose, commit, register and announce what waits; returns the number of snapshots."""
    policy = EditPolicy(owner="worker:n", lease_ttl=TTL, batch_max_wait=timedelta(), max_attempts=MAX_ATTEMPTS)
    made = EditService(
        leases=rig.leases,
        lineages=rig.lineages,
        queue=rig.queue,
        snapshots=rig.snapshots,
        artifacts=rig.artifacts,
        group=group,
        policy=policy,
    ).run(LINEAGE)
    listeners: Any = Listeners()
    announcer = Announcer(
        doorbell=listeners,
        publisher=listeners,
        lineages=rig.lineages,
        history=SqlHistoryStore(rig.engine),
        dead_letters=listeners,
        results_topic="results",
        dead_letter_topic="dead",
    )
    mirror = RegistryMirror(mirror=rig.mirror, registry=FakeRegistry())

    def register(item: OutboxItem) -> None:
        mirror.register(item.payload["snapshot_id"])

    outbox = SqlOutboxStore(rig.engine)
    relay = OutboxRelay(outbox=outbox, handlers={**announcer.handlers(), "register": register})
    for kind in relay.kinds:
        relay.run_once(kind)
    return made


@dataclass
class Counted:
    """What passes through a rig's engine while it is entered: statements, and rows of each table."""

    rig: StoreRig
    statements: int = 0
    read: Counter[str] = field(default_factory=Counter)
    written: Counter[str] = field(default_factory=Counter)

    def __enter__(self) -> Counted:
        for engine in self.rig.engines.values():
            event.listen(engine, "before_cursor_execute", self._count)
            event.listen(engine, "commit", _flush)
        self._before = self._worked()
        return self

    def __exit__(self, *_: object) -> None:
        for engine in self.rig.engines.values():
            event.remove(engine, "before_cursor_execute", self._count)
            event.remove(engine, "commit", _flush)
        for table, (read, written) in self._worked().items():
            before = self._before.get(table, (0, 0))
            self.read[table] = read - before[0]
            self.written[table] = written - before[1]

    def _count(self, connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        self.statements += 1

    def _worked(self) -> dict[str, tuple[int, int]]:
        self.rig.query("SELECT pg_stat_force_next_flush()")  # what the owner itself did
        return {row["table"]: (row["read"], row["written"]) for row in self.rig.query(WORKED)}


def _flush(connection: Any) -> None:
    """Have the server count this transaction's rows at its end, not within a second or so."""
    cursor = connection.connection.cursor()
    cursor.execute("SELECT pg_stat_force_next_flush()")
    cursor.close()
