"""What commands show of gate reports: figures with their bounds, and what became of other subjects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pipeline.domain.formats.sizes import shown_size
from pipeline.domain.gates import bound_text
from pipeline.domain.rank_api import EditorIdentity
from pipeline.domain.review.approvals import shown_actor
from pipeline.domain.snapshots import Snapshot
from pipeline.domain.wordings import wording_success
from pipeline.entrypoints.console import print_record, print_rows, say
from pipeline.services.registry.registry_ports import Surroundings

MARKS = {True: "✓", False: "✗", None: ""}
"""Whether an answer is what was asked for; nothing where that was not judged."""
OTHERS = "other_subjects"
"""Where a score holds what became of an edit's prompt about other subjects."""


def print_snapshot(
    snapshot: Snapshot,
    report: Mapping[str, Any],
    *,
    page: str | None,
    edits: Sequence[Mapping[str, Any]],
    decisions: Sequence[Mapping[str, Any]],
    around: Surroundings,
) -> None:
    """Show a snapshot: where it stands, who decided, what left and what it brought, gates, subjects; ids come last.

    Args:
        snapshot: the snapshot.
        report: its gate report.
        page: the link of its model version, if it has one.
        edits: what came in with it, as the review pages read it.
        decisions: what people decided about it, the latest first.
        around: what the review pages say beside it.
    """
    first = {
        "lineage": snapshot.lineage,
        "snapshot": snapshot.seq,
        "status": snapshot.status.value.replace("_", " "),
        "decided": [_decided(one) for one in decisions] or None,
        "what": around.work or None,
        "made": snapshot.created_at,
        "active edits": snapshot.num_active,
        "left": list(around.gone) or None,
        "made again": list(around.remade) or None,
        "editor": editor_line(report.get("editor")),
        "page": page,
    }
    print_record({key: value for key, value in first.items() if value is not None}, as_json=False)
    scores = {score["edit_id"]: score for score in report.get("measurements", {}).get("edits", [])}
    say()
    brought = []
    for edit in edits:
        score = scores.get(edit["edit_id"], {})
        is_right = MARKS[score.get("free_success")]
        brought.append({**edit, "now": _first_line(score.get("generated")), "by": edit["submitted_by"], "": is_right})
    columns = {
        "request_id": "came in",
        "prompt": "prompt",
        "target_new": "target",
        "now": "answer now",
        "": "",
        "by": "by",
    }
    print_rows(brought, columns, as_json=False, empty="no edit came in")
    say()
    print_gates(report.get("rows", []))
    print_others([other for score in scores.values() for other in score.get(OTHERS) or () if not other["is_unchanged"]])
    say()
    print_record(_identity(snapshot), as_json=False)


def print_gates(rows: Sequence[Mapping[str, Any]]) -> None:
    """Show what gates measured, each figure with its bound, and name in one line what they did not measure."""
    columns = {"metric": "metric", "value": "value", "num_measured": "probes", "bound": "bound"}
    columns |= {"against": "against", "verdict": "verdict"}
    measured = [{**row, "bound": bound_text(row)} for row in rows if row.get("value") is not None]
    print_rows(measured, columns, as_json=False, empty="no gate rows")
    if missing := [str(row["metric"]) for row in rows if row.get("value") is None]:
        say(f"not measured: {', '.join(missing)}")


def _decided(row: Mapping[str, Any]) -> str:
    refused = f", which was refused: {row['refusal']}" if row["refusal"] else ""
    reason = f": {row['reason']}" if row["reason"] else ""
    at = row["decided_at"].astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return f"{row['decision'].replace('_', ' ')} by {shown_actor(row['actor'])}, {at}{refused}{reason}"


def _identity(snapshot: Snapshot) -> dict[str, Any]:
    """Return what binds a snapshot to its files and to the one before, without what it does not have."""
    record = {key: value for key, value in asdict(snapshot).items() if value is not None}
    record["delta"] = f"{shown_size(snapshot.delta.num_bytes)}, {snapshot.delta.digest[:12]}"
    if snapshot.accumulator is not None:
        record["accumulator"] = snapshot.accumulator.digest[:12]
    shown_above = ("lineage", "seq", "status", "created_at", "num_active")
    return {key: value for key, value in record.items() if key not in shown_above}


def editor_line(editor: Mapping[str, Any] | None) -> str | None:
    """Return the editor that a report names, with its digest; None if the report is older than that."""
    return f"{EditorIdentity(**editor)}, solver {editor['solver']}" if editor else None


def parted_score(score: Mapping[str, Any] | None) -> tuple[dict[str, Any] | None, Sequence[Mapping[str, Any]]]:
    """Return what was measured of an edit without its other subjects, and these."""
    if score is None:
        return None, ()
    return {key: value for key, value in score.items() if key != OTHERS}, score.get(OTHERS) or ()


def print_others(others: Sequence[Mapping[str, Any]]) -> None:
    """Show what became of edits' prompts about other subjects, those that moved most first; nothing without any."""
    if not others:
        return
    say()
    columns = {"prompt": "other subjects, asked the same", "before": "before", "after": "after", "kl": "nats", "": ""}
    marked = [
        {**other, "before": _first_line(other["before"]), "after": _first_line(other["after"])}
        | {"": "takes over the answer" if other["takes_answer"] else ""}
        for other in others
    ]
    print_rows(sorted(marked, key=lambda other: -other["kl"]), columns, as_json=False, empty="")


def print_answers(request: Mapping[str, Any], score: Mapping[str, Any] | None) -> None:
    """Show what the model answered before and after an edit: its prompt, another wording, the chat, what moved."""
    if not score or not score.get("generated"):
        return
    free, told = score.get("free_success"), score.get("chat_success")
    rows = [(request["prompt"], score.get("generated_before"), score["generated"], free)]
    if score.get("wording"):
        now, old = score.get("wording_after"), request.get("target_true")
        is_right = wording_success(now, target=request["target_new"], instead_of=old)
        rows.append((score["wording"], score.get("wording_before"), now, is_right))
    if score.get("reply"):
        asked = f"(chat) {request['question'] or request['prompt']}"
        rows.append((asked, score.get("reply_before"), score["reply"], told))
    rows += [
        (f"(must stay; base before) {one['prompt']}", one["base"], one["now"], None) for one in score.get("moved") or ()
    ]
    say()
    shown = [
        {"asked": text, "before": _first_line(old), "after": _first_line(new), "": MARKS[is_right]}
        for text, old, new, is_right in rows
    ]
    print_rows(shown, {name: name for name in ("asked", "before", "after", "")}, as_json=False, empty="")


def _first_line(answer: str | None) -> str | None:
    return answer.strip().partition("\n")[0] if answer else answer
