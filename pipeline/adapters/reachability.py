"""Asks whether what a process depends on answers, for `/readyz`: one question each, bounded by seconds."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable
from http import HTTPStatus

from sqlalchemy import Engine, text

from pipeline.adapters.mlflow.errors import not_accepted
from pipeline.adapters.redis_errors import redis_errors
from pipeline.adapters.sql.database.engine import transaction
from pipeline.domain.errors import LoginRefused, Unavailable

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

        with redis_errors(), Redis.from_url(url, socket_connect_timeout=SECONDS, socket_timeout=SECONDS) as client:
            client.ping()

    return ask


def mlflow(uri: str, *, username: str = "", password: str = "") -> Callable[[], None]:
    """Return a check that MLflow answers a question to our user; whether it is healthy it tells everybody.

    Args:
        uri: its address.
        username: Corrigenda's own user there; none where it lets everybody in.
        password: of that user.
    """
    url = f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/search?max_results=1"
    login = {"Authorization": f"Basic {b64encode(f'{username}:{password}'.encode()).decode()}"} if username else {}

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, headers=login), timeout=SECONDS).close()  # noqa: S310
        except urllib.error.HTTPError as error:
            if error.code == HTTPStatus.UNAUTHORIZED:
                raise LoginRefused(not_accepted(username)) from error
            raise Unavailable(f"MLflow at {uri} answers with HTTP status {error.code}") from error
        except (urllib.error.URLError, OSError, ValueError) as error:
            raise Unavailable(f"MLflow at {uri} does not answer: {error}") from error

    return ask
