"""Tells URLs what became of corrections: a message is owed with each result, and sent by a relay of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

from pipeline.domain.contract.webhooks import WebhookEvent, event_of, signed_headers
from pipeline.services.ports import OutboxItem

Post = Callable[[str, bytes, Mapping[str, str]], None]
"""Sends a body with headers to a URL, or raises; an answer that is no success raises too."""


class WebhookStore(Protocol):
    """Who wants to hear of what."""

    def owe(self, edit_id: str, *, event: WebhookEvent, result_key: str, payload: Mapping[str, Any]) -> None:
        """Owe a message to everybody who wants to hear of an event of an edit; once, however often it is asked."""

    def target(self, webhook_id: str) -> tuple[str, str] | None:
        """Return URL and secret; None if it was removed."""


class WebhookTeller:
    """The handler of the kind `webhook`, and what owes such items."""

    def __init__(self, *, webhooks: WebhookStore, post: Post) -> None:
        self._webhooks = webhooks
        self._post = post

    def owe(self, item: OutboxItem) -> None:
        """Owe the messages that a result gives rise to."""
        result = item.payload
        event = event_of(result["status"], result.get("is_live"))
        if event is None:
            return
        data = {name: result.get(name) for name in ("request_id", "lineage", "edit_id", "status", "reason", "at")}
        payload = {"lineage": result["lineage"], "event": str(event), "at": result["at"], "data": data}
        self._webhooks.owe(result["edit_id"], event=event, result_key=item.dedup_key, payload=payload)

    def deliver(self, item: OutboxItem) -> None:
        """Send one message. Its id is the same at every try, so that a receiver can tell them apart.

        Raises:
            CorrigendaError: if it was not taken; the relay tries again, and gives up after the last try.
        """
        target = self._webhooks.target(str(item.payload["webhook_id"]))
        if target is None:
            return
        url, secret = target
        said = {"type": item.payload["event"], "timestamp": item.payload["at"], "data": item.payload["data"]}
        body = json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode()
        headers = signed_headers(secret, message_id=item.outbox_id, at=datetime.now(UTC), body=body)
        self._post(url, body, {"content-type": "application/json", "user-agent": "corrigenda-webhook/1", **headers})
