"""Where a correction stands, put into the words of the HTTP API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.adapters.sql.web.corrections import Standing
from pipeline.domain.contract.answers import MEANINGS, CorrectionStatus, Decided, GateFigures, InSnapshot


def correction_answer(standing: Standing) -> CorrectionStatus:
    """Return a correction as the API says it."""
    sent, edit = standing.submission or {}, standing.edit or {}
    known = {**sent, **edit}
    state = edit["state"] if edit else _before_intake(sent)
    public_id = str(sent.get("submission_id") or edit["edit_id"])
    given = {name: known[name] for name in _SAME if known.get(name) is not None}
    return CorrectionStatus(
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
