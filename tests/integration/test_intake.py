"""Intake between a real broker and a real database."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from kafka import KafkaConsumer, TopicPartition
from structlog.testing import capture_logs

from pipeline.adapters.kafka.source import KafkaSource
from pipeline.adapters.sql.database.engine import connect
from pipeline.adapters.sql.partitions import SqlPartitionHolds
from pipeline.config import Settings
from pipeline.domain.contract.messages import PartitionClaim, PartitionKey, Poll, PollCounts
from pipeline.domain.errors import EpochStale, StreamGap
from pipeline.services.intake import Intake, parsed_poll
from tests.support.intake_parts import (
    correction,
    encoded,
    intake_of,
    intake_settings,
    make_lineage,
    next_offsets,
    produce,
    request_ids,
    rows,
    run_until,
)
from tests.support.waiting import eventually

MakeTopic = Callable[..., str]


@pytest.fixture
def settings(postgres_url: str, kafka_bootstrap: str, new_topic: MakeTopic) -> Settings:
    """One partition, one lineage."""
    make_lineage(postgres_url)
    return intake_settings(postgres_url, kafka_bootstrap, new_topic("requests"))


BAD: dict[str, bytes | None] = {
    "malformed JSON": b'{"request_id": "x", ',
    "not UTF-8": b"\xff\xfe\x00",
    "not an object": b"[1, 2]",
    "deeply nested": b"[" * 100_000,
    "wrong types": encoded(correction("bad-types", rephrases="one")),
    "unknown version": encoded(correction("bad-version", version=2)),
    "empty prompt": encoded(correction("bad-prompt", prompt="")),
    "blank target": encoded(correction("bad-target", target_new=" \t")),
    "over-long prompt": encoded(correction("long-prompt", prompt="a" * 2_001)),
    "over-long target": encoded(correction("long-target", target_new="a" * 201)),
    "NUL byte in a string": encoded(correction("nul", prompt="The \x00 of")),
    "NUL byte in the JSON": b"\x00" + encoded(correction("nul-2")),
    "lone surrogate": b'{"request_id": "\\ud800"}',
    "integer above 2^53": encoded(correction("big", version=2**60)),
    "time before year 1 in UTC": encoded(correction("early", occurred_at="0001-01-01T00:00:00+23:00")),
    "unknown field": encoded(correction("extra", colour="blue")),
    "unknown lineage": encoded(correction("lost", lineage="nobody")),
    "tombstone": None,
    "nothing": b"",
    "10 MB": encoded(correction("huge", prompt="a" * 10_000_000)),
    "repeated id, another payload": encoded(correction("good-0", target_new="Sydney")),
}


def test_every_bad_message_is_a_dead_letter_and_no_neighbour_is_skipped(
    settings: Settings, postgres_url: str, kafka_bootstrap: str
) -> None:
    values: list[bytes | None] = [encoded(correction("good-0"))]
    for number, bad in enumerate(BAD.values(), start=1):
        values += [bad, encoded(correction(f"good-{number}")), encoded(correction(f"good-{number}"))]
    produce(kafka_bootstrap, settings.requests_topic, values)
    with intake_of(settings) as (intake, _, _):
        counts = run_until(intake, len(values))
    assert counts == PollCounts(received=len(BAD) + 1, duplicates=len(BAD), refused=len(BAD))
    assert request_ids(postgres_url) == [f"good-{number}" for number in range(len(BAD) + 1)]
    kept = rows(postgres_url, 'SELECT value, error FROM dead_letters ORDER BY "offset"')
    assert [value for value, _ in kept] == list(BAD.values())
    assert all(error.startswith("expected") or ":" in error for _, error in kept)
    assert next_offsets(postgres_url) == {0: len(values)}
    owed = rows(postgres_url, "SELECT kind, count(*) FROM outbox WHERE kind = 'dead_letter' GROUP BY kind")
    assert owed == [("dead_letter", len(BAD))]


def test_a_restart_goes_on_where_the_database_says_and_not_where_kafka_says(
    settings: Settings, postgres_url: str, kafka_bootstrap: str
) -> None:
    produce(kafka_bootstrap, settings.requests_topic, [encoded(correction(f"r{n}")) for n in range(3)])
    with intake_of(settings) as (intake, source, _):
        run_until(intake, 3)
        # Somebody resets the group's offset by hand; it is advice.
        source._consumer.commit({TopicPartition(settings.requests_topic, 0): _offset(1)})
    produce(kafka_bootstrap, settings.requests_topic, [encoded(correction("r3"))])
    with intake_of(settings) as (intake, _, _):
        assert run_until(intake, 1) == PollCounts(received=1)
    assert request_ids(postgres_url) == ["r0", "r1", "r2", "r3"]


def test_the_committed_offset_is_the_databases(settings: Settings, postgres_url: str, kafka_bootstrap: str) -> None:
    produce(kafka_bootstrap, settings.requests_topic, [encoded(correction("r0")), b"bad"])
    with intake_of(settings) as (intake, _, _):
        run_until(intake, 2)
    assert _committed(settings, kafka_bootstrap) == 2 == next_offsets(postgres_url)[0]


def test_a_second_consumer_takes_over_and_the_first_can_write_no_more(
    settings: Settings, postgres_url: str, kafka_bootstrap: str
) -> None:
    produce(kafka_bootstrap, settings.requests_topic, [encoded(correction("r0"))])
    with intake_of(settings) as (_, source, store), intake_of(settings) as (second, _, _):
        fetched = _poll_until_some(source)
        source._holds.release_all()  # as when its session with the database ends
        assert run_until(second, 1) == PollCounts(received=1)
        with pytest.raises(EpochStale, match="epoch 1"):
            store.record([parsed_poll(part) for part in fetched])
    assert request_ids(postgres_url) == ["r0"]


def test_an_assigned_consumer_that_was_replaced_in_the_middle_of_a_poll_writes_nothing_and_waits(
    settings: Settings, postgres_url: str, kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    produce(kafka_bootstrap, settings.requests_topic, [encoded(correction("r0"))])
    with intake_of(settings) as (first, source, _), intake_of(settings) as (second, _, _):
        run_until(first, 1)
        source._holds.release_all()
        # The session ends after it was asked for the last time, and before a poll is recorded.
        monkeypatch.setattr(source._holds, "are_kept", lambda partitions: True)
        second.run_once()
        produce(kafka_bootstrap, settings.requests_topic, [encoded(correction("r1"))])
        with capture_logs() as lines:
            eventually(lambda: _is_waiting(first, lines), "the first one to wait for the second")
        assert lines[0]["event"] == "partition_lost"
        assert run_until(second, 1) == PollCounts(received=1)
    assert epochs(postgres_url) == {0: 2}
    assert request_ids(postgres_url) == ["r0", "r1"]


def _is_waiting(intake: Intake, lines: Sequence[MutableMapping[str, Any]]) -> bool:
    assert intake.run_once() == PollCounts(), "nothing is written meanwhile"
    return any(line["event"] == "partitions_waited_for" for line in lines)


def test_a_second_intake_waits_until_the_first_one_ends(
    settings: Settings, postgres_url: str, kafka_bootstrap: str
) -> None:
    with intake_of(settings) as (second, _, _):
        with intake_of(settings) as (first, _, _):
            for number in range(3):
                produce(kafka_bootstrap, settings.requests_topic, [encoded(correction(f"r{number}"))])
                assert run_until(first, 1) == PollCounts(received=1)
                assert second.run_once() == PollCounts()
        assert epochs(postgres_url) == {0: 1}
        produce(kafka_bootstrap, settings.requests_topic, [encoded(correction("r3"))])
        assert run_until(second, 1) == PollCounts(received=1)
    assert request_ids(postgres_url) == ["r0", "r1", "r2", "r3"]
    assert epochs(postgres_url) == {0: 2}


def test_an_intake_whose_session_with_the_database_ends_takes_its_partitions_again(
    settings: Settings, postgres_url: str, kafka_bootstrap: str
) -> None:
    produce(kafka_bootstrap, settings.requests_topic, [encoded(correction("r0"))])
    with intake_of(settings) as (intake, _, _):
        run_until(intake, 1)
        ended = rows(postgres_url, f"SELECT pg_terminate_backend(pid) FROM pg_locks WHERE {_IS_HOLD}")
        assert ended == [(True,)]
        produce(kafka_bootstrap, settings.requests_topic, [encoded(correction("r1"))])
        assert run_until(intake, 1) == PollCounts(received=1)
    assert epochs(postgres_url) == {0: 2}
    eventually(lambda: not rows(postgres_url, f"SELECT 1 FROM pg_locks WHERE {_IS_HOLD}"), "no lock to be left")


def test_a_holder_that_says_nothing_loses_its_partitions(settings: Settings, postgres_url: str) -> None:
    partition = PartitionKey(cluster_id="c", topic_id="t", topic="requests", partition=0)
    engine = connect(postgres_url, settings.database_role)
    asleep = SqlPartitionHolds(engine, lasts=timedelta(milliseconds=200))
    awake = SqlPartitionHolds(engine)
    assert asleep.take(partition) is not None
    taken: list[PartitionClaim | None] = []

    def is_taken() -> bool:
        taken.append(awake.take(partition))
        return taken[-1] is not None

    eventually(is_taken, "the server to end the session of the holder that sleeps")
    assert taken[-1] is not None
    assert taken[-1].epoch == 2
    assert not asleep.are_kept([partition])
    assert asleep.take(partition) is None
    awake.release([partition])
    assert asleep.take(partition) is not None
    for holds in (asleep, awake):
        holds.release_all()
    engine.dispose()


@pytest.mark.slow
@pytest.mark.parametrize("modes", [("group", "assigned"), ("assigned", "group"), ("group", "group")])
def test_intakes_of_different_modes_and_groups_do_not_take_partitions_from_each_other(
    settings: Settings, postgres_url: str, kafka_bootstrap: str, modes: tuple[str, str]
) -> None:
    first_of, second_of = (
        settings.model_copy(update={"intake_mode": mode, "intake_group": f"{settings.intake_group}.{number}"})
        for number, mode in enumerate(modes)
    )
    produce(kafka_bootstrap, settings.requests_topic, [encoded(correction("r0"))])
    with intake_of(first_of) as (first, _, _), intake_of(second_of) as (second, source, _):
        run_until(first, 1)

        def is_waiting() -> bool:
            # The first one goes on meanwhile: a holder that says nothing for long loses its partitions.
            return first.run_once() == second.run_once() == PollCounts() and bool(source._waited_for)

        eventually(is_waiting, "the second one to wait")
        produce(kafka_bootstrap, settings.requests_topic, [encoded(correction("r1"))])
        assert second.run_once() == PollCounts()
        assert run_until(first, 1) == PollCounts(received=1)
    assert epochs(postgres_url) == {0: 1}


def test_the_same_poll_recorded_twice_counts_once(settings: Settings, postgres_url: str, kafka_bootstrap: str) -> None:
    produce(kafka_bootstrap, settings.requests_topic, [encoded(correction("r0")), b"bad"])
    with intake_of(settings) as (_, source, store):
        polls = [parsed_poll(part) for part in _poll_until_some(source)]
        assert store.record(polls) == PollCounts(received=1, refused=1)
        assert store.record(polls) == PollCounts()
    assert len(rows(postgres_url, "SELECT 1 FROM dead_letters")) == 1


def test_a_poll_that_was_not_recorded_is_read_again_after_an_error(
    settings: Settings, postgres_url: str, kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records that were fetched right before an error must not be skipped."""
    from pipeline.domain.errors import Unavailable

    produce(kafka_bootstrap, settings.requests_topic, [encoded(correction("r0"))])
    with intake_of(settings) as (intake, source, _):
        look, read = source._watch.look, source._read
        lost = []

        def read_and_note() -> object:
            found, gap = read()
            lost.extend(found)
            return found, gap

        def look_badly() -> object:
            if lost:
                lost.clear()
                monkeypatch.undo()
                raise Unavailable("expected an answer, got none")
            return look()

        monkeypatch.setattr(source, "_read", read_and_note)
        monkeypatch.setattr(source._watch, "look", look_badly)
        assert run_until(intake, 1) == PollCounts(received=1)
    assert request_ids(postgres_url) == ["r0"]


def test_all_partitions_are_read(postgres_url: str, kafka_bootstrap: str, new_topic: MakeTopic) -> None:
    make_lineage(postgres_url)
    settings = intake_settings(postgres_url, kafka_bootstrap, new_topic("requests", num_partitions=3))
    for partition in range(3):
        values = [encoded(correction(f"p{partition}-{n}")) for n in range(4)]
        produce(kafka_bootstrap, settings.requests_topic, values, partition=partition)
    with intake_of(settings) as (intake, _, _):
        assert run_until(intake, 12) == PollCounts(received=12)
    assert next_offsets(postgres_url) == {0: 4, 1: 4, 2: 4}


@pytest.mark.parametrize("next_offset", [5, 1_000])
def test_a_log_that_ends_before_our_offset_stops_intake_loudly(
    settings: Settings, postgres_url: str, kafka_bootstrap: str, next_offset: int
) -> None:
    produce(kafka_bootstrap, settings.requests_topic, [encoded(correction(f"r{n}")) for n in range(3)])
    with intake_of(settings) as (intake, source, store):
        run_until(intake, 3)
        claim = next(iter(source._claims.values()))
        store.record([_moved(claim, next_offset)])
    with intake_of(settings) as (intake, _, _), pytest.raises(StreamGap, match=f"expected offset {next_offset}"):
        run_until(intake, 1)
    assert request_ids(postgres_url) == ["r0", "r1", "r2"]


def test_a_topic_that_was_made_anew_is_read_from_its_beginning(
    settings: Settings, postgres_url: str, kafka_bootstrap: str
) -> None:
    from kafka.admin import KafkaAdminClient

    produce(kafka_bootstrap, settings.requests_topic, [encoded(correction(f"old-{n}")) for n in range(3)])
    admin = KafkaAdminClient(bootstrap_servers=kafka_bootstrap)
    with intake_of(settings) as (intake, _, _):
        run_until(intake, 3)
        admin.delete_topics([settings.requests_topic])
        admin.create_topics({settings.requests_topic: {"num_partitions": 1}})
        admin.close()
        values = [encoded(correction(name)) for name in ("new-0", "old-0", "new-1", "new-2")]
        produce(kafka_bootstrap, settings.requests_topic, values)
        assert run_until(intake, 4) == PollCounts(received=3, duplicates=1)
    assert sorted(request_ids(postgres_url)) == ["new-0", "new-1", "new-2", "old-0", "old-1", "old-2"]


@pytest.mark.slow
def test_members_of_a_group_share_partitions_and_a_newcomer_takes_some_over(
    postgres_url: str, kafka_bootstrap: str, new_topic: MakeTopic
) -> None:
    make_lineage(postgres_url)
    topic = new_topic("requests", num_partitions=2)
    settings = intake_settings(postgres_url, kafka_bootstrap, topic, intake_mode="group")
    for partition in range(2):
        produce(kafka_bootstrap, topic, [encoded(correction(f"p{partition}"))], partition=partition)
    with intake_of(settings) as (intake, source, _):
        assert run_until(intake, 2) == PollCounts(received=2)
        # An epoch that somebody raised behind the group's back: left and joined again, nothing lost.
        source.step_back()
        produce(kafka_bootstrap, topic, [encoded(correction("after"))], partition=1)
        assert run_until(intake, 1) == PollCounts(received=1)
        assert _committed(settings, kafka_bootstrap, partition=1) == 2
    assert next_offsets(postgres_url) == {0: 1, 1: 2}


_IS_HOLD = "locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"


def epochs(postgres_url: str) -> dict[int, int]:
    return dict(rows(postgres_url, "SELECT partition, epoch FROM ingest_offsets"))


def _poll_until_some(source: KafkaSource) -> tuple[Any, ...]:
    found: list[tuple[Any, ...]] = []

    def has_some() -> bool:
        found.append(source.poll())
        return bool(found[-1])

    eventually(has_some, "messages from the topic")
    return found[-1]


def _moved(claim: PartitionClaim, next_offset: int) -> Poll:

    return Poll(claim=replace(claim, next_offset=next_offset), messages=(), next_offset=next_offset)


def _offset(offset: int) -> object:
    from kafka.structs import OffsetAndMetadata

    return OffsetAndMetadata(offset, "", -1)


def _committed(settings: Settings, kafka_bootstrap: str, *, partition: int = 0) -> int | None:
    consumer = KafkaConsumer(
        bootstrap_servers=kafka_bootstrap, group_id=settings.intake_group, enable_auto_commit=False
    )
    try:
        return consumer.committed(TopicPartition(settings.requests_topic, partition))
    finally:
        consumer.close(autocommit=False)
