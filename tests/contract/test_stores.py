"""What every store promises, asked of PostgreSQL and of the fakes in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest

from pipeline.adapters.sql.audit import SqlAuditStore
from pipeline.adapters.sql.database.engine import connect
from pipeline.adapters.sql.intake import SqlIntakeStore
from pipeline.adapters.sql.lineages import SqlLineageStore
from pipeline.adapters.sql.outbox import SqlOutboxStore
from pipeline.domain.audit import GENESIS_HASH, SYSTEM_CHAIN, AuditAction
from pipeline.domain.errors import EpochStale, InvalidInput, UnknownLineage, UnknownRecord
from pipeline.domain.retries import MAX_FAILURES
from pipeline.services.ports import OutboxItem, OutboxStore
from tests.support.factories import NOON, make_request
from tests.support.fakes import (
    MemoryAuditStore,
    MemoryDatabase,
    MemoryIntakeStore,
    MemoryLineageStore,
    MemoryOutboxStore,
    new_id,
)
from tests.support.stream_records import PARTITION, carrying, new_lineage, parsed, poll_of
from tests.support.waiting import eventually

ROLE = "corrigenda_app"


@dataclass(frozen=True, kw_only=True, slots=True)
class Stores:
    """The stores of one database."""

    audit: SqlAuditStore | MemoryAuditStore
    intake: SqlIntakeStore | MemoryIntakeStore
    lineages: SqlLineageStore | MemoryLineageStore
    outbox: OutboxStore


@pytest.fixture(params=["memory", "sql"])
def stores(request: pytest.FixtureRequest) -> Iterator[Stores]:
    """Stores with one lineage, `facts`, and nothing owed."""
    if request.param == "memory":
        database = MemoryDatabase()
        made = Stores(
            audit=MemoryAuditStore(database),
            intake=MemoryIntakeStore(database),
            lineages=MemoryLineageStore(database),
            outbox=MemoryOutboxStore(database),
        )
        made.lineages.create(new_lineage(), actor="cli:ada")
        yield made
        return
    engine = connect(request.getfixturevalue("postgres_url"), ROLE)
    made = Stores(
        audit=SqlAuditStore(engine),
        intake=SqlIntakeStore(engine),
        lineages=SqlLineageStore(engine),
        outbox=SqlOutboxStore(engine),
    )
    made.lineages.create(new_lineage(), actor="cli:ada")
    yield made
    engine.dispose()


def actions(stores: Stores, chain: str) -> list[AuditAction]:
    assert stores.audit.verify(chain) is None
    return [event.action for event in stores.audit.events(chain)]


class TestLineages:
    def test_a_lineage_reads_as_it_was_made(self, stores: Stores) -> None:
        lineage = stores.lineages.lineage("facts")
        assert lineage.settings == new_lineage()
        assert (lineage.head_id, lineage.head_seq, lineage.champion_id, lineage.hold) == (None, 0, None, None)
        assert actions(stores, "facts") == [AuditAction.lineage_created]

    def test_a_name_is_taken_once(self, stores: Stores) -> None:
        with pytest.raises(InvalidInput, match=r"taken|free"):
            stores.lineages.create(new_lineage(), actor="cli:ada")
        assert actions(stores, "facts") == [AuditAction.lineage_created]

    @pytest.mark.parametrize("name", ["a/b", "a:b", "a b", "system"])
    def test_a_name_that_the_registry_or_the_audit_cannot_use_is_refused(self, stores: Stores, name: str) -> None:
        with pytest.raises(InvalidInput, match="name"):
            stores.lineages.create(new_lineage(name), actor="cli:ada")

    def test_an_unknown_lineage_is_named(self, stores: Stores) -> None:
        for ask in (stores.lineages.lineage, lambda name: stores.lineages.resume(name, actor="cli:ada")):
            with pytest.raises(UnknownLineage, match="nothing"):
                ask("nothing")

    def test_lineages_come_by_name(self, stores: Stores) -> None:
        stores.lineages.create(new_lineage("alpha"), actor="cli:ada")
        assert [lineage.settings.name for lineage in stores.lineages.lineages()] == ["alpha", "facts"]

    def test_a_second_hold_keeps_the_first_reason_and_resuming_rings(self, stores: Stores) -> None:
        stores.lineages.hold("facts", reason="saturated", actor="worker")
        stores.lineages.hold("facts", reason="later", actor="worker")
        assert stores.lineages.lineage("facts").hold == "saturated"
        stores.lineages.resume("facts", actor="cli:ada")
        stores.lineages.resume("facts", actor="cli:ada")
        assert stores.lineages.lineage("facts").hold is None
        assert actions(stores, "facts")[1:] == [AuditAction.lineage_held, AuditAction.lineage_resumed]
        (ring,) = stores.outbox.due()
        assert (ring.kind, ring.payload) == ("doorbell", {"lineage": "facts", "base_digest": "b" * 64})


class TestIntake:
    def test_a_partition_starts_at_zero_and_every_take_raises_its_epoch(self, stores: Stores) -> None:
        first, second = stores.intake.take_partition(PARTITION), stores.intake.take_partition(PARTITION)
        assert (first.next_offset, second.next_offset) == (0, 0)
        assert second.epoch == first.epoch + 1

    def test_every_message_is_an_edit_a_duplicate_or_a_dead_letter(self, stores: Stores) -> None:
        claim = stores.intake.take_partition(PARTITION)
        messages = [
            carrying(0, make_request("r1")),
            parsed(1, b"{not json"),
            carrying(2, make_request("r1")),
            carrying(3, make_request("r1", target_new="Sydney")),
            carrying(4, make_request("r2", lineage="elsewhere")),
            parsed(5, None),
            carrying(7, make_request("r2")),
        ]
        counts = stores.intake.record([poll_of(claim, messages)])
        assert (counts.received, counts.duplicates, counts.refused) == (2, 1, 4)
        assert stores.lineages.counts("facts") == {"received": 2}
        reasons = {letter.offset: letter.error for letter in stores.intake.dead_letters()}
        assert "another payload" in reasons[3]
        assert "elsewhere" in reasons[4]
        assert "tombstone" in reasons[5]
        assert sorted(reasons) == [1, 3, 4, 5]
        assert stores.intake.take_partition(PARTITION).next_offset == 8

    def test_what_is_dated_too_far_ahead_is_a_dead_letter_that_says_so(self, stores: Stores) -> None:
        claim, now = stores.intake.take_partition(PARTITION), datetime.now(UTC)
        ages = (timedelta(days=365), timedelta(hours=25), timedelta(hours=23), -timedelta(days=9999))
        counts = stores.intake.record(
            [poll_of(claim, [carrying(n, make_request(f"r{n}", occurred_at=now + age)) for n, age in enumerate(ages)])]
        )
        assert (counts.received, counts.refused) == (2, 2)
        reasons = {letter.offset: letter.error for letter in stores.intake.dead_letters()}
        assert sorted(reasons) == [0, 1]
        assert all("at most 1 day ahead of the database's clock" in reason for reason in reasons.values())

    def test_a_poll_leaves_one_line_a_message_and_owes_what_follows(self, stores: Stores) -> None:
        claim = stores.intake.take_partition(PARTITION)
        stores.intake.record([poll_of(claim, [carrying(0, make_request("r1")), parsed(1, b"[]")])])
        assert actions(stores, "facts") == [AuditAction.lineage_created, AuditAction.edit_received]
        assert actions(stores, SYSTEM_CHAIN) == [AuditAction.message_refused]
        owed = {item.kind: item.payload for item in stores.outbox.due()}
        letter = stores.intake.dead_letters()[0]
        assert owed["doorbell"] == {"lineage": "facts", "base_digest": "b" * 64}
        assert owed["dead_letter"] == {"dead_letter_id": letter.dead_letter_id}

    def test_a_poll_delivered_again_changes_nothing(self, stores: Stores) -> None:
        claim = stores.intake.take_partition(PARTITION)
        poll = poll_of(claim, [carrying(0, make_request("r1")), parsed(1, b"[]")])
        stores.intake.record([poll])
        heads = [stores.audit.head(chain) for chain in ("facts", SYSTEM_CHAIN)]
        counts = stores.intake.record([poll])
        assert (counts.received, counts.duplicates, counts.refused) == (0, 0, 0)
        assert heads == [stores.audit.head(chain) for chain in ("facts", SYSTEM_CHAIN)]

    def test_the_same_request_on_another_partition_is_a_duplicate(self, stores: Stores) -> None:
        other = type(PARTITION)(cluster_id="cluster", topic_id="topic-id", topic="edits.requests.v1", partition=1)
        claims = [stores.intake.take_partition(partition) for partition in (PARTITION, other)]
        polls = [poll_of(claim, [carrying(0, make_request("r1"), partition=claim.partition)]) for claim in claims]
        counts = stores.intake.record(polls)
        assert (counts.received, counts.duplicates) == (1, 1)

    def test_a_wiped_broker_starts_another_incarnation(self, stores: Stores) -> None:
        claim = stores.intake.take_partition(PARTITION)
        stores.intake.record([poll_of(claim, [carrying(0, make_request("r1"))])])
        wiped = type(PARTITION)(cluster_id="second", topic_id="topic-id", topic="edits.requests.v1", partition=0)
        claim = stores.intake.take_partition(wiped)
        assert claim.next_offset == 0
        counts = stores.intake.record([poll_of(claim, [carrying(0, make_request("r2"), partition=wiped)])])
        assert counts.received == 1

    def test_an_older_epoch_writes_nothing_at_all(self, stores: Stores) -> None:
        stale = stores.intake.take_partition(PARTITION)
        stores.intake.take_partition(PARTITION)
        with pytest.raises(EpochStale, match="epoch 1"):
            stores.intake.record([poll_of(stale, [carrying(0, make_request("r1")), parsed(1, b"[]")])])
        assert stores.intake.dead_letters() == ()
        assert stores.lineages.counts("facts") == {}
        assert stores.intake.take_partition(PARTITION).next_offset == 0

    def test_the_next_offset_never_falls(self, stores: Stores) -> None:
        claim = stores.intake.take_partition(PARTITION)
        stores.intake.record([poll_of(claim, [carrying(9, make_request("r1"))])])
        stores.intake.record([poll_of(claim, [carrying(3, make_request("r0"))])])
        assert stores.intake.take_partition(PARTITION).next_offset == 10
        assert stores.lineages.counts("facts") == {"received": 1}

    def test_a_dead_letter_keeps_its_bytes_and_says_when_it_was_sent_again(self, stores: Stores) -> None:
        value = b"\x00\xff" * 1000
        claim = stores.intake.take_partition(PARTITION)
        stores.intake.record([poll_of(claim, [parsed(0, value)])])
        (letter,) = stores.intake.dead_letters()
        assert (letter.value, letter.partition, letter.replayed_at) == (value, PARTITION, None)
        stores.intake.mark_replayed(letter.dead_letter_id, actor="cli:ada")
        assert stores.intake.dead_letter(letter.dead_letter_id).replayed_at is not None
        assert actions(stores, SYSTEM_CHAIN) == [AuditAction.message_refused, AuditAction.message_replayed]

    @pytest.mark.parametrize("dead_letter_id", ["00000000-0000-0000-0000-000000000007", "not an id"])
    def test_an_unknown_dead_letter_is_named(self, stores: Stores, dead_letter_id: str) -> None:
        with pytest.raises(UnknownRecord, match=dead_letter_id):
            stores.intake.dead_letter(dead_letter_id)
        with pytest.raises(UnknownRecord, match=dead_letter_id):
            stores.intake.mark_replayed(dead_letter_id, actor="cli:ada")

    def test_occurrence_far_from_now_is_kept_as_it_was_said(self, stores: Stores) -> None:
        claim = stores.intake.take_partition(PARTITION)
        early = make_request("r1", occurred_at=NOON.replace(year=1))
        counts = stores.intake.record([poll_of(claim, [carrying(0, early)])])
        assert counts.received == 1


class TestOutbox:
    def test_an_item_is_handed_to_one_relay_until_it_is_done(self, stores: Stores) -> None:
        item = self.owed(stores)
        assert stores.outbox.due() == ()
        stores.outbox.done([item.outbox_id])
        stores.outbox.done([item.outbox_id])
        assert stores.outbox.due() == ()

    def test_an_item_that_failed_comes_back_with_its_attempts(self, stores: Stores) -> None:
        item = self.owed(stores)
        assert not stores.outbox.failed(item, error="no broker\x00")
        assert stores.outbox.due() == ()
        again = self.wait_for_due(stores)
        assert (again.outbox_id, again.attempts) == (item.outbox_id, 1)

    def test_no_more_are_handed_out_than_asked_for(self, stores: Stores) -> None:
        claim = stores.intake.take_partition(PARTITION)
        stores.intake.record([poll_of(claim, [parsed(offset, b"[]") for offset in range(5)])])
        assert [len(stores.outbox.due(limit=3)) for _ in range(3)] == [3, 2, 0]

    def test_a_claim_that_is_given_back_is_due_at_once_and_a_renewed_one_is_not(self, stores: Stores) -> None:
        item = self.owed(stores)
        assert stores.outbox.renew([item]) == {item.outbox_id}
        assert stores.outbox.due() == ()
        stores.outbox.release([item])
        (again,) = stores.outbox.due()
        assert (again.outbox_id, again.attempts) == (item.outbox_id, 0)

    def test_what_somebody_else_has_claimed_since_is_left_as_it_is(self, stores: Stores) -> None:
        stale = self.owed(stores)
        stores.outbox.release([stale])
        (taken,) = stores.outbox.due()
        stores.outbox.release([stale])
        stores.outbox.postponed(stale, error="late")
        assert not stores.outbox.failed(stale, error="late")
        assert stores.outbox.renew([stale]) == frozenset()
        assert stores.outbox.due() == ()
        assert stores.outbox.renew([taken]) == {taken.outbox_id}

    def test_an_item_whose_service_is_away_has_not_failed(self, stores: Stores) -> None:
        item = self.owed(stores)
        stores.outbox.postponed(item, error="no broker\x00")
        assert stores.outbox.due() == ()
        assert self.wait_for_due(stores).attempts == 0

    def test_a_postponed_item_waits_as_long_as_is_asked_for(self, stores: Stores) -> None:
        first = self.owed(stores)
        stores.outbox.postponed(first, error="resting", wait=timedelta())
        (again,) = stores.outbox.due()
        assert (again.outbox_id, again.attempts) == (first.outbox_id, 0)

    def test_an_item_is_given_up_after_its_last_try(self, stores: Stores) -> None:
        item = self.owed(stores)
        last = replace(item, attempts=MAX_FAILURES - 1)
        assert stores.outbox.failed(last, error="never")
        assert stores.outbox.due() == ()
        assert stores.outbox.renew([item]) == frozenset()

    def test_only_items_of_the_kind_that_is_asked_for_are_claimed(self, stores: Stores) -> None:
        claim = stores.intake.take_partition(PARTITION)
        stores.intake.record([poll_of(claim, [parsed(0, b"[]"), carrying(1, make_request("r1"))])])
        assert [item.kind for item in stores.outbox.due("doorbell")] == ["doorbell"]
        assert [item.kind for item in stores.outbox.due("dead_letter")] == ["dead_letter"]
        assert stores.outbox.due() == ()

    def test_an_unknown_item_is_named(self, stores: Stores) -> None:
        with pytest.raises(UnknownRecord, match="side effect"):
            stores.outbox.done([new_id()])

    def owed(self, stores: Stores) -> OutboxItem:
        claim = stores.intake.take_partition(PARTITION)
        stores.intake.record([poll_of(claim, [parsed(0, b"[]")])])
        (item,) = stores.outbox.due()
        assert item.attempts == 0
        return item

    def wait_for_due(self, stores: Stores) -> OutboxItem:
        found: list[OutboxItem] = []
        eventually(lambda: found.extend(stores.outbox.due()) or found, "an item to be due")
        return found[0]


class TestAudit:
    def test_an_empty_chain_has_the_genesis_head(self, stores: Stores) -> None:
        assert stores.audit.head(SYSTEM_CHAIN) == (0, GENESIS_HASH)
        assert stores.audit.verify(SYSTEM_CHAIN) is None
        assert set(stores.audit.chains()) == {"facts", SYSTEM_CHAIN}

    def test_lines_come_in_order_and_in_pages(self, stores: Stores) -> None:
        claim = stores.intake.take_partition(PARTITION)
        stores.intake.record([poll_of(claim, [carrying(n, make_request(f"r{n}")) for n in range(5)])])
        first = stores.audit.events("facts", limit=4)
        rest = stores.audit.events("facts", after_seq=4)
        assert [event.seq for event in (*first, *rest)] == [1, 2, 3, 4, 5, 6]
        assert stores.audit.head("facts") == (6, rest[-1].hash)
        assert stores.audit.verify("facts") is None
