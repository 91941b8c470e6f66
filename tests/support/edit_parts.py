"""What tests of edit workers share: workers as processes, a lineage with work of every kind, and its invariants."""

from __future__ import annotations

import json
import os
import re
import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from pipeline.adapters.logins import Login
from pipeline.domain.formats.canonical import sha256_file
from pipeline.domain.lifecycle import EditStatus, edit_action
from pipeline.domain.snapshots import chained_digest
from pipeline.services.editing import EditPolicy, EditService
from tests.support.fake_editor import FAILS, NEEDED, FakeEditorGroup, rebuilt
from tests.support.forked import Forked, forked
from tests.support.store_rig import LINEAGE, MAX_ATTEMPTS, TTL, StoreRig
from tests.support.waiting import patience


@dataclass(frozen=True, kw_only=True, slots=True)
class Worker:
    """`edit_program` as a process."""

    process: Forked
    """It."""
    log: Path
    """What it says."""

    def said(self) -> str:
        """Everything so far."""
        return self.log.read_text()

    def errors(self) -> list[str]:
        """Names of the errors that it told of, in order."""
        return re.findall(r"the reaper will ring again +error=['\"](\w+): ", self.said())

    def status(self) -> int:
        """How it ended."""
        return self.process.wait(patience())

    def loaded(self) -> dict[str, Any]:
        """What a fresh group loaded from the files at its end."""
        assert self.status() == 0, self.said()
        found: dict[str, Any] = json.loads(self.said().splitlines()[-1])
        return found


@contextmanager
def worker(rig: StoreRig, *options: str, failpoint: str = "") -> Iterator[Worker]:
    """A worker on a rig's database and files, killed at the end if it still runs."""
    login = Login.control if "--registry" in options else Login.editor
    environment = os.environ | {
        "CORRIGENDA_DATABASE_URL": rig.url,
        "CORRIGENDA_DATABASE_ROLE": login,
        "CORRIGENDA_REDIS_URL": "redis://127.0.0.1:1/0",  # the task is called, nobody sends it
        "CORRIGENDA_ARTIFACT_ROOT": str(rig.folder / "artifacts"),
        "CORRIGENDA_LEASE_TTL": str(TTL.total_seconds()),
        "CORRIGENDA_BATCH_MAX_WAIT": "0",
        "CORRIGENDA_MAX_ATTEMPTS": str(MAX_ATTEMPTS),
        "CORRIGENDA_FAILPOINT": failpoint,
    }
    log = rig.folder / f"worker-{uuid.uuid4().hex}.log"
    program = forked("tests.support.edit_program", LINEAGE, *options, environment=environment, log=log)
    with program as process:
        yield Worker(process=process, log=log)


def killed(rig: StoreRig, failpoint: str, *options: str) -> None:
    """A worker that dies at a failpoint, and whose lease runs out."""
    with worker(rig, *options, failpoint=failpoint) as victim:
        assert victim.status() == -signal.SIGKILL, f"expected a death at {failpoint}: {victim.said()}"
    rig.expire_lease()


def finished(rig: StoreRig, *options: str) -> dict[str, Any]:
    """A worker that works until the lineage is settled; what a fresh group loads from the files then."""
    with worker(rig, *options) as made:
        return made.loaded()


def work_here(rig: StoreRig) -> None:
    """Make everything that is due, in this process."""
    policy = EditPolicy(owner="worker:here", lease_ttl=TTL, batch_max_wait=timedelta(), max_attempts=MAX_ATTEMPTS)
    EditService(
        leases=rig.leases,
        lineages=rig.lineages,
        queue=rig.queue,
        snapshots=rig.snapshots,
        artifacts=rig.artifacts,
        group=FakeEditorGroup(),
        policy=policy,
    ).run(LINEAGE)


def give_work_of_every_kind(rig: StoreRig) -> None:
    """A head of four edits; two removals, one of which fails; three batches with a conflict of every kind."""
    rig.new_lineage(batch_size=4)
    rig.correct("old", fact="France", target="Nice", minute=1)
    rig.correct("kept", minute=2)
    rig.correct("gone", minute=3)
    rig.correct("needed", target=NEEDED, minute=4)
    work_here(rig)
    for request_id in ("gone", "needed"):
        rig.review.request_revert(LINEAGE, [rig.edit_id(request_id)], actor="cli:tester", reason="wrong")
    rig.correct("new", fact="France", target="Lyon", minute=5)
    rig.correct("bad", target=FAILS, minute=6)
    rig.correct("early", fact="Peru", target="Cusco", minute=7)
    rig.correct("late", fact="Peru", target="Lima", minute=8)
    for number in range(6):
        rig.correct(f"good-{number}", minute=9 + number)


def assert_everything_came_out(rig: StoreRig) -> None:
    """What has to become of that work, whatever happens on the way."""
    statuses = {row["request_id"]: row["status"] for row in rig.query("SELECT request_id, status FROM edit_requests")}
    in_head = ["kept", "needed", "new", "late", *(f"good-{number}" for number in range(6))]
    gone = {"old": "superseded", "early": "superseded", "gone": "reverted", "bad": "rejected"}
    assert statuses == dict.fromkeys(in_head, "snapshotted") | gone
    removals = rig.query("SELECT status FROM removals ORDER BY requested_at")
    assert [row["status"] for row in removals] == ["done", "failed"]


def assert_history_holds(rig: StoreRig) -> None:
    """I2, I3, I4, I7 and I8 of a lineage that is settled."""
    snapshots = rig.query("SELECT *, snapshot_id::text AS name, parent_id::text AS parent FROM snapshots ORDER BY seq")
    assert_line_of_snapshots(rig, snapshots)
    assert_active_sets(rig, snapshots)
    assert_reports(rig)
    assert_audited(rig)
    assert_settled(rig)


def assert_line_of_snapshots(rig: StoreRig, snapshots: list[dict[str, Any]]) -> None:
    """I3: one parent, no gap, an epoch that never falls, and digests that the files themselves have."""
    names = [snapshot["name"] for snapshot in snapshots]
    epochs = [snapshot["lease_epoch"] for snapshot in snapshots]
    assert [snapshot["seq"] for snapshot in snapshots] == list(range(1, len(names) + 1))
    assert [snapshot["parent"] for snapshot in snapshots] == [None, *names][: len(names)]
    assert rig.lineage().head_id == (names[-1] if names else None)
    assert epochs == sorted(epochs)
    on = "b" * 64
    for snapshot in snapshots:
        path = _file(rig, snapshot["delta"])
        assert snapshot["delta_digest"] == sha256_file(path)
        assert json.loads(path.read_text())["on"] == on, "made on the weights of its parent"
        on = chained_digest(on, snapshot["delta_digest"])
        assert snapshot["digest"] == on


def assert_active_sets(rig: StoreRig, snapshots: list[dict[str, Any]]) -> None:
    """I2: an active set is what the deltas up to it add up to, each edit once; the head's edits are the active ones."""
    paths = [_file(rig, snapshot["delta"]) for snapshot in snapshots]
    for place, snapshot in enumerate(snapshots, start=1):
        assert rig.active(snapshot["name"]) == set(rebuilt(paths[:place]))
    said = {str(row["edit_id"]): row["target_new"] for row in rig.query(f"{_EDITS} WHERE status = 'snapshotted'")}
    assert rebuilt(paths) == said
    for edit_id in said:
        assert rig.actions(edit_id).count("edit:snapshotted") == 1


def assert_reports(rig: StoreRig) -> None:
    """I8: every snapshot has a passing report that is bound to its digest."""
    query = "SELECT s.digest, r.snapshot_digest, r.verdict FROM snapshots s JOIN gate_reports r USING (gate_report_id)"
    for row in rig.query(query):
        assert (row["snapshot_digest"], row["verdict"]) == (row["digest"], "passed")


def assert_audited(rig: StoreRig) -> None:
    """I4: chains verify, and an edit's lines lead in legal moves, one a line, to its status."""
    for chain in rig.audit.chains():
        assert rig.audit.verify(chain) is None
    events = rig.audit.events(LINEAGE, limit=100_000)
    for edit in rig.query(_EDITS):
        before: EditStatus | None = None
        for event in (one for one in events if one.subject == str(edit["edit_id"])):
            payload = json.loads(event.payload)
            after = EditStatus(payload["to"])
            assert payload.get("from") == (before.value if before else None)
            assert event.action is edit_action(before, after)
            before = after
        assert before == edit["status"]
    created = [event.subject for event in events if event.action == "snapshot:created"]
    owed = [debt["snapshot_id"] for debt in rig.debts("register")]
    assert created == owed == [snapshot.snapshot_id for snapshot in rig.snapshots.snapshots(LINEAGE)]


def assert_settled(rig: StoreRig) -> None:
    """I7: everything is in a final status or waits for a person, and nobody holds the lease."""
    waiting = [] if rig.lineage().hold is None else ["received"]
    open_ones = rig.query(f"{_EDITS} WHERE status IN ('received', 'claimed')")
    assert {row["status"] for row in open_ones} <= set(waiting)
    assert not rig.query("SELECT 1 FROM removals WHERE status = 'requested'")
    assert not rig.query("SELECT 1 FROM edit_batches WHERE finished_at IS NULL")
    assert not rig.query("SELECT 1 FROM batch_edits WHERE outcome IS NULL")
    assert not rig.query("SELECT 1 FROM leases WHERE owner <> '' AND expires_at > clock_timestamp()")


_EDITS = "SELECT edit_id, status, target_new FROM edit_requests"


def _file(rig: StoreRig, artifact: dict[str, Any]) -> Path:
    return rig.folder / "artifacts" / str(artifact["uri"])
