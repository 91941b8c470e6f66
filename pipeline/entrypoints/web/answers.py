"""What the HTTP API says of corrections: receipts, and where one stands and why."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from pipeline.adapters.sql.web.corrections import Standing

MEANINGS: Mapping[str, str] = {
    "not sent": "it was noted and did not reach the topic: send it again, with the same id or Idempotency-Key",
    "accepted": "it is on the topic, and not taken in yet",
    "refused": "intake refused it: the reason says what to change; send it with a new id",
    "queued": "it waits for a batch",
    "editing": "it is in a batch that is being edited and measured",
    "candidate": "a snapshot holds it, which waits to be approved",
    "candidate, removal pending": "a snapshot holds it, and the next one will not",
    "live": "the approved model holds it",
    "live, removal pending": "the approved model holds it, and the next one will not",
    "rolled back": "an approved snapshot held it, from which the lineage was rolled back",
    "gone": "it was reverted",
    "rejected": "a gate rejected it: the reason says what was measured",
    "superseded": "a later correction of the same fact holds instead",
    "dead": "it could not be edited after several tries; an operator can have it tried again",
}
"""What each state means to the person who sent the correction."""


class Receipt(BaseModel):
    """A correction that was accepted: it is on the topic, and will not be lost."""

    id: str = Field(description="Of the submission; where the correction stands is found with it.")
    request_id: str = Field(description="Your own id, or the one that was made up.")
    lineage: str = Field(description="The lineage that it is for.")
    status_url: str = Field(description="Path that says where it stands.", examples=["/v1/corrections/0199…"])
    is_duplicate: bool = Field(description="Whether the same correction had been accepted before.")


class Refusal(BaseModel):
    """A correction of several that was not accepted."""

    index: int = Field(description="Its place in the call, from 0.")
    status: int = Field(description="What its HTTP status would have been alone.", examples=[422])
    detail: str = Field(description="What to change.")


class Received(BaseModel):
    """What became of each correction of a call with several."""

    accepted: int = Field(description="How many are on the topic.")
    refused: int = Field(description="How many are not.")
    results: list[Receipt | Refusal] = Field(description="In the order of the call.")


class GateFigures(BaseModel):
    """What the gates said of this correction."""

    passed: bool | None = Field(None, description="Whether it passed by itself.")
    reason: str | None = Field(None, description="Which bound it missed, and by which figures.")
    measured: dict[str, Any] | None = Field(None, description="What was measured of this correction alone.")


class InSnapshot(BaseModel):
    """The first snapshot that held it."""

    seq: int = Field(description="Number of the snapshot in its lineage.")
    status: str = Field(description="candidate, approved, rejected, retired or rolled_back.")
    registry_version: str | None = Field(None, description="Its model version in MLflow.")


class Decided(BaseModel):
    """The approval by which it went live."""

    by: str = Field(description="Who approved; marked if the name is only claimed.")
    at: datetime = Field(description="When that was.")
    reason: str | None = Field(None, description="Why, in the person's words.")


class Correction(BaseModel):
    """Where a correction stands, and why."""

    id: str = Field(description="Of the submission, or of the edit if it came over the topic.")
    edit_id: str | None = Field(None, description="Of the edit, once intake has recorded it.")
    request_id: str = Field(description="The sender's own id.")
    lineage: str = Field(description="The lineage that it is for.")
    state: str = Field(description="Where it stands: " + ", ".join(MEANINGS) + ".", examples=["candidate"])
    meaning: str = Field(description="The same, as a sentence.")
    reason: str | None = Field(None, description="Why, where there is a reason.")
    prompt: str | None = Field(None, description="The stem, once intake has recorded it.")
    target_new: str | None = Field(None, description="What the model has to say.")
    submitted_by: str | None = Field(None, description="Who sent it.")
    occurred_at: datetime = Field(description="When the fact was seen to be wrong.")
    accepted_at: datetime | None = Field(None, description="When the API accepted it.")
    received_at: datetime | None = Field(None, description="When intake recorded it.")
    claimed_at: datetime | None = Field(None, description="When its last batch began.")
    gated_at: datetime | None = Field(None, description="When it was measured last.")
    snapshotted_at: datetime | None = Field(None, description="When a snapshot first held it.")
    attempts: int = Field(0, description="Tries of editing it that failed.")
    superseded_by: str | None = Field(None, description="Request id of the correction that holds instead.")
    gates: GateFigures | None = Field(None, description="What was measured, once it was.")
    snapshot: InSnapshot | None = Field(None, description="The first snapshot that held it, if one did.")
    approval: Decided | None = Field(None, description="Who let it go live, if somebody did.")
    links: dict[Literal["self", "lineage"], str] = Field(description="Paths of this answer and of its list.")


class Page(BaseModel):
    """Some corrections, newest first."""

    corrections: list[Correction] = Field(description="The page.")
    next: str | None = Field(None, description="Path of the next page; none on the last one.")


def correction_answer(standing: Standing) -> Correction:
    """Return a correction as the API says it."""
    sent, edit = standing.submission or {}, standing.edit or {}
    known = {**sent, **edit}
    state = edit["state"] if edit else _before_intake(sent)
    public_id = str(sent.get("submission_id") or edit["edit_id"])
    given = {name: known[name] for name in _SAME if known.get(name) is not None}
    return Correction(
        id=public_id,
        edit_id=str(edit["edit_id"]) if edit else None,
        state=state,
        meaning=MEANINGS.get(state, state),
        reason=edit.get("reason") or edit.get("gate_reason") if edit else sent.get("error"),
        superseded_by=edit.get("superseded_by_request_id"),
        gates=_gates(edit),
        snapshot=_snapshot(edit),
        approval=_approval(edit),
        links={"self": f"/v1/corrections/{public_id}", "lineage": f"/v1/corrections?lineage={known['lineage']}"},
        **given,
    )


_SAME = (
    "request_id", "lineage", "prompt", "target_new", "submitted_by", "occurred_at", "accepted_at", "received_at",
    "claimed_at", "gated_at", "snapshotted_at", "attempts",
)  # fmt: skip
"""Fields that have the name of their column."""


def _before_intake(sent: Mapping[str, Any]) -> str:
    if sent["error"] is not None:
        return "refused"
    return "accepted" if sent["produced_at"] is not None else "not sent"


def _gates(edit: Mapping[str, Any]) -> GateFigures | None:
    if not edit or (edit["gate_passed"] is None and edit["gate_score"] is None):
        return None
    return GateFigures(passed=edit["gate_passed"], reason=edit["gate_reason"] or None, measured=edit["gate_score"])


def _snapshot(edit: Mapping[str, Any]) -> InSnapshot | None:
    if not edit or edit["snapshot_seq"] is None:
        return None
    return InSnapshot(
        seq=edit["snapshot_seq"], status=edit["snapshot_status"], registry_version=edit["registry_version"]
    )


def _approval(edit: Mapping[str, Any]) -> Decided | None:
    if not edit or edit["approved_by"] is None:
        return None
    return Decided(by=edit["approved_by"], at=edit["approved_at"], reason=edit["approval_reason"] or None)
