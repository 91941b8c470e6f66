"""Publisher, doorbell and topics against a real broker and a real Redis, and what their absence looks like."""

from __future__ import annotations

import gc
import json
import socket
import threading
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator

import pytest
import redis
from kafka import KafkaConsumer, TopicPartition
from kafka.admin import KafkaAdminClient
from pydantic import SecretStr

from pipeline.adapters import reachability
from pipeline.adapters.celery_doorbell import CeleryDoorbell
from pipeline.adapters.kafka.connection import admin_client, create_topics, opened
from pipeline.adapters.kafka.publisher import MAX_REQUEST_BYTES, KafkaPublisher
from pipeline.adapters.kafka.source import KafkaSource
from pipeline.adapters.logins import Login
from pipeline.adapters.sql.database.engine import connect
from pipeline.adapters.sql.history import SqlHistoryStore
from pipeline.adapters.sql.intake import SqlIntakeStore
from pipeline.adapters.sql.lineages import SqlLineageStore
from pipeline.adapters.sql.outbox import SqlOutboxStore
from pipeline.adapters.sql.partitions import SqlPartitionHolds
from pipeline.config import Settings
from pipeline.domain.contract.messages import PartitionClaim, PartitionKey
from pipeline.domain.errors import InvalidInput, LoginRefused, Misconfigured, Unavailable
from pipeline.services.announcing import Announcer
from pipeline.services.intake import Intake
from pipeline.services.relaying import OutboxRelay
from tests.support.intake_parts import correction, encoded, intake_settings, make_lineage, produce, run_until
from tests.support.registry_entries import BASE_DIGEST

MakeTopic = Callable[..., str]


@pytest.fixture
def absent_broker() -> Iterator[str]:
    """An address that refuses connections. The library leaves such sockets to the garbage collector, which warns."""
    yield f"127.0.0.1:{free_port()}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


class HoldsNothing:
    """For a source that must not come to take a partition."""

    def take(self, partition: PartitionKey) -> PartitionClaim | None:
        pytest.fail(f"took {partition}")

    def are_kept(self, partitions: Iterable[PartitionKey]) -> bool:
        return True

    def release(self, partitions: Iterable[PartitionKey]) -> None:
        assert not list(partitions)

    def release_all(self) -> None: ...


collects_sockets = pytest.mark.filterwarnings(
    "ignore:unclosed <socket:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def read_all(kafka_bootstrap: str, topic: str, num: int) -> list[object]:
    """The first records of partition 0."""
    consumer = KafkaConsumer(bootstrap_servers=kafka_bootstrap, auto_offset_reset="earliest", enable_auto_commit=False)
    place = TopicPartition(topic, 0)
    found: list[object] = []
    try:
        consumer.assign([place])
        consumer.seek(place, 0)
        for _ in range(60):
            found += consumer.poll(timeout_ms=500).get(place, [])
            if len(found) >= num:
                return found
        raise AssertionError(f"expected {num} records of {topic}, got {len(found)}")
    finally:
        consumer.close(autocommit=False)


def test_topics_are_made_once_and_left_as_they_are(kafka_bootstrap: str, new_topic: MakeTopic) -> None:
    name = uuid.uuid4().hex[:8]
    existing = new_topic("results", num_partitions=2)
    settings = intake_settings(
        "", kafka_bootstrap, f"requests.{name}", results_topic=existing, dead_letter_topic=f"dlq.{name}"
    )
    create_topics(settings, num_partitions=3)
    create_topics(settings, num_partitions=5)
    admin = KafkaAdminClient(bootstrap_servers=kafka_bootstrap)
    described = admin.describe_topics([settings.requests_topic, existing, settings.dead_letter_topic])
    admin.close()
    assert {topic["name"]: len(topic["partitions"]) for topic in described} == {
        settings.requests_topic: 3,
        existing: 2,
        settings.dead_letter_topic: 3,
    }


def test_what_is_published_can_be_read_with_key_and_headers(kafka_bootstrap: str, new_topic: MakeTopic) -> None:
    topic = new_topic()
    with KafkaPublisher(intake_settings("", kafka_bootstrap, topic)) as publisher:
        publisher.publish(topic, key="facts", value=b"one", headers=[("reason", "wéll".encode())])
        publisher.publish(topic, key="facts", value=None)
        with pytest.raises(InvalidInput, match="too large"):
            publisher.publish(topic, key="facts", value=b"a" * (MAX_REQUEST_BYTES + 1))
        publisher.publish(topic, key="facts", value=b"after")
    records = read_all(kafka_bootstrap, topic, 3)
    assert [(record.key, record.value) for record in records] == [  # type: ignore[attr-defined]
        (b"facts", b"one"),
        (b"facts", None),
        (b"facts", b"after"),
    ]
    assert records[0].headers == [("reason", "wéll".encode())]  # type: ignore[attr-defined]


def test_what_is_owed_by_intake_reaches_redis_and_the_dead_letter_topic(
    postgres_url: str, kafka_bootstrap: str, redis_url: str, new_topic: MakeTopic
) -> None:
    make_lineage(postgres_url)
    dlq = new_topic("dlq")
    changes = {"dead_letter_topic": dlq, "redis_url": SecretStr(redis_url)}
    settings = intake_settings(postgres_url, kafka_bootstrap, new_topic("requests"), **changes)
    huge = encoded(correction("huge", prompt="a" * 10_000_000))
    produce(kafka_bootstrap, settings.requests_topic, [encoded(correction("r0")), b"{bad", huge])
    engine = connect(postgres_url, Login.intake)
    store = SqlIntakeStore(engine)
    with KafkaSource(settings, SqlPartitionHolds(engine)) as source:
        run_until(Intake(source=source, store=store), 3)
    engine.dispose()
    engine = connect(postgres_url, Login.control)
    with KafkaPublisher(settings) as publisher:
        announcer = Announcer(
            doorbell=CeleryDoorbell(settings),
            publisher=publisher,
            lineages=SqlLineageStore(engine),
            history=SqlHistoryStore(engine),
            dead_letters=SqlIntakeStore(engine),
            results_topic=settings.results_topic,
            dead_letter_topic=dlq,
        )
        relay = OutboxRelay(outbox=SqlOutboxStore(engine), handlers=announcer.handlers())
        assert sum(relay.run_once(kind) for kind in relay.kinds) == 3
        assert sum(relay.run_once(kind) for kind in relay.kinds) == 0
    engine.dispose()
    bad, cut = read_all(kafka_bootstrap, dlq, 2)
    assert bad.value == b"{bad"  # type: ignore[attr-defined]
    assert dict(bad.headers)["origin_offset"] == b"1"  # type: ignore[attr-defined]
    assert cut.value == huge[: 64 * 1024]  # type: ignore[attr-defined]
    assert dict(cut.headers)["is_whole"] == b"false"  # type: ignore[attr-defined]
    assert _rung(redis_url) == [["facts"]]


def _rung(redis_url: str) -> list[object]:
    """Arguments of the tasks that wait in the queue of the base."""
    import base64

    with redis.Redis.from_url(redis_url) as client:
        messages = [json.loads(raw) for raw in client.lrange(f"edits.{BASE_DIGEST[:12]}", 0, -1)]
    assert {message["headers"]["task"] for message in messages} == {"corrigenda.edit_lineage"}
    return [json.loads(base64.b64decode(message["body"]))[0] for message in messages]


def test_no_client_makes_a_topic_by_asking_for_it(kafka_bootstrap: str) -> None:
    """Tansu would make it, with four partitions, and the topic that is made later would be refused."""
    name = f"nobody-made.{uuid.uuid4().hex[:8]}"
    settings = intake_settings("", kafka_bootstrap, name)
    with KafkaPublisher(settings) as publisher, pytest.raises(Unavailable):
        publisher.publish(name, key="k", value=b"v")
    consumer = opened(KafkaConsumer, settings, enable_auto_commit=False)
    consumer.assign([TopicPartition(name, 0)])
    consumer.seek(TopicPartition(name, 0), 0)
    consumer.poll(timeout_ms=500)
    consumer.close(autocommit=False)
    with admin_client(settings) as admin:
        assert name not in {topic["name"] for topic in admin.describe_topics()}


@collects_sockets
def test_an_absent_broker_is_unavailable_to_everyone(absent_broker: str) -> None:
    settings = intake_settings("", absent_broker, "requests")
    with pytest.raises(Unavailable, match=settings.kafka_bootstrap), KafkaPublisher(settings) as publisher:
        publisher.publish("requests", key="k", value=b"v")
    with pytest.raises(Unavailable, match=settings.kafka_bootstrap):
        create_topics(settings)


def test_a_missing_topic_is_named(kafka_bootstrap: str) -> None:
    settings = intake_settings("", kafka_bootstrap, "nobody-made-this")
    with (
        KafkaSource(settings, HoldsNothing()) as source,
        pytest.raises(Unavailable, match="nobody-made-this"),
    ):
        source.poll()


def test_an_absent_redis_is_unavailable() -> None:
    settings = Settings(redis_url=SecretStr(f"redis://:secret@127.0.0.1:{free_port()}/0"))
    with pytest.raises(Unavailable, match="Redis") as caught:
        CeleryDoorbell(settings).ring("facts", base_digest=BASE_DIGEST)
    assert "secret" not in str(caught.value)


def test_a_wrong_password_of_redis_is_a_setting_to_change(redis_url: str) -> None:
    wrong = redis_url.replace("redis://:", "redis://:not-")
    with pytest.raises(LoginRefused, match="REDIS_URL"):
        CeleryDoorbell(Settings(redis_url=SecretStr(wrong))).ring("facts", base_digest=BASE_DIGEST)
    with pytest.raises(LoginRefused, match=r"^Redis does not accept the password of CORRIGENDA_REDIS_URL$"):
        reachability.redis(wrong)()
    reachability.redis(redis_url)()


SASL = {
    "kafka_security_protocol": "SASL_PLAINTEXT",
    "kafka_sasl_mechanism": "PLAIN",
    "kafka_sasl_username": "corrigenda",
    "kafka_sasl_password": "secret",
}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kafka_security_protocol": "SSL", "kafka_ssl_cafile": "/nowhere/ca.pem"}, "KAFKA_SSL_CAFILE.*/nowhere"),
        (SASL | {"kafka_sasl_mechanism": "ROT13"}, "KAFKA_SASL_MECHANISM.*ROT13"),
        (SASL | {"kafka_sasl_username": None}, "KAFKA_SASL_USERNAME"),
        (SASL, "does not accept the user 'corrigenda' or its password .*UnsupportedSaslMechanism.*KAFKA_SASL_USERNAME"),
        ({"kafka_bootstrap": ""}, "KAFKA_BOOTSTRAP"),
    ],
)
def test_settings_of_the_broker_that_cannot_work_are_named(
    kafka_bootstrap: str, changes: dict[str, str], reason: str
) -> None:
    settings = Settings(**({"kafka_bootstrap": kafka_bootstrap} | changes))  # type: ignore[arg-type]
    with pytest.raises(Misconfigured, match=reason), KafkaPublisher(settings) as publisher:
        publisher.publish("requests", key="k", value=b"v")


@collects_sockets
def test_a_client_that_cannot_connect_leaves_no_thread_behind(absent_broker: str) -> None:
    settings = Settings(kafka_bootstrap=absent_broker)
    before = threading.active_count()
    with pytest.raises(Unavailable):
        create_topics(settings)
    assert threading.active_count() == before
