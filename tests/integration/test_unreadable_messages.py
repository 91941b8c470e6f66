"""What is compressed is read; what cannot be read ends intake with one sentence, after everything before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import kafka.codec
import kafka.record.default_records as batches
import pytest
from kafka import KafkaConsumer, KafkaProducer

from pipeline.config import Settings
from pipeline.domain.contract.messages import PollCounts
from pipeline.domain.errors import Unreadable
from pipeline.entrypoints.console import ExitCode, exit_code
from tests.support.intake_parts import (
    correction,
    encoded,
    intake_of,
    intake_settings,
    make_lineage,
    next_offsets,
    produce,
    request_ids,
    run_until,
)
from tests.support.waiting import patience

MakeTopic = Callable[..., str]
CODECS = ("gzip", "snappy", "lz4", "zstd")
NUM_GOOD = 3


@pytest.fixture
def settings(postgres_url: str, kafka_bootstrap: str, new_topic: MakeTopic) -> Settings:
    """One partition, one lineage."""
    make_lineage(postgres_url)
    return intake_settings(postgres_url, kafka_bootstrap, new_topic("requests"))


@contextmanager
def producer(settings: Settings, **options: Any) -> Iterator[Callable[..., None]]:
    """Yield what sends values as one batch."""
    client = KafkaProducer(bootstrap_servers=settings.kafka_bootstrap, acks="all", linger_ms=100, **options)

    def send(values: Sequence[bytes], **more: Any) -> None:
        futures = [client.send(settings.requests_topic, value=value, partition=0, **more) for value in values]
        for future in futures:
            future.get(timeout=patience())

    try:
        yield send
    finally:
        client.close(timeout=5)


def corrections(stem: str, num: int = NUM_GOOD) -> list[bytes]:
    return [encoded(correction(f"{stem}-{number}")) for number in range(num)]


def assert_ends_behind_what_was_good(settings: Settings, match: str) -> None:
    """The good ones are recorded; then, and whenever it starts again, intake ends with a sentence and exit 3."""
    url = settings.database_url.get_secret_value()
    for _ in range(2):
        with intake_of(settings) as (intake, _, _), pytest.raises(Unreadable, match=match) as caught:
            run_until(intake, NUM_GOOD + 1)
        assert f"offset {NUM_GOOD} of {settings.requests_topic}[0]" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert exit_code(caught.value) == ExitCode.misconfigured
    assert request_ids(url) == [f"good-{number}" for number in range(NUM_GOOD)]
    assert next_offsets(url) == {0: NUM_GOOD}


@pytest.mark.parametrize("codec", [None, *CODECS])
def test_messages_are_read_whatever_codec_their_producer_chose(settings: Settings, codec: str | None) -> None:
    with producer(settings, compression_type=codec) as send:
        send(corrections("good", 50))
    with intake_of(settings) as (intake, _, _):
        assert run_until(intake, 50) == PollCounts(received=50)


@pytest.mark.parametrize("damage", ["other bytes", "an end too early"])
@pytest.mark.parametrize("codec", CODECS)
def test_a_batch_whose_compression_is_damaged_ends_intake_with_a_sentence(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, codec: str, damage: str
) -> None:
    produce(settings.kafka_bootstrap, settings.requests_topic, corrections("good"))
    compress = getattr(batches, f"{codec}_encode")

    def damaged(payload: bytes, **options: Any) -> bytes:
        return b"\x00 no frame of any codec" if damage == "other bytes" else compress(payload, **options)[:-9]

    with monkeypatch.context() as patched, producer(settings, compression_type=codec) as send:
        patched.setattr(batches, f"{codec}_encode", damaged)
        send(corrections("lost", 40))
    assert_ends_behind_what_was_good(settings, "expected messages that can be read")


@pytest.mark.parametrize(("codec", "library"), [("snappy", "snappy"), ("lz4", "lz4"), ("zstd", "zstd")])
def test_a_codec_that_is_not_installed_is_named(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, codec: str, library: str
) -> None:
    produce(settings.kafka_bootstrap, settings.requests_topic, corrections("good"))
    with producer(settings, compression_type=codec) as send:
        send(corrections("lost"))
    monkeypatch.setattr(kafka.codec, library, None)
    assert_ends_behind_what_was_good(settings, f"UnsupportedCodecError: .*{codec}")


def test_a_codec_that_nobody_knows_is_named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    produce(settings.kafka_bootstrap, settings.requests_topic, corrections("good"))
    with producer(settings, compression_type="gzip") as send:
        send(corrections("lost"))
    known = batches.DefaultRecordBatch.compression_type.fget
    monkeypatch.setattr(batches.DefaultRecordBatch, "compression_type", property(lambda batch: known(batch) and 6))
    assert_ends_behind_what_was_good(settings, "UnsupportedCodecError: .*compression type: 6")


def test_a_batch_with_a_wrong_checksum_ends_intake_with_a_sentence(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    produce(settings.kafka_bootstrap, settings.requests_topic, corrections("good"))
    with producer(settings, compression_type="gzip") as send:
        send(corrections("lost"))
    monkeypatch.setattr(batches.DefaultRecordBatch, "validate_crc", lambda batch: not batch.compression_type)
    assert_ends_behind_what_was_good(settings, "CorruptRecordError: .*crc check")


class _Name(str):
    """A header's name that is no UTF-8 on the wire, as clients in C may send it."""

    def encode(self, *_: Any) -> bytes:
        return b"\xff\xfe"


def test_a_header_whose_name_is_no_text_ends_intake_with_a_sentence(settings: Settings) -> None:
    produce(settings.kafka_bootstrap, settings.requests_topic, corrections("good"))
    with producer(settings) as send:
        send(corrections("lost", 1), headers=[(_Name("name"), b"value")])
    assert_ends_behind_what_was_good(settings, "CorruptRecordError: .*utf-8")


def test_a_message_that_is_larger_than_an_answer_may_be_ends_intake_with_a_sentence(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library asks for it for ever, and says so only in its log."""
    produce(settings.kafka_bootstrap, settings.requests_topic, corrections("good"))
    with intake_of(settings) as (intake, _, _):
        run_until(intake, NUM_GOOD)  # this broker puts them into one answer with what comes next
    produce(settings.kafka_bootstrap, settings.requests_topic, [b"x" * (4 << 20)])
    for name in ("fetch_max_bytes", "receive_message_max_bytes"):
        monkeypatch.setitem(KafkaConsumer.DEFAULT_CONFIG, name, 1 << 20)
    assert_ends_behind_what_was_good(settings, "InvalidReceiveError: Invalid frame length")


def test_of_several_partitions_each_place_that_may_be_damaged_is_named(
    postgres_url: str, kafka_bootstrap: str, new_topic: MakeTopic, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_lineage(postgres_url)
    topic = new_topic("requests", num_partitions=5)
    settings = intake_settings(postgres_url, kafka_bootstrap, topic)
    produce(kafka_bootstrap, topic, corrections("lost"), partition=3)
    monkeypatch.setattr(batches.DefaultRecordBatch, "validate_crc", lambda batch: False)
    with intake_of(settings) as (intake, _, _), pytest.raises(Unreadable, match="in 2 more partitions"):
        run_until(intake, 1)
