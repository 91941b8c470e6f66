"""What waits becomes metrics, under the control worker's own login, and the audit chains are checked piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from pipeline.adapters.logins import Login
from pipeline.adapters.sql.audit import SqlAuditStore
from pipeline.adapters.sql.lineages import SqlLineageStore
from pipeline.adapters.sql.standing import SqlStanding
from pipeline.domain.audit import SYSTEM_CHAIN
from pipeline.domain.review.approvals import Decision
from pipeline.services import standing
from pipeline.services.standing import AuditPatrol, StandingTeller
from tests.support.store_rig import LINEAGE, StoreRig


@pytest.fixture
def rig(postgres_url: str, tmp_path: Path) -> Iterator[StoreRig]:
    rig = StoreRig(url=postgres_url, folder=tmp_path)
    rig.new_lineage()
    yield rig
    rig.close()


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


def test_what_waits_is_counted_with_its_age_and_is_gone_when_it_is_done(rig: StoreRig) -> None:
    teller = StandingTeller(SqlStanding(rig.engines[Login.control]), kinds=("doorbell", "register", "champion"))
    teller.run_once()
    assert value("corrigenda_queue_edits", lineage=LINEAGE, status="received") == 0
    assert value("corrigenda_queue_oldest_seconds", lineage=LINEAGE) == 0
    assert value("corrigenda_snapshots_waiting", lineage=LINEAGE) == 0
    assert value("corrigenda_outbox_owed", kind="champion") == 0

    rig.correct("one")
    rig.correct("two")
    lease = rig.acquire()
    batch = rig.claim(lease, limit=1)
    assert batch is not None
    teller.run_once()
    assert value("corrigenda_queue_edits", lineage=LINEAGE, status="received") == 1
    assert value("corrigenda_queue_edits", lineage=LINEAGE, status="claimed") == 1
    assert (value("corrigenda_queue_oldest_seconds", lineage=LINEAGE) or 0) > 0
    assert value("corrigenda_outbox_owed", kind="doorbell") == 2

    first = rig.snapshots.commit(lease, rig.new_snapshot(batch=batch))
    second = rig.commit_batch(lease)
    teller.run_once()
    assert value("corrigenda_snapshots_waiting", lineage=LINEAGE) == 2
    assert (value("corrigenda_snapshots_waiting_oldest_seconds", lineage=LINEAGE) or 0) > 0
    assert value("corrigenda_outbox_owed", kind="register") == 2
    assert rig.decide(first, Decision.approved).is_accepted
    teller.run_once()
    assert value("corrigenda_snapshots_waiting", lineage=LINEAGE) == 1
    assert rig.decide(second, Decision.approved).is_accepted
    rig.lineages.hold(LINEAGE, reason="a person looks", actor="cli:tester")
    rig.query("UPDATE outbox SET given_up_at = clock_timestamp() WHERE kind = 'doorbell'")
    teller.run_once()
    assert value("corrigenda_snapshots_waiting", lineage=LINEAGE) == 0
    assert value("corrigenda_snapshots_waiting_oldest_seconds", lineage=LINEAGE) == 0
    assert value("corrigenda_lineage_held", lineage=LINEAGE) == 1
    assert value("corrigenda_outbox_owed", kind="doorbell") == 0
    assert value("corrigenda_outbox_given_up", kind="doorbell") == 3, "the first commit rang again"


def test_chains_are_checked_in_pieces_and_a_changed_line_is_found(
    rig: StoreRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = rig.engines[Login.control]
    patrol = AuditPatrol(SqlAuditStore(engine), SqlLineageStore(engine))
    for number in range(6):
        rig.correct(f"r{number}")
    monkeypatch.setattr(standing, "LINES_A_LOOK", 3)
    patrol.run_once()
    assert value("corrigenda_audit_verified_timestamp_seconds", chain=LINEAGE) is None, "its end is not reached yet"
    patrol.run_once()
    patrol.run_once()
    verified = value("corrigenda_audit_verified_timestamp_seconds", chain=LINEAGE)
    assert verified is not None
    assert value("corrigenda_audit_broken", chain=LINEAGE) == 0
    assert value("corrigenda_audit_broken", chain=SYSTEM_CHAIN) == 0

    rig.query("ALTER TABLE audit_events DISABLE TRIGGER keeps_history")
    rig.query("UPDATE audit_events SET actor = 'somebody' WHERE chain = %s AND seq = 5", LINEAGE)
    for _ in range(3):
        patrol.run_once()
    assert value("corrigenda_audit_broken", chain=LINEAGE) == 1
    rig.query("UPDATE audit_events SET actor = 'intake' WHERE chain = %s AND seq = 5", LINEAGE)
    for _ in range(3):
        patrol.run_once()
    assert value("corrigenda_audit_broken", chain=LINEAGE) == 0

    rig.query("DELETE FROM audit_events WHERE chain = %s AND seq > 5", LINEAGE)
    for _ in range(3):
        patrol.run_once()
    assert value("corrigenda_audit_broken", chain=LINEAGE) == 1, "the end was cut off"
