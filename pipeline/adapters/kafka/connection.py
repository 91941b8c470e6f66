"""How we reach the broker, what its errors mean to us, and how our topics are made."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from kafka import KafkaAdminClient
from kafka.errors import (
    AuthorizationError,
    IllegalSaslStateError,
    InvalidTopicError,
    KafkaConfigurationError,
    KafkaError,
    KafkaTimeoutError,
    LogTruncationError,
    MessageSizeTooLargeError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    SaslAuthenticationFailedError,
    TopicAlreadyExistsError,
    UnsupportedSaslMechanismError,
    UnsupportedVersionError,
    for_code,
)

from pipeline.adapters.kafka.heard import HeardFailures
from pipeline.config import Settings
from pipeline.domain.errors import CorrigendaError, InvalidInput, LoginRefused, Misconfigured, StreamGap, Unavailable

CONNECT_TIMEOUT_MS = 5_000
REQUEST_TIMEOUT_MS = 10_000
LONGEST_RECONNECT_WAIT_MS = 2_000
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")

_NOT_LOGGED_IN = (SaslAuthenticationFailedError, UnsupportedSaslMechanismError, IllegalSaslStateError)
_REFUSED = (
    AuthorizationError,
    UnsupportedVersionError,
    InvalidTopicError,
    KafkaConfigurationError,
)
_GAPS = (OffsetOutOfRangeError, NoOffsetForPartitionError, LogTruncationError)


def client_options(settings: Settings) -> dict[str, Any]:
    """Return what every client of the broker is given: address, timeouts, SASL and TLS.

    Raises:
        Misconfigured: if no broker is named, or what its security protocol needs is missing.
    """
    settings.require("kafka_bootstrap")
    _check_security(settings)
    password = settings.kafka_sasl_password
    options = {
        "bootstrap_servers": settings.kafka_bootstrap.split(","),
        "client_id": "corrigenda",
        "bootstrap_timeout_ms": CONNECT_TIMEOUT_MS,
        "request_timeout_ms": REQUEST_TIMEOUT_MS,
        # kafka-python waits up to 30 s by default, as long as a broker's whole restart.
        "reconnect_backoff_max_ms": LONGEST_RECONNECT_WAIT_MS,
        "security_protocol": settings.kafka_security_protocol,
        "sasl_mechanism": settings.kafka_sasl_mechanism,
        "sasl_plain_username": settings.kafka_sasl_username,
        "sasl_plain_password": password.get_secret_value() if password else None,
        "ssl_cafile": _text(settings.kafka_ssl_cafile),
        "ssl_certfile": _text(settings.kafka_ssl_certfile),
        "ssl_keyfile": _text(settings.kafka_ssl_keyfile),
    }
    return {name: value for name, value in options.items() if value is not None}


def opened(make: Callable[..., Any], settings: Settings, **options: Any) -> Any:
    """A connected client.

    The library leaves a thread and sockets behind when a client cannot connect, and hides a broker's refusal behind a
    timeout; here they are closed, and the refusal is what is raised. No client makes topics by asking for them.

    Raises:
        Misconfigured, Unavailable: as `broker_errors` says.
    """
    begun: list[Any] = []

    def network(**config: Any) -> Any:
        client = KafkaAdminClient.DEFAULT_CONFIG["kafka_client"](**config)
        # The library drops `allow_auto_create_topics` on its way here, and asks for every topic it is missing.
        client.cluster.config["allow_auto_create_topics"] = False
        begun.append(client)
        return client

    # Why a broker did not take us stands nowhere else.
    with broker_errors(settings), HeardFailures("kafka.net.manager") as failures:
        try:
            return make(**{**client_options(settings), **options}, kafka_client=network)
        except BaseException as error:
            for client in begun:
                client.close()
            if isinstance(error, KafkaTimeoutError) and failures.last is not None:
                raise failures.last from error
            raise


def _check_security(settings: Settings) -> None:
    if settings.kafka_security_protocol.startswith("SASL_"):
        settings.require("kafka_sasl_mechanism", "kafka_sasl_username", "kafka_sasl_password")
        if settings.kafka_sasl_mechanism not in MECHANISMS:
            known = ", ".join(MECHANISMS)
            raise Misconfigured(
                f"expected CORRIGENDA_KAFKA_SASL_MECHANISM to be one of {known}, got {settings.kafka_sasl_mechanism!r}"
            )
    for name in ("kafka_ssl_cafile", "kafka_ssl_certfile", "kafka_ssl_keyfile"):
        path = getattr(settings, name)
        if path is not None and not (path.is_file() and os.access(path, os.R_OK)):
            raise Misconfigured(f"expected CORRIGENDA_{name.upper()} to be a file that can be read, got {path}")


@contextmanager
def broker_errors(settings: Settings) -> Iterator[None]:
    """Turn what the client library raises into our errors.

    Raises:
        LoginRefused: the broker does not take our user or password.
        Misconfigured: it refuses what we ask, or a certificate cannot be read.
        StreamGap: the log does not hold the offset that was asked for.
        InvalidInput: a message is larger than the broker or the client takes.
        Unavailable: everything else: the same may succeed later.
    """
    try:
        yield
    except CorrigendaError:
        raise
    except (KafkaError, OSError, ValueError, AssertionError) as error:
        raise translated(error, settings) from error


def translated(error: Exception, settings: Settings) -> CorrigendaError:
    """Return our error for a foreign exception, with one sentence."""
    where = f"the Kafka broker at {settings.kafka_bootstrap}"
    said = " ".join(str(error).split())[:300] or type(error).__name__
    match error:
        case ValueError() | AssertionError():
            return Misconfigured(f"{where} cannot be reached with these settings: {said}")
        case MessageSizeTooLargeError():
            return InvalidInput(f"expected a message that {where} takes, got one too large: {said}")
        case KafkaError() if isinstance(error, _GAPS):
            return StreamGap(f"{where} does not hold what we need next: {said}")
        case KafkaError() if isinstance(error, _NOT_LOGGED_IN):
            user = f"the user {settings.kafka_sasl_username!r} or its password"
            mend = "CORRIGENDA_KAFKA_SASL_USERNAME, _PASSWORD and _MECHANISM have to be the broker's"
            return LoginRefused(f"{where} does not accept {user} ({said}); {mend}")
        case KafkaError() if isinstance(error, _REFUSED):
            return Misconfigured(f"{where} refuses us: {said}")
        case _:
            return Unavailable(f"{where} does not answer: {said}")


@contextmanager
def admin_client(settings: Settings) -> Iterator[Any]:
    """A client for metadata and topics; its errors are ours."""
    with broker_errors(settings):
        client = opened(KafkaAdminClient, settings)
        try:
            yield client
        finally:
            client.close()


def create_topics(settings: Settings, *, num_partitions: int = 1) -> None:
    """Make the topics of requests, results and dead letters; those that exist are left as they are.

    Args:
        num_partitions: of each topic that is made. More of them let more consumers of a group share the requests.

    Raises:
        Misconfigured, Unavailable: as the broker says.
    """
    names = [settings.requests_topic, settings.results_topic, settings.dead_letter_topic]
    # Without raise_errors=False one topic that exists hides what became of the others.
    wanted = {name: {"num_partitions": num_partitions} for name in names}
    with admin_client(settings) as admin:
        answer = admin.create_topics(wanted, raise_errors=False)
        _check_created(answer["topics"])
        admin.wait_for_topics(names)


def _check_created(answers: Sequence[Mapping[str, Any]]) -> None:
    for answer in answers:
        error = for_code(answer["error_code"])
        if answer["error_code"] and error is not TopicAlreadyExistsError:
            raise error(f"topic {answer['name']}: {answer.get('error_message') or error.__name__}")


def _text(value: object) -> str | None:
    return None if value is None else str(value)
