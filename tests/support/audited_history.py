"""A morning of corrections and decisions, written by the stores that write them in production, for those who read it.

Afterwards its times are set to those of a morning in June, so that whoever asks gets the same answer every time.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from pipeline.adapters.logins import Login
from pipeline.adapters.sql.review import SqlReviewStore
from pipeline.domain.review.approvals import Channel, Decision
from pipeline.domain.snapshots import Snapshot
from tests.support.factories import NOON, make_request
from tests.support.store_rig import LINEAGE, StoreRig, failing_report

REFUSED = "expected 'Leo XIV', got 'Francis'"

# The snapshots were made at 09:02, 10:06, 11:30 and 12:01, and decided on between. Triggers guard what is history.
CLOCK = """
ALTER TABLE edit_requests DISABLE TRIGGER ALL;
ALTER TABLE snapshots DISABLE TRIGGER ALL;
ALTER TABLE approvals DISABLE TRIGGER ALL;
UPDATE edit_requests SET received_at = occurred_at + interval '2 seconds';
UPDATE snapshots SET created_at = timestamptz '2026-06-01 00:00Z'
    + (ARRAY['09:02', '10:06', '11:30', '12:01'])[seq]::interval;
UPDATE approvals SET decided_at = timestamptz '2026-06-01 00:00Z'
    + (ARRAY['09:30', '10:50', '11:40', '12:30'])[o.place]::interval
    FROM (SELECT approval_id, row_number() OVER (ORDER BY approval_id) AS place FROM approvals) o
    WHERE o.approval_id = approvals.approval_id;
"""


def write_history(rig: StoreRig) -> None:
    """Give the rig a lineage with corrections of three producers, and decisions of two reviewers."""
    rig.new_lineage()
    rig.owner.execute(
        b"INSERT INTO people (name, roles) VALUES ('anna', ARRAY['reviewer']), ('ben', ARRAY['reviewer'])"
    )
    lease = rig.acquire()
    _ask(rig, "australia-1", "09:00", "Australia", "Sydney", source="import", submitted_by="wiki-import")
    _ask(rig, "france-1", "09:01", "France", "Lyon", source="desk", submitted_by="cleo")
    first = rig.commit_batch(lease)
    rig.mirror.registered(first.snapshot_id, version="1")
    _decide(rig, first, Decision.approved, actor="person:anna", reason="both checked")
    _ask(rig, "australia-2", "10:00", "Australia", "Canberra", source="desk", submitted_by="cleo")
    _ask(rig, "chile-1", "10:05", "Chile", "Santiago", source="chat", submitted_by="feedback")
    second = rig.commit_batch(lease)
    rig.mirror.registered(second.snapshot_id, version="2")
    _decide(rig, second, Decision.approved, actor="person:ben", reason="Canberra it is")
    for place, source in enumerate(("chat", "chat", "import")):
        producer = "feedback" if source == "chat" else "wiki-import"
        edit_id = _ask(rig, f"pope-{place + 1}", f"11:0{place}", "the Vatican", "Leo XIV", source, producer)
        assert rig.claim(lease) is not None
        rig.queue.reject(lease, {edit_id: REFUSED}, report=failing_report([edit_id]))
    _web(rig).request_revert(LINEAGE, [rig.edit_id("france-1")], actor="person:ben", reason="it is Paris")
    third = rig.commit_removal(lease)
    _ask(rig, "peru-1", "12:00", "Peru", "Lima", source="desk", submitted_by="cleo")
    rig.commit_batch(lease)
    _decide(rig, third, Decision.rolled_back, actor="person:anna", reason="Lyon is wrong")
    _decide(rig, first, Decision.rolled_back, actor="person:anna", reason="doubts about Santiago")
    rig.owner.execute(CLOCK.encode())


def _ask(rig: StoreRig, request_id: str, clock: str, subject: str, target: str, source: str, submitted_by: str) -> str:
    hours, minutes = map(int, clock.split(":"))
    request = make_request(
        request_id,
        prompt=f"The capital of {subject} is" if target != "Leo XIV" else "The current pope is",
        subject=subject,
        relation="capital" if target != "Leo XIV" else "pope",
        target_new=target,
        source=source,
        submitted_by=submitted_by,
        occurred_at=NOON + timedelta(hours=hours - NOON.hour, minutes=minutes),
    )
    return rig.submit(request)[0]


def _decide(rig: StoreRig, snapshot: Snapshot, decision: Decision, **said: Any) -> None:
    asked = rig.asked(snapshot, decision, is_claimed=False, channel=Channel.api, **said)
    _web(rig).decide(asked)


def _web(rig: StoreRig) -> SqlReviewStore:
    """Return the store of the process in which people have names."""
    return SqlReviewStore(rig.engines[Login.web])
