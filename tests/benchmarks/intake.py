"""How fast intake records what a topic brings: `python -m tests.benchmarks.intake [--polls 500 ...] [--before 0 ...]`.

Starts a broker and PostgreSQL of the embedded stack, fills a topic with corrections and poison of 400 bytes each, and
takes all of it in once for every bound of a poll and every number of edits that the database holds before. Beside each
bound it prints how fast a consumer only reads the same topic, and the processor time of a message: that of intake, and
that of the broker and the database together. Where other programs run too, only these two tell. Memory is what the
process holds after a tenth of the messages, and what it holds at the end.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import psycopg
import structlog
from kafka import TopicPartition
from pydantic import SecretStr

from infra.local import LocalStack, Service
from pipeline.adapters import schema
from pipeline.adapters.kafka.connection import create_topics
from pipeline.adapters.kafka.source import KafkaSource, opened_consumer
from pipeline.adapters.logins import Login
from pipeline.adapters.sql.database.engine import connect
from pipeline.adapters.sql.intake import SqlIntakeStore
from pipeline.adapters.sql.partitions import SqlPartitionHolds
from pipeline.config import Settings
from pipeline.domain.contract.messages import Message, PartitionKey, PollCounts
from pipeline.services.intake import Fetched, Intake, parsed_poll
from tests.benchmarks.growth import fresh
from tests.support.intake_parts import LINEAGE, encoded, intake_settings, make_lineage, produce

NUM_VALID = 20_000
NUM_POISON = 2_000
NUM_BYTES = 400
POLLS = (100, 500, 2_000, 10_000)
BEFORE = (0, 100_000)
TOPIC = "requests"
PAGE_BYTES = resource.getpagesize()


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What it cost to take in, or to read, the whole topic."""

    seconds: float
    """Wall time from the first claim to the last commit."""
    cpu_seconds: float
    """Processor time of the process; the broker's and the database's are not in it."""
    held_early: int
    """Bytes that it held after a tenth of the messages."""
    held_late: int
    """Bytes that it held at the end."""


def valid(number: int) -> bytes:
    """Return a correction of 400 bytes; no two are of the same fact."""
    document = {
        "version": 1,
        "request_id": f"request-{number}",
        "lineage": LINEAGE,
        "prompt": f"The capital of the land with the number {number} is the city of",
        "target_new": "Canberra",
        "subject": f"the land with the number {number}",
        "relation": "capital",
        "rephrases": [""],
        "source": "benchmark",
        "occurred_at": "2026-06-01T12:00:00+00:00",
    }
    missing = NUM_BYTES - len(encoded(document))
    return encoded(document | {"rephrases": [f"The land with the number {number} is ruled from ".ljust(missing, ".")]})


def poison(number: int) -> bytes:
    """Return 400 bytes that can never be a correction, of one of four kinds."""
    kinds: Sequence[Callable[[dict[str, Any]], bytes]] = (
        lambda document: encoded(document)[:-1].ljust(NUM_BYTES, b"!"),
        lambda document: encoded(document | {"target_new": 5}).ljust(NUM_BYTES),
        lambda document: encoded(document | {"lineage": "nobody"}).ljust(NUM_BYTES),
        lambda document: encoded(document | {"source": "\x00"}).ljust(NUM_BYTES),
    )
    document = json.loads(valid(number))
    return kinds[number % len(kinds)](document | {"rephrases": [], "request_id": f"poison-{number}"})


def stream(num_valid: int, num_poison: int) -> Iterator[bytes]:
    """Yield both kinds, the poison spread evenly."""
    total, told = num_valid + num_poison, 0
    for number in range(total):
        is_poison = (number + 1) * num_poison // total > told
        yield poison(number) if is_poison else valid(number)
        told += is_poison


def taken_in(settings: Settings, num_messages: int, profile: Path | None = None) -> Speed:
    """Take in the whole topic in a process of its own."""
    return _in_process(_take_in, settings, num_messages, profile)


def only_read(settings: Settings, num_messages: int) -> Speed:
    """Read the whole topic in a process of its own, with the same bound of a poll, and do nothing with it."""
    return _in_process(_read, settings, num_messages, None)


def take_before(url: str, num_edits: int) -> None:
    """Let a database hold edits that came from another topic, with their audit lines and debts."""
    engine = connect(url, Login.intake)
    store = SqlIntakeStore(engine)
    claim = store.take_partition(PartitionKey(cluster_id="before", topic_id="before", topic="before", partition=0))
    for begin in range(0, num_edits, 5_000):
        offsets = range(begin, min(begin + 5_000, num_edits))
        messages = tuple(
            Message(partition=claim.partition, offset=offset, key=None, value=valid(10_000_000 + offset))
            for offset in offsets
        )
        store.record([parsed_poll(Fetched(claim=claim, messages=messages, next_offset=offsets.stop))])
    engine.dispose()


def _in_process(work: Any, *arguments: Any) -> Speed:
    # A process that did nothing before: what it holds is what this work holds.
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def _take_in(settings: Settings, num_messages: int, profile: Path | None) -> Speed:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    engine = connect(settings.database_url.get_secret_value(), settings.database_role)
    store = SqlIntakeStore(engine)
    with KafkaSource(settings, SqlPartitionHolds(engine)) as source:
        intake = Intake(source=source, store=store)

        def once() -> int:
            counts: PollCounts = intake.run_once()
            return counts.received + counts.duplicates + counts.refused

        profiler = cProfile.Profile()
        if profile is not None:
            profiler.enable()
        speed = _until(once, num_messages)
        if profile is not None:
            profiler.disable()
            with profile.open("w") as file:
                pstats.Stats(profiler, stream=file).sort_stats("tottime").print_stats(60)
    engine.dispose()
    return speed


def _read(settings: Settings, num_messages: int, _: None) -> Speed:
    consumer = opened_consumer(settings)
    place = TopicPartition(settings.requests_topic, 0)
    consumer.assign([place])
    consumer.seek(place, 0)

    def once() -> int:
        found = consumer.poll(timeout_ms=500, max_records=settings.intake_max_records)
        return sum(len(records) for records in found.values())

    speed = _until(once, num_messages)
    consumer.close(autocommit=False)
    return speed


def _until(once: Callable[[], int], num_messages: int) -> Speed:
    num, early = 0, 0
    began, cpu = time.perf_counter(), time.process_time()
    while num < num_messages:
        num += once()
        if not early and num * 10 >= num_messages:
            early = _held()
    return Speed(
        seconds=time.perf_counter() - began,
        cpu_seconds=time.process_time() - cpu,
        held_early=early,
        held_late=_held(),
    )


def _held() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--polls", type=int, nargs="+", default=POLLS, help="most messages a poll")
    parser.add_argument("--before", type=int, nargs="+", default=BEFORE, help="edits that the database holds before")
    parser.add_argument("--valid", type=int, default=NUM_VALID, help="corrections in the topic")
    parser.add_argument("--poison", type=int, default=NUM_POISON, help="other messages in the topic")
    parser.add_argument("--profile", type=Path, help="folder for a profile of every run")
    arguments = parser.parse_args()
    num_messages = arguments.valid + arguments.poison
    with tempfile.TemporaryDirectory(prefix="corrigenda-intake-") as name:
        stack = LocalStack(Path(name) / "stack", is_durable=False)
        try:
            ends = stack.start([Service.POSTGRES, Service.KAFKA])
            settings = intake_settings(ends.database_url, ends.kafka_bootstrap, TOPIC)
            create_topics(settings)
            produce(ends.kafka_bootstrap, TOPIC, list(stream(arguments.valid, arguments.poison)))
            for before in arguments.before:
                _table(stack, settings, num_messages, before, arguments.polls, arguments.profile)
        finally:
            stack.stop()


def _table(
    stack: LocalStack, settings: Settings, num_messages: int, before: int, polls: Sequence[int], profile: Path | None
) -> None:
    owner = settings.database_url.get_secret_value()
    template = fresh(owner, f"intake_{before}")
    schema.upgrade(template)
    make_lineage(template)
    take_before(template, before)
    print(f"{num_messages:,} messages of {NUM_BYTES} bytes, {before:,} edits in the database before")
    names = ("a second", "only read", "cpu ms", "services", "MB early", "MB late")
    print(f"{'most a poll':>12}" + "".join(f"{name:>11}" for name in names), flush=True)
    for poll in polls:
        url = _copy(owner, template, f"intake_{before}_{poll}")
        chosen = settings.model_copy(update={"intake_max_records": poll, "database_url": SecretStr(url)})
        raw = only_read(chosen, num_messages)
        busy = _service_seconds(stack)
        speed = taken_in(chosen, num_messages, profile and profile / f"intake-{before}-{poll}.txt")
        busy = _service_seconds(stack) - busy
        rates = f"{num_messages / speed.seconds:>11,.0f}{num_messages / raw.seconds:>11,.0f}"
        cost = f"{1000 * speed.cpu_seconds / num_messages:>11.3f}{1000 * busy / num_messages:>11.3f}"
        held = f"{speed.held_early / 1e6:>11.0f}{speed.held_late / 1e6:>11.0f}"
        print(f"{poll:>12,}{rates}{cost}{held}", flush=True)


def _service_seconds(stack: LocalStack) -> float:
    """Processor time of the broker and the database until now, with what their ended processes took."""
    total = 0.0
    for service in stack.status():
        root = psutil.Process(service.pid)
        took = [process.cpu_times() for process in (root, *root.children(recursive=True))]
        total += sum(times.user + times.system for times in took)
        total += took[0].children_user + took[0].children_system
    return total


def _copy(owner: str, template: str, name: str) -> str:
    with psycopg.connect(owner, autocommit=True) as connection:
        source = template.rpartition("/")[2]
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {source}".encode())
    return f"{owner.rpartition('/')[0]}/{name}"


if __name__ == "__main__":
    main()
