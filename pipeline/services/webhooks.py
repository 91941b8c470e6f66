"""Tells URLs what became of corrections: a message is owed with each result, and sent by a relay of its own."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from pipeline.domain.contract.webhooks import WebhookEvent, event_of, signed_headers
from pipeline.domain.errors import CorrigendaError
from pipeline.services.ports import OutboxItem
from pipeline.services.relaying import NotYet

Post = Callable[[str, bytes, Mapping[str, str]], None]
"""Sends a body with headers to a URL, or raises; an answer that is no success raises too."""


FIRST_REST, LONGEST_REST = 60.0, 600.0
"""Seconds for which a receiver is left alone: at first, and at most after it was slow again and again."""
SLOW_SECONDS = 2.0
"""A receiver that took so long to refuse, or not to answer, is slow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rest:
    """For how long a receiver is left alone."""

    seconds: float
    until: float


class WebhookStore(Protocol):
    """Who wants to hear of what."""

    def owe(self, edit_id: str, *, event: WebhookEvent, result_key: str, payload: Mapping[str, Any]) -> None:
        """Owe a message to everybody who wants to hear of an event of an edit; once, however often it is asked."""

    def target(self, webhook_id: str) -> tuple[str, str] | None:
        """Return URL and secret; None if it was removed."""


class WebhookTeller:
    """The handler of the kind `webhook`, and what owes such items.

    A receiver that lets us wait and does not take a message rests for a while: what else is owed to it waits for the
    end of its rest, so that no other receiver waits behind a row of timeouts.

    Args:
        webhooks: who wants to hear of what.
        post: sends a message.
        clock: seconds that only grow; for tests.
    """

    def __init__(self, *, webhooks: WebhookStore, post: Post, clock: Callable[[], float] = time.monotonic) -> None:
        self._webhooks = webhooks
        self._post = post
        self._clock = clock
        self._resting: dict[str, _Rest] = {}

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
            NotYet: if the receiver rests; the message was not sent, and no try of it is counted.
            CorrigendaError: if it was not taken; the relay tries again, and gives up after the last try.
        """
        webhook_id = str(item.payload["webhook_id"])
        target = self._webhooks.target(webhook_id)
        if target is None:
            self._resting.pop(webhook_id, None)
            return
        url, secret = target
        said = {"type": item.payload["event"], "timestamp": item.payload["at"], "data": item.payload["data"]}
        body = json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode()
        headers = signed_headers(secret, message_id=item.outbox_id, at=datetime.now(UTC), body=body)
        headers |= {"content-type": "application/json", "user-agent": "corrigenda-webhook/1"}
        self._ask(webhook_id, lambda: self._post(url, body, headers))

    def _ask(self, webhook_id: str, post: Callable[[], None]) -> None:
        """Post, unless the receiver rests; let it rest if it does not take the message and was slow about it."""
        began, rest = self._clock(), self._resting.get(webhook_id)
        if rest is not None and began < rest.until:
            said = "expected a receiver that answers in time, got one that did not a moment ago"
            raise NotYet(said, wait=timedelta(seconds=rest.until - began))
        try:
            post()
        except CorrigendaError:
            now = self._clock()
            if now - began > SLOW_SECONDS:
                seconds = min(2 * rest.seconds, LONGEST_REST) if rest is not None else FIRST_REST
                self._resting[webhook_id] = _Rest(seconds=seconds, until=now + seconds)
            raise
        self._resting.pop(webhook_id, None)
