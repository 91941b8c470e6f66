"""Where results are sent, in PostgreSQL; the HTTP API registers them and cannot read their secrets back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Engine, Row, func, insert, select, text, update

from pipeline.adapters.sql.database.engine import transaction
from pipeline.adapters.sql.database.locks import lineage_id_of
from pipeline.adapters.sql.database.rows import is_uuid
from pipeline.adapters.sql.database.tables import lineages
from pipeline.adapters.sql.outbox import Debt, owe_all
from pipeline.adapters.sql.web.tables import webhooks
from pipeline.domain.contract.webhooks import Undelivered, Webhook, WebhookEvent
from pipeline.domain.errors import InvalidInput, UnknownRecord
from pipeline.domain.retries import WEBHOOK

MAX_PER_OWNER = 20
_SHOWN = (
    webhooks.c.webhook_id, webhooks.c.url, webhooks.c.owner, webhooks.c.events, webhooks.c.created_at,
    lineages.c.name.label("lineage"),
)  # fmt: skip
# Whoever is no longer a requester hears nothing more of their own, and who is no operator nothing of a lineage.
_MAY_HEAR = """
    p.name = w.owner AND p.removed_at IS NULL
    AND ('operator' = ANY (p.roles) OR w.lineage_id IS NULL AND 'requester' = ANY (p.roles))
"""
_LISTENING = text(
    f"""
    SELECT w.webhook_id FROM edit_requests e
    JOIN webhooks w ON w.lineage_id = e.lineage_id OR w.lineage_id IS NULL AND w.owner = e.submitted_by
    JOIN people p ON {_MAY_HEAR}
    WHERE e.edit_id = CAST(:edit_id AS uuid) AND w.removed_at IS NULL AND :event = ANY (w.events)
    ORDER BY w.webhook_id
    """
)
_TARGET = text(
    f"""
    SELECT w.url, w.secret FROM webhooks w JOIN people p ON {_MAY_HEAR}
    WHERE w.webhook_id = CAST(:webhook_id AS uuid) AND w.removed_at IS NULL
    """
)
# What fails is found by the indexes of what is owed and of what was given up, no more than this many rows of each.
COUNTED = 10_000
_UNDELIVERED = text(
    """
    WITH failing AS (
        SELECT outbox_id, payload, created_at, error, false AS is_given_up FROM (
            SELECT * FROM outbox
            WHERE kind = :kind AND done_at IS NULL AND given_up_at IS NULL
            ORDER BY outbox_id LIMIT :most
        ) owed WHERE attempts > 0
        UNION ALL (
            SELECT outbox_id, payload, created_at, error, true FROM outbox
            WHERE kind = :kind AND given_up_at IS NOT NULL AND done_at IS NULL
            ORDER BY given_up_at LIMIT :most
        )
    )
    SELECT payload ->> 'webhook_id' AS webhook_id, min(created_at) AS since,
        count(*) FILTER (WHERE NOT is_given_up) AS num_failing, count(*) FILTER (WHERE is_given_up) AS num_given_up,
        (array_agg(coalesce(error, '') ORDER BY outbox_id DESC))[1] AS last_error
    FROM failing GROUP BY 1
    """
)


class SqlWebhookStore:
    """Registrations, and the messages that they are owed."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, *, owner: str, url: str, lineage: str | None, events: Sequence[WebhookEvent], secret: str) -> Webhook:
        """Register a URL.

        Raises:
            UnknownLineage: if there is none of that name.
            InvalidInput: if the owner has too many.
        """
        with transaction(self._engine) as connection:
            mine = select(func.count()).where(webhooks.c.owner == owner, webhooks.c.removed_at.is_(None))
            if (connection.scalar(mine) or 0) >= MAX_PER_OWNER:
                raise InvalidInput(f"expected at most {MAX_PER_OWNER} webhooks of {owner}; remove one first")
            values = {
                "owner": owner,
                "url": url,
                "lineage_id": lineage_id_of(connection, lineage) if lineage else None,
                "events": [str(event) for event in events],
                "secret": secret,
            }
            made = connection.scalar(insert(webhooks).values(values).returning(webhooks.c.webhook_id))
            return _webhook(connection.execute(_query().where(webhooks.c.webhook_id == made)).one())

    def of(self, owner: str | None) -> tuple[Webhook, ...]:
        """Return somebody's registrations, or everybody's if None, with what fails of each; the oldest first."""
        query = _query().where(webhooks.c.removed_at.is_(None)).order_by(webhooks.c.webhook_id).limit(1_000)
        if owner is not None:
            query = query.where(webhooks.c.owner == owner)
        with transaction(self._engine) as connection:
            failing = connection.execute(_UNDELIVERED, {"kind": WEBHOOK, "most": COUNTED})
            undelivered = {one.webhook_id: _undelivered(one) for one in failing}
            return tuple(
                replace(_webhook(row), undelivered=undelivered.get(str(row.webhook_id)))
                for row in connection.execute(query)
            )

    def remove(self, webhook_id: str, *, owner: str | None) -> None:
        """Send nothing more there.

        Raises:
            UnknownRecord: if there is no such registration, or it is not the owner's.
        """
        change = update(webhooks).where(webhooks.c.webhook_id == webhook_id, webhooks.c.removed_at.is_(None))
        if owner is not None:
            change = change.where(webhooks.c.owner == owner)
        with transaction(self._engine) as connection:
            done = is_uuid(webhook_id) and connection.execute(change.values(removed_at=func.clock_timestamp())).rowcount
        if not done:
            raise UnknownRecord(f"expected the id of a webhook, got {webhook_id!r:.80}")

    def owe(self, edit_id: str, *, event: WebhookEvent, result_key: str, payload: Mapping[str, Any]) -> None:
        """Owe a message to everybody who wants to hear of an event of an edit; once, however often it is asked.

        Args:
            edit_id: the edit that it is about.
            event: what happened.
            result_key: the key of the result, which tells two events of one kind apart.
            payload: what to say, with the lineage's name under `lineage`.
        """
        with transaction(self._engine) as connection:
            found = connection.execute(_LISTENING, {"edit_id": edit_id, "event": str(event)}).scalars()
            debts = [
                Debt(
                    kind=WEBHOOK,
                    dedup_key=f"webhook:{webhook_id}:{result_key}",
                    stream=f"webhook:{webhook_id}:{edit_id}",
                    payload={"webhook_id": str(webhook_id), **payload},
                )
                for webhook_id in found
            ]
            owe_all(connection, debts)

    def target(self, webhook_id: str) -> tuple[str, str] | None:
        """Return URL and secret; None if it was removed, or its owner may not hear it any more.

        Only the control worker may read this.
        """
        with transaction(self._engine) as connection:
            row = connection.execute(_TARGET, {"webhook_id": webhook_id}).one_or_none()
        return (row.url, row.secret) if row else None


def _query() -> Any:
    joined = webhooks.outerjoin(lineages, lineages.c.lineage_id == webhooks.c.lineage_id)
    return select(*_SHOWN).select_from(joined)


def _webhook(row: Row[Any]) -> Webhook:
    return Webhook(
        webhook_id=str(row.webhook_id),
        url=row.url,
        owner=row.owner,
        lineage=row.lineage,
        events=tuple(map(WebhookEvent, row.events)),
        created_at=row.created_at,
    )


def _undelivered(row: Row[Any]) -> Undelivered:
    return Undelivered(
        since=row.since,
        num_failing=row.num_failing,
        num_given_up=row.num_given_up,
        last_error=row.last_error,
    )
