"""Intake as a real process that is killed, starved of its services, or finds the broker wiped (F1, F4, F5, F6)."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kafka import KafkaProducer

from infra.local import LocalStack, Service
from pipeline.adapters.kafka.connection import create_topics
from pipeline.config import Settings
from pipeline.entrypoints.console import ExitCode
from tests.support.forked import Forked, forked
from tests.support.intake_parts import (
    correction,
    encoded,
    intake_settings,
    make_lineage,
    next_offsets,
    produce,
    request_ids,
    rows,
)
from tests.support.waiting import eventually, patience

MakeTopic = Callable[..., str]
NUM_MESSAGES = 40


@contextmanager
def intake_process(
    settings: Settings, log: Path, *, mode: str = "assigned", failpoint: str = "", lease_ttl: str = "30"
) -> Iterator[Forked]:
    """The intake process, killed at the end if it still runs."""
    environment = {
        **os.environ,
        "CORRIGENDA_DATABASE_URL": settings.database_url.get_secret_value(),
        "CORRIGENDA_DATABASE_ROLE": settings.database_role,
        "CORRIGENDA_KAFKA_BOOTSTRAP": settings.kafka_bootstrap,
        "CORRIGENDA_REQUESTS_TOPIC": settings.requests_topic,
        "CORRIGENDA_INTAKE_GROUP": settings.intake_group,
        "CORRIGENDA_INTAKE_MAX_RECORDS": "7",
        "CORRIGENDA_INTAKE_MODE": mode,
        "CORRIGENDA_FAILPOINT": failpoint,
        "CORRIGENDA_LEASE_TTL": lease_ttl,
    }
    with forked("pipeline.entrypoints.consumer", environment=environment, log=log) as process:
        yield process


@pytest.fixture
def settings(postgres_url: str, kafka_bootstrap: str, new_topic: MakeTopic) -> Settings:
    """One partition with good and bad messages, one lineage."""
    make_lineage(postgres_url)
    settings = intake_settings(postgres_url, kafka_bootstrap, new_topic("requests"))
    produce(kafka_bootstrap, settings.requests_topic, _mixed())
    return settings


@pytest.mark.parametrize("nth", [1, 3])
@pytest.mark.parametrize("name", ["intake.before_record", "intake.after_record", "intake.after_commit"])
def test_a_kill_at_any_boundary_loses_nothing_and_records_nothing_twice(
    settings: Settings, tmp_path: Path, name: str, nth: int
) -> None:
    log = tmp_path / "intake.log"
    with intake_process(settings, log, failpoint=f"{name}:{nth}") as process:
        assert process.wait(patience()) == -signal.SIGKILL, log.read_text()
    with intake_process(settings, log) as process:
        _wait_for_all(settings, process, log)
        _stop(process, log)
    _assert_everything_is_there_once(settings)


def test_a_stop_finishes_the_poll_and_ends_with_0(settings: Settings, tmp_path: Path) -> None:
    log = tmp_path / "intake.log"
    with intake_process(settings, log) as process:
        _wait_for_all(settings, process, log)
        _stop(process, log)
    assert '"event": "intake_stopped"' in log.read_text()


def test_a_consumer_that_slept_through_a_takeover_writes_nothing_and_waits(settings: Settings, tmp_path: Path) -> None:
    first, second = tmp_path / "first.log", tmp_path / "second.log"
    with intake_process(settings, first, lease_ttl="2") as sleeper:
        _wait_for_all(settings, sleeper, first)
        sleeper.send_signal(signal.SIGSTOP)
        with intake_process(settings, second) as successor:
            eventually(lambda: "partition_taken" in second.read_text(), "the second consumer to take the partition")
            produce(settings.kafka_bootstrap, settings.requests_topic, [encoded(correction("late"))])
            _wait_for_all(settings, successor, second, num=NUM_MESSAGES + 1)
            taken = _epoch(settings)
            sleeper.send_signal(signal.SIGCONT)
            eventually(lambda: "partitions_waited_for" in first.read_text(), lambda: first.read_text()[-2000:])
            assert _epoch(settings) == taken
            _stop(successor, second)
        _stop(sleeper, first)
    assert request_ids(settings.database_url.get_secret_value())[-1] == "late"


def test_of_two_intakes_that_are_started_again_whenever_they_end_one_waits_and_takes_over_when_the_other_is_killed(
    settings: Settings, tmp_path: Path
) -> None:
    first, second = tmp_path / "first.log", tmp_path / "second.log"
    with intake_process(settings, first) as reader:
        _wait_for_all(settings, reader, first)
        with intake_process(settings, second) as standby:
            eventually(lambda: "partitions_waited_for" in second.read_text(), "the second one to wait")
            produce(settings.kafka_bootstrap, settings.requests_topic, [encoded(correction("r1"))])
            _wait_for_all(settings, reader, first, num=NUM_MESSAGES + 1)
            assert (standby.poll(), _epoch(settings)) == (None, 1)
            assert second.read_text().count("partitions_waited_for") == 1
            reader.kill()
            produce(settings.kafka_bootstrap, settings.requests_topic, [encoded(correction("r2"))])
            _wait_for_all(settings, standby, second, num=NUM_MESSAGES + 2)
            assert _epoch(settings) == 2
            _stop(standby, second)
    assert request_ids(settings.database_url.get_secret_value())[-2:] == ["r1", "r2"]


def test_a_gap_in_the_log_ends_intake_with_a_sentence(settings: Settings, tmp_path: Path) -> None:
    log = tmp_path / "intake.log"
    with intake_process(settings, log) as process:
        _wait_for_all(settings, process, log)
        _stop(process, log)
    _execute(settings, "UPDATE ingest_offsets SET next_offset = next_offset + 5")
    with intake_process(settings, log) as process:
        assert process.wait(patience()) == ExitCode.misconfigured
    assert f"expected offset {NUM_MESSAGES + 5} of {settings.requests_topic}[0] next" in log.read_text()


def test_a_batch_that_cannot_be_read_ends_intake_with_a_sentence_whenever_it_starts(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "intake.log"
    with monkeypatch.context() as patched, _producer_of_lz4(settings) as producer:
        patched.setattr("kafka.record.default_records.lz4_encode", lambda payload, **options: b"no frame of lz4")
        producer.send(settings.requests_topic, value=b"anything" * 40, partition=0).get(timeout=patience())
    for _ in range(2):
        with intake_process(settings, log) as process:
            assert process.wait(patience()) == ExitCode.misconfigured, log.read_text()
    _assert_everything_is_there_once(settings)
    assert log.read_text().count(f"can be read from offset {NUM_MESSAGES} of {settings.requests_topic}[0] on") == 2
    assert "Traceback" not in log.read_text()


def test_settings_that_cannot_work_end_intake_with_a_sentence(settings: Settings, tmp_path: Path) -> None:
    wrong = settings.database_url.get_secret_value().replace("corrigenda:", "corrigenda:not-")
    log = tmp_path / "intake.log"
    changed = intake_settings(wrong, settings.kafka_bootstrap, settings.requests_topic)
    with intake_process(changed, log) as process:
        assert process.wait(patience()) == ExitCode.misconfigured
    assert "does not accept the user 'corrigenda' or its password" in log.read_text()
    assert "Traceback" not in log.read_text()


def test_the_broker_comes_back_empty_and_is_read_from_0(
    postgres_url: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    stack = LocalStack(tmp_path_factory.mktemp("broker"), is_durable=False)
    log = tmp_path / "intake.log"
    make_lineage(postgres_url)
    try:
        settings = intake_settings(postgres_url, stack.start([Service.KAFKA]).kafka_bootstrap, "requests")
        create_topics(settings)
        produce(settings.kafka_bootstrap, "requests", _mixed())
        with intake_process(settings, log) as process:
            _wait_for_all(settings, process, log)
            stack.stop(Service.KAFKA)
            stack.start([Service.KAFKA])
            create_topics(settings)
            values = [encoded(correction(f"new-{n}")) for n in range(NUM_MESSAGES + 3)]
            produce(settings.kafka_bootstrap, "requests", [*values, encoded(correction("good-0"))])
            eventually(
                lambda: len(request_ids(postgres_url)) == NUM_MESSAGES // 2 + len(values),
                f"all of the new broker's messages; {log.read_text()[-2000:]}",
            )
            _stop(process, log)
    finally:
        stack.stop()
    assert [offset for _, offset in _offsets(postgres_url)] == [NUM_MESSAGES, NUM_MESSAGES + 4]


def test_an_absent_database_is_waited_for(settings: Settings, tmp_path: Path) -> None:
    """A database that refuses connections for a while, as in a restart."""
    log = tmp_path / "intake.log"
    name = settings.database_url.get_secret_value().rsplit("/", 1)[1]
    with intake_process(settings, log) as process:
        _wait_for_all(settings, process, log)
        _on_server(settings, f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        _on_server(settings, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        try:
            produce(settings.kafka_bootstrap, settings.requests_topic, [encoded(correction("during"))])
            eventually(lambda: "service_away" in log.read_text(), lambda: f"a retry; {log.read_text()[-2000:]}")
        finally:
            _on_server(settings, f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        _wait_for_all(settings, process, log, num=NUM_MESSAGES + 1)
        _stop(process, log)
    assert request_ids(settings.database_url.get_secret_value())[-1] == "during"


@contextmanager
def _producer_of_lz4(settings: Settings) -> Iterator[KafkaProducer]:
    producer = KafkaProducer(bootstrap_servers=settings.kafka_bootstrap, acks="all", compression_type="lz4")
    try:
        yield producer
    finally:
        producer.close(timeout=5)


def _mixed() -> list[bytes | None]:
    """Good and bad ones in turn."""
    good = (encoded(correction(f"good-{n}")) for n in range(NUM_MESSAGES // 2))
    return [value for one in good for value in (one, b"{bad")]


def _wait_for_all(settings: Settings, process: Forked, log: Path, *, num: int = NUM_MESSAGES) -> None:
    url = settings.database_url.get_secret_value()

    def is_there() -> bool:
        assert process.poll() is None, log.read_text()
        return next_offsets(url).get(0) == num

    eventually(is_there, lambda: f"offset {num}, got {next_offsets(url)}\n{log.read_text()}")


def _stop(process: Forked, log: Path) -> None:
    process.send_signal(signal.SIGTERM)
    assert process.wait(patience()) == ExitCode.done, log.read_text()


def _assert_everything_is_there_once(settings: Settings) -> None:
    url = settings.database_url.get_secret_value()
    assert request_ids(url) == [f"good-{n}" for n in range(NUM_MESSAGES // 2)]
    bad = rows(url, 'SELECT "offset" FROM dead_letters ORDER BY "offset"')
    assert [offset for (offset,) in bad] == list(range(1, NUM_MESSAGES, 2))
    counted = rows(url, "SELECT num_received, num_duplicates, num_refused FROM ingest_offsets")
    assert counted == [(NUM_MESSAGES // 2, 0, NUM_MESSAGES // 2)]
    lines = rows(url, "SELECT action, count(*) FROM audit_events WHERE actor = 'intake' GROUP BY action ORDER BY 1")
    assert [count for _, count in lines] == [NUM_MESSAGES // 2, NUM_MESSAGES // 2]


def _epoch(settings: Settings) -> int:
    ((epoch,),) = rows(settings.database_url.get_secret_value(), "SELECT epoch FROM ingest_offsets")
    return int(epoch)


def _offsets(url: str) -> list[tuple[int, int]]:
    return rows(url, "SELECT partition, next_offset FROM ingest_offsets ORDER BY updated_at")


def _execute(settings: Settings, statement: str) -> None:
    import psycopg

    with psycopg.connect(settings.database_url.get_secret_value(), autocommit=True) as connection:
        connection.execute(statement.encode())


def _on_server(settings: Settings, statement: str) -> None:
    import psycopg

    server = settings.database_url.get_secret_value().rsplit("/", 1)[0] + "/postgres"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(statement.encode())
