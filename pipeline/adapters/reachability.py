"""Asks whether what a process depends on answers, for `/readyz`: one question each, bounded by seconds."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from collections.abc import Callable

from sqlalchemy import Engine, text

from pipeline.adapters.sql.database.engine import transaction
from pipeline.domain.errors import Unavailable

SECONDS = 3.0


def database(engine: Engine) -> Callable[[], None]:
    """Return a check that the database answers a statement."""

    def ask() -> None:
        with transaction(engine) as connection:
            connection.execute(text("SELECT 1"))

    return ask


def kafka(bootstrap: str) -> Callable[[], None]:
    """Return a check that one of the brokers takes connections."""
    brokers = [broker.strip().rpartition(":") for broker in bootstrap.split(",") if broker.strip()]

    def ask() -> None:
        for host, _, port in brokers:
            try:
                socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS).close()
            except OSError:
                continue
            return
        raise Unavailable(f"none of the Kafka brokers at {bootstrap} takes a connection")

    return ask


def redis(url: str) -> Callable[[], None]:
    """Return a check that Redis answers a ping with our password."""

    def ask() -> None:
        from redis import Redis
        from redis.exceptions import RedisError

        try:
            with Redis.from_url(url, socket_connect_timeout=SECONDS, socket_timeout=SECONDS) as client:
                client.ping()
        except (RedisError, OSError) as error:
            raise Unavailable(f"Redis does not answer: {str(error)[:200]}") from error

    return ask


def mlflow(uri: str) -> Callable[[], None]:
    """Return a check that MLflow says it is healthy."""

    def ask() -> None:
        try:
            urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=SECONDS).close()  # noqa: S310 - http(s) alone
        except (urllib.error.URLError, OSError, ValueError) as error:
            raise Unavailable(f"MLflow at {uri} does not answer: {error}") from error

    return ask
