"""The records of the embedded stack: its services, where they answer, and how its processes are."""

import hashlib
import hmac
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit


class Service(StrEnum):
    """A part of the embedded stack; the order is the order of starting, slowest first."""

    MLFLOW = "mlflow"
    POSTGRES = "postgres"
    KAFKA = "kafka"
    REDIS = "redis"


ALL: tuple[Service, ...] = tuple(Service)


def derived_password(secret: str, purpose: str) -> str:
    """Return a password of its own for one purpose: who knows it learns neither the secret nor another password."""
    return hmac.new(secret.encode(), purpose.encode(), hashlib.sha256).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoints:
    """Where the services of one stack answer, all on 127.0.0.1."""

    database_url: str = field(repr=False)
    """PostgreSQL as the owner of the schema, ``postgresql://corrigenda:…@127.0.0.1:…/corrigenda``; for migrations."""
    redis_url: str = field(repr=False)
    """Redis with its password, database 0."""
    kafka_bootstrap: str
    """``host:port`` of the broker."""
    kafka_incarnation: str
    """The broker's cluster id; a new one each time it starts, because it keeps nothing across a restart."""
    mlflow_uri: str
    """The tracking server, which serves artifacts too."""
    mlflow_username: str
    """Corrigenda's own user there, who makes the users of reviewers."""
    mlflow_password: str = field(repr=False)
    """Password of that user."""

    def login_url(self, login: str) -> str:
        """Return the URL of the same database for a login, whose password tells nothing about the owner's."""
        owner = urlsplit(self.database_url)
        password = derived_password(owner.password or "", f"database:{login}")
        return owner._replace(netloc=f"{login}:{password}@{owner.hostname}:{owner.port}").geturl()


class ProcessState(StrEnum):
    """How a process of the stack is."""

    RUNNING = "running"
    DIED = "died"


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessStatus:
    """One process of a stack that was started and not stopped."""

    name: str
    """The service's name, or the name given to :meth:`LocalStack.spawn`."""
    state: ProcessState
    """Whether it still runs; ``died`` means that it ended without being asked to."""
    pid: int
    """Its process id, of no use once it died."""
    port: int | None
    """The port that it listens on; None for spawned processes that asked for none."""
    log: Path
    """Its standard output and error."""
    restarts: int
    """How often it was started again after it had ended by itself."""
    restarted_at: datetime | None
    """When that was last; None if never."""
