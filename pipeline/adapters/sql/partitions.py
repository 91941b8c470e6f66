"""Which of several intakes reads a partition: the one that holds a lock of the database, as long as it lives.

The epoch of a partition stops a consumer that was replaced. The lock keeps consumers from replacing each other for as
long as both run: a second one waits, whatever mode or group it is in. A lock belongs to a session, so that it is free
at once when its process ends, and the server ends a session that has said nothing for a while.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

import psycopg
from sqlalchemy import Connection, Engine, func, select, text
from sqlalchemy.exc import SQLAlchemyError

from pipeline.adapters.sql.database.engine import translated
from pipeline.adapters.sql.intake import SqlIntakeStore
from pipeline.domain.contract.messages import PartitionClaim, PartitionKey
from pipeline.domain.formats.canonical import sha256_json

LASTS = timedelta(seconds=30)


class SqlPartitionHolds:
    """The partitions that this process holds, in a session of its own."""

    def __init__(self, engine: Engine, *, lasts: timedelta = LASTS) -> None:
        """Name the database; opens no session yet.

        Args:
            engine: connections of this process's login.
            lasts: a process that polls no more loses its partitions after so long.
        """
        self._engine = engine
        self._lasts = lasts
        self._store = SqlIntakeStore(engine)
        self._session: Connection | None = None
        self._held: set[PartitionKey] = set()

    def take(self, partition: PartitionKey) -> PartitionClaim | None:
        """Hold a partition and raise its epoch; None while another process holds it.

        Raises:
            Unavailable, Misconfigured: as the database says.
        """
        if partition not in self._held and not self._is_locked(partition):
            return None
        self._held.add(partition)
        return self._store.take_partition(partition)

    def are_kept(self, partitions: Iterable[PartitionKey]) -> bool:
        """Return whether we still hold all of these, and let the server know that we live."""
        asked = set(partitions)
        if not asked <= self._held or self._session is None:
            return not asked
        try:
            return bool(self._session.scalar(text("SELECT true")))
        except (SQLAlchemyError, psycopg.Error):
            self.release_all()
            return False

    def release(self, partitions: Iterable[PartitionKey]) -> None:
        """Let others take these partitions."""
        try:
            for partition in self._held.intersection(partitions):
                self._held.remove(partition)
                if self._session is not None:
                    self._session.scalar(select(func.pg_advisory_unlock(_number(partition))))
        except (SQLAlchemyError, psycopg.Error):
            self.release_all()

    def release_all(self) -> None:
        """Let others take everything, by ending the session; the next one begins when a partition is taken."""
        session, self._session = self._session, None
        self._held.clear()
        if session is not None:
            session.close()

    def _is_locked(self, partition: PartitionKey) -> bool:
        try:
            if self._session is None:
                self._session = self._opened()
            return bool(self._session.scalar(select(func.pg_try_advisory_lock(_number(partition)))))
        except (SQLAlchemyError, psycopg.Error) as error:
            self.release_all()
            raise translated(error, self._engine.url) from error

    def _opened(self) -> Connection:
        session = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        # Out of the pool: what it closes is closed, and takes its locks along.
        session.detach()
        lasts = int(self._lasts.total_seconds() * 1000)
        session.scalar(select(func.set_config("idle_session_timeout", str(lasts), False)))
        return session


def _number(partition: PartitionKey) -> int:
    """Return the number under which the database locks a partition: 64 bits with a sign."""
    digest = sha256_json(["partition", partition.cluster_id, partition.topic_id, partition.partition])
    return int.from_bytes(bytes.fromhex(digest[:16]), signed=True)
