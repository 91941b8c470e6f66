"""The queue of candidates, the history of a lineage, and one snapshot: what it changed, and the decision about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Path, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from pipeline.adapters.sql.web.reading import SqlPageStore
from pipeline.domain.formats.canonical import canonical_json, sha256_text
from pipeline.domain.lifecycle import SnapshotStatus
from pipeline.domain.measurements import Measurements
from pipeline.domain.review.approvals import PERSON, Channel, Decision
from pipeline.domain.review.people import Role
from pipeline.domain.snapshots import Snapshot
from pipeline.entrypoints.web.pages.operations import SAID as DONE_SAID
from pipeline.entrypoints.web.pages.operations import Done
from pipeline.entrypoints.web.pages.rendering import HEADERS, ROOT, fragment, page, segment
from pipeline.entrypoints.web.pages.sessions import Denied, Session
from pipeline.entrypoints.web.pages.signed_in import REASON_CHARS, Reader, form_of
from pipeline.entrypoints.web.parts import Parts, WebParts
from pipeline.services.registry.registry_ports import Surroundings
from pipeline.services.review import ReviewService

router = APIRouter()

PAGE_ROWS = 50
MAX_EDITS = 200
"""Edits of one snapshot that its page shows; MLflow's artifact holds all of them."""
MAX_DECISIONS = 20
"""Decisions about one snapshot that its page shows."""
HEADLINE = ("edit_success", "generalization", "chat_success", "locality", "retention", "perplexity")
"""Metrics that the queue shows of each candidate."""
_DECIDED_HERE = frozenset({Decision.approved, Decision.rejected, Decision.rolled_back})
WAITING = frozenset({SnapshotStatus.candidate, SnapshotStatus.rolled_back})
"""What may be approved, above the champion; what was rolled back may be approved again."""
SAID = {
    Decision.approved: "Approved: this snapshot is the champion now.",
    Decision.endorsed: "Your approval is recorded. The lineage's policy asks for another person's before it goes live.",
    Decision.rejected: "Rejected: what it brought in is being taken out of the head.",
    Decision.rolled_back: "Rolled back: this snapshot is the champion again, and the lineage is held.",
}


@router.get("/queue")
def queue(request: Request, parts: Parts, session: Reader) -> Response:
    """Show every candidate above its lineage's champion, and the lineages."""
    pages = parts.stores.api.pages
    found = pages.waiting(limit=PAGE_ROWS + 1)
    waiting = [
        {
            **row,
            "figures": {one["metric"]: one for one in row["rows"] if one["metric"] in HEADLINE},
            # What brought no edit in was made for another reason, which says more than its figures.
            "work": "" if row["edits"] else pages.surroundings(row["lineage"], row["seq"]).work,
        }
        for row in found[:PAGE_ROWS]
    ]
    lineages = parts.stores.lineages.lineages()
    return page(
        request,
        "queue.html",
        session,
        waiting=waiting,
        has_more=len(found) > PAGE_ROWS,
        lineages=lineages,
        headline=HEADLINE,
    )


@router.get("/lineages/{lineage}/snapshots")
def history(
    request: Request,
    parts: Parts,
    session: Reader,
    lineage: str,
    before: Annotated[int, Query(ge=1)] = 2**31 - 1,
    said: Done | None = None,
) -> Response:
    """Show a lineage's snapshots, newest first, a page at a time."""
    rows = parts.stores.api.pages.snapshots(lineage, before=before, limit=PAGE_ROWS + 1)
    more = rows[PAGE_ROWS - 1]["seq"] if len(rows) > PAGE_ROWS else None
    found = parts.stores.lineages.lineage(lineage)
    return page(
        request,
        "snapshots.html",
        session,
        lineage=found,
        rows=rows[:PAGE_ROWS],
        more=more,
        may_hold=session.person.has_any([Role.operator, Role.reviewer]),
        said=DONE_SAID[said] if said else None,
    )


@router.get("/lineages/{lineage}/snapshots/{seq}")
def snapshot(
    request: Request,
    parts: Parts,
    session: Reader,
    lineage: str,
    seq: Annotated[int, Path(ge=1, lt=2**31)],
    said: Decision | None = None,
) -> Response:
    """Show one snapshot: verdict, answers before and after, what else goes live, and the forms to decide."""
    return _shown(request, parts, session, lineage, seq, said=SAID.get(said) if said else None)


@router.get("/lineages/{lineage}/snapshots/{seq}/also-live")
def also_live(
    parts: Parts,
    session: Reader,
    lineage: str,
    seq: Annotated[int, Path(ge=1, lt=2**31)],
    seen: Annotated[str, Query(max_length=64)] = "",
) -> Response:
    """Return anew what approving a snapshot makes live too, for a page that stays open; 204 while that is the same."""
    found, of = parts.stores.snapshots.snapshot(lineage, str(seq)), parts.stores.lineages.lineage(lineage)
    around = parts.stores.api.pages.surroundings(lineage, seq)
    is_decided = Decision.approved not in _may(session, found, of.champion_id, of.champion_seq)
    now = _seen(around)
    if seen == now and not is_decided:
        return Response(status_code=HTTPStatus.NO_CONTENT, headers=HEADERS)
    name = of.settings.name
    shown = {"lineage_name": name, "seq": seq, "around": around, "seen": now, "is_decided": is_decided}
    return HTMLResponse(fragment("_also_live.html", **shown, is_changed=True), headers=HEADERS)


@router.post("/lineages/{lineage}/snapshots/{seq}")
def decide(
    request: Request,
    parts: Parts,
    session: Annotated[Session, Depends(form_of(Role.reviewer))],
    lineage: str,
    seq: Annotated[int, Path(ge=1, lt=2**31)],
    decision: Annotated[Decision, Form()],
    digest: Annotated[str, Form(min_length=12, max_length=64)],
    champion: Annotated[str, Form(max_length=36)] = "",
    reason: Annotated[str, Form(max_length=REASON_CHARS)] = "",
) -> Response:
    """Carry out a decision about what the person saw; a page that is out of date is told so."""
    if decision not in _DECIDED_HERE:
        raise Denied(HTTPStatus.UNPROCESSABLE_ENTITY, f"{decision} is nothing that somebody decides.")
    if not reason.strip():
        raise Denied(HTTPStatus.UNPROCESSABLE_ENTITY, "Please go back and give a reason: auditors will look for it.")
    outcome = review_of(parts).decide(
        lineage,
        str(seq),
        decision,
        actor=f"{PERSON}{session.person.name}",
        channel=Channel.page,
        reason=reason.strip(),
        expected_digest=digest,
        expected_champion=champion or None,
    )
    if not outcome.is_accepted:
        refused = f"Not carried out: {outcome.reason}."
        return _shown(request, parts, session, lineage, seq, refused=refused, status=HTTPStatus.CONFLICT)
    said = Decision.endorsed if outcome.awaits_others else decision
    target = f"{ROOT}/lineages/{segment(lineage)}/snapshots/{seq}?said={said}"
    return RedirectResponse(target, HTTPStatus.SEE_OTHER, headers=HEADERS)


def review_of(parts: WebParts) -> ReviewService:
    """Return the one way in for decisions, on the stores of the process."""
    kept = parts.stores
    return ReviewService(lineages=kept.lineages, snapshots=kept.snapshots, review=kept.review, history=kept.history)


def _shown(
    request: Request,
    parts: WebParts,
    session: Session,
    lineage: str,
    seq: int,
    *,
    said: str | None = None,
    refused: str | None = None,
    status: HTTPStatus = HTTPStatus.OK,
) -> Response:
    found, of = parts.stores.snapshots.snapshot(lineage, str(seq)), parts.stores.lineages.lineage(lineage)
    report = parts.stores.snapshots.report(found.gate_report_id)
    measured = Measurements.from_stored(report["measurements"])
    pages: SqlPageStore = parts.stores.api.pages
    brought = pages.brought(lineage, seq, limit=MAX_EDITS + 1)
    around = pages.surroundings(lineage, seq)
    endorsers = pages.approvers(found.snapshot_id) if of.settings.approval_policy.approvers > 1 else ()
    return page(
        request,
        "snapshot.html",
        session,
        status=status,
        lineage=of,
        snapshot=found,
        report=report,
        measured_rows=[row for row in report["rows"] if row["value"] is not None],
        other_rows=[row for row in report["rows"] if row["value"] is None],
        edits=_with_results(brought[:MAX_EDITS], measured, report),
        moved=measured.moved,
        has_more_edits=len(brought) > MAX_EDITS,
        around=around,
        seq=seq,
        seen=_seen(around),
        is_decided=False,
        is_changed=False,
        endorsers=endorsers,
        decisions=pages.decisions(found.snapshot_id, limit=MAX_DECISIONS),
        may=_may(session, found, of.champion_id, of.champion_seq),
        said=said,
        refused=refused,
    )


def _with_results(
    edits: Sequence[Mapping[str, Any]], measured: Measurements, report: Mapping[str, Any]
) -> list[Mapping[str, Any]]:
    """Put beside each edit what was measured of it, and the verdict; None where it came back and was not measured."""
    scores = {score.edit_id: score for score in measured.edits}
    verdicts = {verdict["edit_id"]: verdict for verdict in report["edits"]}
    return [{**edit, "score": scores.get(edit["edit_id"]), "verdict": verdicts.get(edit["edit_id"])} for edit in edits]


def _may(session: Session, snapshot: Snapshot, champion_id: str | None, champion_seq: int) -> list[Decision]:
    """Return the decisions that make sense here, for somebody who may decide; the service checks all of it again."""
    if Role.reviewer not in session.person.roles or snapshot.snapshot_id == champion_id:
        return []
    if snapshot.seq > champion_seq:
        # What was live once is history: its edits are reverted, one by one.
        may_reject = [Decision.rejected] if snapshot.status == SnapshotStatus.candidate else []
        return [Decision.approved, *may_reject] if snapshot.status in WAITING else []
    return [Decision.rolled_back] if snapshot.status == "approved" else []


def _seen(around: Surroundings) -> str:
    """Return what tells one list of what goes live too from another."""
    shown = [(one.seq, one.is_rolled_back) for one in around.waiting]
    return sha256_text(canonical_json([around.num_waiting, around.num_waiting_edits, shown]))[:16]
