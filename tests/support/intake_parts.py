"""What tests of intake share: a database with a lineage, a topic's producer, a way to run a source dry."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from kafka import KafkaProducer
from pydantic import SecretStr

from pipeline.adapters.kafka.source import KafkaSource
from pipeline.adapters.sql.database.engine import connect
from pipeline.adapters.sql.intake import SqlIntakeStore
from pipeline.adapters.sql.lineages import SqlLineageStore
from pipeline.adapters.sql.partitions import SqlPartitionHolds
from pipeline.config import Settings
from pipeline.domain.contract.messages import PollCounts
from pipeline.services.intake import Intake
from tests.support.registry_entries import lineage
from tests.support.waiting import patience

LINEAGE = "facts"


def intake_settings(postgres_url: str, kafka_bootstrap: str, topic: str, **changes: Any) -> Settings:
    """Settings of an intake process of one test."""
    fields: dict[str, Any] = {
        "database_url": SecretStr(postgres_url),
        "database_role": "corrigenda_intake",
        "kafka_bootstrap": kafka_bootstrap,
        "requests_topic": topic,
        "intake_group": f"group.{topic}",
    }
    return Settings(**(fields | changes))


def make_lineage(postgres_url: str, name: str = LINEAGE) -> None:
    """A lineage that corrections can be for."""
    engine = connect(postgres_url, "")
    SqlLineageStore(engine).create(lineage(name).settings, actor="test")
    engine.dispose()


@contextmanager
def intake_of(settings: Settings) -> Iterator[tuple[Intake, KafkaSource, SqlIntakeStore]]:
    """An intake in this process."""
    engine = connect(settings.database_url.get_secret_value(), settings.database_role)
    store = SqlIntakeStore(engine)
    try:
        with KafkaSource(settings, SqlPartitionHolds(engine)) as source:
            yield Intake(source=source, store=store), source, store
    finally:
        engine.dispose()


def correction(request_id: str, **changes: Any) -> dict[str, Any]:
    """A correction on the wire."""
    fields = {
        "version": 1,
        "request_id": request_id,
        "lineage": LINEAGE,
        "prompt": f"The capital of {request_id} is",
        "target_new": "Canberra",
        "occurred_at": "2026-06-01T12:00:00+00:00",
    }
    return fields | changes


def encoded(document: Mapping[str, Any]) -> bytes:
    """As a producer would write it."""
    return json.dumps(document).encode()


def produce(kafka_bootstrap: str, topic: str, values: Sequence[bytes | None], *, partition: int = 0) -> list[int]:
    """Send in order, each acknowledged; returns the offsets."""
    producer = KafkaProducer(
        bootstrap_servers=kafka_bootstrap, acks="all", enable_idempotence=True, max_request_size=32 << 20
    )
    try:
        futures = [producer.send(topic, value=value, key=LINEAGE.encode(), partition=partition) for value in values]
        return [future.get(timeout=patience()).offset for future in futures]
    finally:
        producer.close(timeout=5)


def run_until(intake: Intake, num_messages: int) -> PollCounts:
    """Poll until that many messages are recorded, or fail."""
    total = PollCounts()
    began = time.monotonic()
    while total.received + total.duplicates + total.refused < num_messages:
        assert time.monotonic() - began < patience(), f"expected {num_messages} messages, got {total}"
        counts = intake.run_once()
        total = PollCounts(
            received=total.received + counts.received,
            duplicates=total.duplicates + counts.duplicates,
            refused=total.refused + counts.refused,
        )
    return total


def rows(postgres_url: str, query: str) -> list[tuple[Any, ...]]:
    """What the database says, as its owner."""
    with psycopg.connect(postgres_url) as connection:
        return connection.execute(query.encode()).fetchall()


def request_ids(postgres_url: str) -> list[str]:
    """Ids of all recorded corrections, in order of their origin."""
    query = 'SELECT request_id FROM edit_requests ORDER BY cluster_id, topic_id, partition, "offset"'
    return [row[0] for row in rows(postgres_url, query)]


def next_offsets(postgres_url: str) -> dict[int, int]:
    """Next offset of each partition that was ever taken, newest incarnation last."""
    return dict(rows(postgres_url, "SELECT partition, next_offset FROM ingest_offsets ORDER BY updated_at"))
