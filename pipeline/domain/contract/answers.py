"""What the HTTP API answers: receipts, and where a correction stands and why. Server and client read the same."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

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
    "superseded": "another correction of the same fact holds instead",
    "dead": "it could not be edited after several tries; an operator can have it tried again",
}
"""What each state means to the person who sent the correction."""
FINAL = frozenset({"live", "refused", "not sent", "rejected", "superseded", "dead", "gone", "rolled back"})
"""States that do not change by themselves, or that the sender waited for."""


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


class CorrectionStatus(BaseModel):
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

    corrections: list[CorrectionStatus] = Field(description="The page.")
    next: str | None = Field(None, description="Path of the next page; none on the last one.")
