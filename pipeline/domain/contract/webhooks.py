"""Messages to URLs that people registered: what they are about, and how they are signed.

They follow Standard Webhooks (https://www.standardwebhooks.com): the headers `webhook-id`, `webhook-timestamp` and
`webhook-signature`, which is `v1,` and the HMAC-SHA256 of id, timestamp and body, joined by dots, in base64.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from pipeline.domain.errors import InvalidInput
from pipeline.domain.lifecycle import EditStatus

SECRET_PREFIX = "whsec_"  # noqa: S105 - how secrets begin, and none itself
SECRET_BYTES = 24
TOLERANCE = timedelta(minutes=5)
"""How old a message may be when it is checked, and how far ahead: an older one may be somebody's recording."""


class WebhookEvent(StrEnum):
    """What became of a correction."""

    live = "correction.live"
    """The approved model holds it now."""
    withdrawn = "correction.withdrawn"
    """The approved model does not hold it any more."""
    candidate = "correction.candidate"
    """A snapshot holds it, which waits to be approved."""
    rejected = "correction.rejected"
    """A gate rejected it."""
    reverted = "correction.reverted"
    """Somebody asked to take it out, and the next snapshot is without it."""
    superseded = "correction.superseded"
    """A later correction of the same fact holds instead."""
    dead = "correction.dead"
    """It could not be edited after several tries."""


DEFAULT_EVENTS = (WebhookEvent.live, WebhookEvent.rejected, WebhookEvent.reverted)
_OF_STATUS = {
    EditStatus.snapshotted: WebhookEvent.candidate,
    EditStatus.rejected: WebhookEvent.rejected,
    EditStatus.reverted: WebhookEvent.reverted,
    EditStatus.superseded: WebhookEvent.superseded,
    EditStatus.dead: WebhookEvent.dead,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Undelivered:
    """What a receiver did not take."""

    since: datetime
    """When the oldest of these messages was owed."""
    num_failing: int
    """Messages that were tried in vain and will be tried again."""
    num_given_up: int
    """Messages that are not tried any more, until somebody sends them again."""
    last_error: str
    """What went wrong with the newest of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Webhook:
    """A URL that results are sent to."""

    webhook_id: str
    """UUID of the registration."""
    url: str
    """Where messages are posted to."""
    owner: str
    """Who registered it."""
    lineage: str | None
    """The lineage of which every result is sent; None for those of the owner's own corrections."""
    events: tuple[WebhookEvent, ...]
    """What is told."""
    created_at: datetime
    """When it was registered."""
    undelivered: Undelivered | None = None
    """What its receiver did not take; None where nothing fails."""


def event_of(status: str, is_live: bool | None) -> WebhookEvent | None:
    """Return the event of a result; None of one that nobody is told."""
    if is_live is not None:
        return WebhookEvent.live if is_live else WebhookEvent.withdrawn
    return _OF_STATUS.get(EditStatus(status))


def new_secret() -> str:
    """Return a secret to sign with."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode("ascii")


def signed_headers(secret: str, *, message_id: str, at: datetime, body: bytes) -> dict[str, str]:
    """Return the headers that prove where a message comes from."""
    timestamp = str(int(at.timestamp()))
    return {
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": _signature(secret, message_id, timestamp, body),
    }


def check_signature(secret: str, headers: Mapping[str, str], body: bytes, *, now: datetime) -> None:
    """Check that a message was signed with a secret, not long ago.

    Raises:
        InvalidInput: if it was not.
    """
    given: dict[str, Any] = {name.lower(): value for name, value in headers.items()}
    message_id, timestamp = given.get("webhook-id", ""), given.get("webhook-timestamp", "")
    if not timestamp.isdigit() or abs(now.timestamp() - int(timestamp[:12])) > TOLERANCE.total_seconds():
        raise InvalidInput(f"expected a webhook of the last {TOLERANCE}, got another time or none")
    expected = _signature(secret, message_id, timestamp, body)
    # A sender that changes its secret signs with both, parted by blanks.
    if not any(hmac.compare_digest(expected, one) for one in given.get("webhook-signature", "").split(" ")):
        raise InvalidInput("expected a webhook signed with our secret, got another signature or none")


def _signature(secret: str, message_id: str, timestamp: str, body: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    signed = hmac.new(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256)
    return "v1," + base64.b64encode(signed.digest()).decode("ascii")
