"""Where everything stands, in one bounded look at the database: what waits, since when, and for whom."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Engine, text

from pipeline.adapters.sql.database.engine import transaction

MOST = 10_000
"""Rows of a kind that are counted at most, however many wait: more than so many is told as so many."""

# Each part reads rows that wait from the index that holds only those, never a whole table.
LINEAGES = f"""
SELECT
    l.name AS lineage,
    l.hold IS NOT NULL AS is_held,
    received.num AS num_received,
    claimed.num AS num_claimed,
    coalesce(extract(epoch FROM clock_timestamp() - least(received.since, claimed.since)), 0)::float8
        AS queue_age_seconds,
    candidates.num AS num_candidates,
    coalesce(extract(epoch FROM clock_timestamp() - candidates.since), 0)::float8 AS candidate_age_seconds
FROM lineages l
CROSS JOIN LATERAL (
    SELECT count(*) AS num, min(received_at) AS since FROM (
        SELECT received_at FROM edit_requests WHERE lineage_id = l.lineage_id AND status = 'received'
        ORDER BY occurred_at, topic, partition, "offset", edit_id LIMIT {MOST}
    ) waiting
) received
CROSS JOIN LATERAL (
    SELECT count(*) AS num, min(received_at) AS since FROM (
        SELECT received_at FROM edit_requests WHERE lineage_id = l.lineage_id AND status = 'claimed' LIMIT {MOST}
    ) taken
) claimed
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE status = 'candidate') AS num,
           min(created_at) FILTER (WHERE status = 'candidate') AS since
    FROM (
        SELECT status, created_at FROM snapshots s
        WHERE s.lineage_id = l.lineage_id
          AND s.seq > coalesce((SELECT seq FROM snapshots c WHERE c.snapshot_id = l.champion_snapshot_id), 0)
        ORDER BY s.seq DESC LIMIT {MOST}
    ) above
) candidates
ORDER BY l.name
"""

OUTBOX = f"""
SELECT kind, count(*) FILTER (WHERE given_up_at IS NULL) AS num_owed,
       coalesce(extract(epoch FROM clock_timestamp() - min(created_at) FILTER (WHERE given_up_at IS NULL)), 0)::float8
           AS age_seconds,
       count(*) FILTER (WHERE given_up_at IS NULL AND attempts > 0) AS num_failing,
       count(*) FILTER (WHERE given_up_at IS NOT NULL) AS num_given_up
FROM (
    (SELECT kind, created_at, given_up_at, attempts FROM outbox
     WHERE done_at IS NULL AND given_up_at IS NULL ORDER BY kind, outbox_id LIMIT {MOST})
    UNION ALL
    (SELECT kind, created_at, given_up_at, attempts FROM outbox
     WHERE given_up_at IS NOT NULL AND done_at IS NULL ORDER BY given_up_at LIMIT {MOST})
) open
GROUP BY kind
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class LineageStanding:
    """What waits in one lineage."""

    lineage: str
    """Name of the lineage."""
    is_held: bool
    """Whether no batch may start until a person resumes."""
    num_received: int
    """Edits that wait for a worker."""
    num_claimed: int
    """Edits that a worker has in hand."""
    queue_age_seconds: float
    """How long the oldest of both has waited; 0 where there is none."""
    num_candidates: int
    """Snapshots above the champion that nobody has decided about."""
    candidate_age_seconds: float
    """How long the oldest of those has waited; 0 where there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OutboxStanding:
    """What is owed of one kind."""

    kind: str
    """The kind of side effect."""
    num_owed: int
    """How many are owed."""
    age_seconds: float
    """How long the oldest of those is owed; 0 where there is none."""
    num_failing: int
    """How many of those were tried in vain and will be tried again."""
    num_given_up: int
    """How many failed too often and wait for a person."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """Everything that waits, at one moment."""

    lineages: tuple[LineageStanding, ...]
    """Every lineage, by name."""
    outbox: tuple[OutboxStanding, ...]
    """Kinds of which something is open."""


class SqlStanding:
    """Reads what waits. Its cost is that of what waits, up to a bound, not of what was ever done."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def read(self) -> Standing:
        """Return what waits now."""
        with transaction(self._engine) as connection:
            lineages = connection.execute(text(LINEAGES)).mappings().all()
            outbox = connection.execute(text(OUTBOX)).mappings().all()
        return Standing(
            lineages=tuple(LineageStanding(**row) for row in lineages),
            outbox=tuple(OutboxStanding(**row) for row in outbox),
        )
