"""Records with sensible fields, so that a test names only what it is about."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

from pipeline.domain.edits import Edit, EditRequest
from pipeline.domain.measurements import EditScore, Measurements, ModelScore

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
WIRE_REQUEST: dict[str, Any] = {
    "version": 1,
    "request_id": "r1",
    "lineage": "facts",
    "prompt": "The capital of Australia is",
    "target_new": "Canberra",
    "target_true": "Sydney",
    "subject": "Australia",
    "relation": "capital",
    "rephrases": ["Australia's capital is"],
    "locality": [{"prompt": "The capital of Japan is", "target": "Tokyo"}],
    "portability": [{"prompt": "Parliament sits in", "target": "Canberra"}],
    "source": "desk",
    "submitted_by": "ann",
    "occurred_at": "2026-06-01T12:00:00Z",
}
"""A correction on the wire, with every field of the first producers."""
CHAT_REQUEST: dict[str, Any] = {
    "request_id": "chat-1",
    "lineage": "facts",
    "messages": [
        {"role": "system", "content": "Answer in one sentence."},
        {"role": "user", "content": "Who was pope in 2024?"},
        {"role": "assistant", "content": "The pope was Francis."},
        {"role": "user", "content": "Who is it now?"},
    ],
    "answer": "The pope is now Leo XIV.",
    "target_new": "Leo XIV",
    "occurred_at": "2026-06-01T12:00:00Z",
}
"""A correction that comes only as a chat and a right answer."""


def make_request(request_id: str = "r1", **changes: Any) -> EditRequest:
    """A correction of a fact that no other request is about."""
    fields: dict[str, Any] = {
        "request_id": request_id,
        "lineage": "facts",
        "prompt": f"The capital of {request_id} is",
        "target_new": "Canberra",
        "occurred_at": NOON,
    }
    return EditRequest(**(fields | changes))


def make_edit(request_id: str = "r1", **changes: Any) -> Edit:
    """A recorded correction; its edit id is derived from the request id."""
    return Edit(edit_id=str(uuid.uuid5(uuid.NAMESPACE_URL, request_id)), request=make_request(request_id, **changes))


def make_score(edit_id: str, **changes: Any) -> EditScore:
    """An edit that holds."""
    fields: dict[str, Any] = {"edit_id": edit_id, "edit_success": True, "free_success": True, "token_fraction": 1.0}
    return EditScore(**(fields | changes))


def make_measurements(*scores: EditScore, **changes: Any) -> Measurements:
    """A candidate that is as good as its parent and the base."""
    model = ModelScore(suite_unchanged=0.95, suite_kl=0.01, num_suite=40, perplexity=20.0)
    fields: dict[str, Any] = {
        "edits": scores,
        "candidate": model,
        "parent": model,
        "base": ModelScore(suite_unchanged=1.0, suite_kl=0.0, num_suite=40, perplexity=20.0),
        "kl_from_parent": 0.01,
        "change_norm": 0.01,
    }
    return Measurements(**(fields | changes))
