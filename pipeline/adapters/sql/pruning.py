"""What PostgreSQL says may go with time, and which artifacts its rows name."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, func, select, text, union
from sqlalchemy.dialects.postgresql import JSONB

from pipeline.adapters.sql.audit import append
from pipeline.adapters.sql.database.engine import transaction
from pipeline.adapters.sql.database.tables import metadata
from pipeline.domain.audit import SYSTEM_CHAIN, AuditAction

NAMES_NO_ARTIFACT = frozenset(
    {
        "dead_letters.headers",
        "edit_batches.seconds",
        "edit_requests.locality",
        "edit_requests.portability",
        "edit_requests.rephrases",
        "gate_reports.report",
        "lineages.policy",
        "lineages.upkeep",
        "outbox.payload",
        "removals.edit_ids",
        "removals.reinstated_ids",
        "removals.resolving",
    }
)
"""JSON columns that are not searched for artifacts. A column that is not listed is, so a new one is safe."""


class SqlPruneStore:
    """Counts and takes away what is old, in one transaction with its audit line."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def now(self) -> datetime:
        """Return the database's time."""
        with transaction(self._engine) as connection:
            now: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
            return now

    def artifact_uris(self) -> frozenset[str]:
        """Return the URI of every artifact that any row names, whatever became of the row."""
        columns = [
            column
            for table in metadata.sorted_tables
            for column in table.columns
            if isinstance(column.type, JSONB) and f"{table.name}.{column.name}" not in NAMES_NO_ARTIFACT
        ]
        # An artifact is an object with a URI, at any depth.
        named = union(
            *(select(func.jsonb_path_query(column, text("'$.**.uri'")).op("#>>")(text("'{}'"))) for column in columns)
        )
        with transaction(self._engine) as connection:
            return frozenset(str(uri) for uri in connection.scalars(named))

    def prune(
        self, before: datetime, *, actor: str, artifacts: Mapping[str, Any], is_dry_run: bool
    ) -> Mapping[str, int]:
        """Take away done outbox rows, bytes of dead letters and notes of the HTTP API from before a moment; audit it.

        The moment is of the database's clock, an hour ago at the latest; the audit line says too what `artifacts` go. A
        dry run only counts. Return the numbers by their names in `Pruned`.
        """
        with transaction(self._engine) as connection:
            savepoint = connection.begin_nested()
            call = text(
                "SELECT num_outbox, num_letters AS num_dead_letters, num_submissions"
                " FROM prune_before(:cut), prune_submissions(:cut)"
            )
            found = dict(connection.execute(call, {"cut": before}).mappings().one())
            if is_dry_run:
                savepoint.rollback()
                return found
            append(
                connection,
                chain=SYSTEM_CHAIN,
                actor=actor,
                action=AuditAction.artifacts_pruned,
                subject="artifacts",
                payload={"before": before.isoformat(), **found, **artifacts},
            )
            return found
