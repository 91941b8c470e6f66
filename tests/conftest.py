"""Fixtures that give a test real services, and models that were taught or trained.

A service starts when the first test asks for it and stops with the session; the workers of pytest-xdist share one
stack. One that cannot start fails the tests that ask for it; nothing is skipped. Each test gets a database, topics and
names of its own.
"""

import gc
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from sqlalchemy import Engine

from infra.local import LocalStack, Service
from infra.local.base_model import ensure_base_model
from tests.support import shared
from tests.support.paths import ROOT
from tests.support.statements import keep_compiled_statements

# Before anything loads torch, here and in the processes that tests start: another number of threads gives other last
# bits, and an editor that is trained for a small model is then another editor.
os.environ["OMP_NUM_THREADS"] = "1"

TEMPLATE = "corrigenda_template"
# The longest files come first, so that no worker is left with one while the other has nothing to do.
LONGEST_FIRST = ("e2e", "unit/support", "faults", "integration", "unit/workers", "unit/editors", "contract")


def pytest_configure(config: pytest.Config) -> None:
    """Make the folder that the workers share, in the process that starts them; prepare each of them."""
    if not _is_worker(config):
        shared.open_folder()
    keep_compiled_statements()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop what the workers left running, after the last of them."""
    if not _is_worker(config):
        _stack().stop()
        shared.remove_folder()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order tests by folder; within one they stay as they are."""
    items.sort(key=lambda item: _place(item.path.relative_to(ROOT / "tests").as_posix()))


def pytest_collection_finish() -> None:
    """Have garbage collections leave out what was imported: a million objects that stay."""
    gc.freeze()


def _place(file: str) -> int:
    return next((place for place, name in enumerate(LONGEST_FIRST) if file.startswith(name)), len(LONGEST_FIRST))


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def _stack() -> LocalStack:
    return LocalStack(shared.shared_folder() / "stack", is_durable=False)


@pytest.fixture(scope="session")
def local_stack() -> LocalStack:
    """The stack of this run, which starts what it is asked for; stopped at the end of the run."""
    return _stack()


@pytest.fixture(scope="session")
def postgres_server(local_stack: LocalStack) -> str:
    """URL of the owner's own database on the PostgreSQL of this session; for making others, not for tests."""
    return local_stack.start([Service.POSTGRES]).database_url


@pytest.fixture(scope="session")
def migrated_template(postgres_server: str) -> str:
    """Name of a database that Alembic brought to head once, to copy for each test."""

    def make(_: Path) -> None:
        _execute(postgres_server, f'CREATE DATABASE "{TEMPLATE}"')
        environment = {**os.environ, "CORRIGENDA_DATABASE_URL": in_database(postgres_server, TEMPLATE)}
        command = [sys.executable, "-m", "alembic", "upgrade", "head"]
        finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert finished.returncode == 0, f"alembic upgrade head failed:\n{finished.stderr}"

    shared.made_once(TEMPLATE, make)
    return TEMPLATE


@pytest.fixture
def postgres_url(postgres_server: str, migrated_template: str) -> Iterator[str]:
    """URL of a fresh, migrated database as its owner; dropped after the test."""
    yield from _fresh_database(postgres_server, template=migrated_template)


@pytest.fixture
def pools_close(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For tests that build services in this process: `pipeline.bootstrap` keeps their connections until it ends."""
    from pipeline import bootstrap
    from pipeline.adapters.sql.database import engine as sql_engine

    engines: list[Engine] = []
    connect = sql_engine.connect

    def remembered(url: str, role: str) -> Engine:
        engines.append(connect(url, role))
        return engines[-1]

    monkeypatch.setattr(sql_engine, "connect", remembered)  # bootstrap imports it when it builds
    yield
    bootstrap.stores.cache_clear()
    for engine in engines:
        engine.dispose()


@pytest.fixture
def empty_postgres_url(postgres_server: str) -> Iterator[str]:
    """URL of a fresh database without any table, for tests of the migrations; dropped after the test."""
    yield from _fresh_database(postgres_server, template="template0")


@pytest.fixture(scope="session")
def redis_server(local_stack: LocalStack) -> Callable[[], str]:
    """Hands out the Redis databases of this worker in turn, each emptied first."""
    import redis

    url = local_stack.start([Service.REDIS]).redis_url
    numbers = itertools.cycle(shared.own_redis_databases())

    def next_database() -> str:
        fresh = f"{url.removesuffix('/0')}/{next(numbers)}"
        with redis.Redis.from_url(fresh) as client:
            client.flushdb()
        return fresh

    return next_database


@pytest.fixture
def redis_url(redis_server: Callable[[], str]) -> str:
    """URL of an empty Redis database that no other test uses at the same time."""
    return redis_server()


@pytest.fixture(scope="session")
def kafka_bootstrap(local_stack: LocalStack) -> str:
    """``host:port`` of the broker of this session."""
    return local_stack.start([Service.KAFKA]).kafka_bootstrap


@pytest.fixture
def new_topic(kafka_bootstrap: str) -> Callable[..., str]:
    """Makes topics that no other test has: ``new_topic(stem="requests", num_partitions=3)`` returns the name."""
    from kafka.admin import KafkaAdminClient

    def make(stem: str = "topic", num_partitions: int = 1) -> str:
        name = f"{stem}.{uuid4().hex[:12]}"
        admin = KafkaAdminClient(bootstrap_servers=kafka_bootstrap)
        try:
            admin.create_topics({name: {"num_partitions": num_partitions, "replication_factor": 1}})
        finally:
            admin.close()
        return name

    return make


@pytest.fixture(scope="session")
def mlflow_uri(local_stack: LocalStack) -> str:
    """URI of the MLflow server of this session; tests keep apart by ``lineage_name``."""
    endpoints = local_stack.start([Service.MLFLOW])
    # Whoever uses MLflow's own client in a test, or in a process that it starts, is Corrigenda.
    os.environ["MLFLOW_TRACKING_USERNAME"] = endpoints.mlflow_username
    os.environ["MLFLOW_TRACKING_PASSWORD"] = endpoints.mlflow_password
    return endpoints.mlflow_uri


@pytest.fixture
def lineage_name() -> str:
    """A name for a lineage, and so for a registered model, that no other test has."""
    return f"lineage-{uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def base_model() -> Path:
    """Folder of SmolLM2-135M-Instruct in fp32, converted on this machine's first use."""
    return ensure_base_model()


@pytest.fixture
def forks_ranks() -> Iterator[None]:
    """For tests that start and kill ranks again and again: what they start is forked (see `tests.support.forked`)."""
    from tests.support.forked_ranks import forked_ranks

    with forked_ranks():
        yield


@pytest.fixture(scope="session")
def taught() -> Callable[[str], Path]:
    """Hands out small models that were taught facts (see `tests.support.taught`), made on first use."""
    from tests.support.taught import teach

    return lambda kind: shared.made_once(f"taught-{kind}", lambda folder: teach(kind, folder))


@pytest.fixture(scope="session")
def taught_editor(taught: Callable[[str], Path]) -> Callable[[str], Path]:
    """Hands out editors trained for the taught models (see `tests.support.taught_editors`), made on first use."""
    from editors.training.run_folder import BEST
    from tests.support.taught_editors import train_taught_editor

    def of(kind: str) -> Path:
        base = taught(kind)
        run = shared.made_once(f"editor-{kind}", lambda folder: train_taught_editor(kind, base, folder / "run"))
        return run / "run" / BEST

    return of


def in_database(url: str, name: str) -> str:
    """The same server and user, another database."""
    return urlsplit(url)._replace(path=f"/{name}").geturl()


def _fresh_database(server: str, *, template: str) -> Iterator[str]:
    name = f"test_{uuid4().hex[:16]}"
    # Copied as files: in half the time, where no write has to reach a disk.
    _execute(server, f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY file_copy')
    yield in_database(server, name)
    _execute(server, f'DROP DATABASE "{name}" WITH (FORCE)')


def _execute(url: str, statement: str) -> None:
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.encode())
