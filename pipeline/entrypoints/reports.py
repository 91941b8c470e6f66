"""What commands show of gate reports: figures with their bounds, and what became of other subjects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pipeline.domain.formats.sizes import shown_size
from pipeline.domain.gates import bound_text
from pipeline.domain.rank_api import EditorIdentity
from pipeline.domain.snapshots import Snapshot
from pipeline.entrypoints.console import print_json, print_record, print_rows, say

OTHERS = "other_subjects"
"""Where a score holds what became of an edit's prompt about other subjects."""


def print_snapshot(snapshot: Snapshot, report: Mapping[str, Any], *, as_json: bool) -> None:
    """Show a snapshot, the rows of its gate report, and the other subjects that its edits moved."""
    record = asdict(snapshot)
    if as_json:
        print_json(record | {"report": report})
        return
    record["delta"] = f"{shown_size(snapshot.delta.num_bytes)}, {snapshot.delta.digest[:12]}"
    record["editor"] = editor_line(report.get("editor"))
    record["accumulator"] = snapshot.accumulator.digest[:12] if snapshot.accumulator else None
    print_record(record, as_json=False)
    say()
    columns = {"metric": "metric", "value": "value", "num_measured": "of", "bound": "bound"}
    columns |= {"against": "against", "verdict": "verdict"}
    rows = [row | {"bound": bound_text(row)} for row in report.get("rows", [])]
    print_rows(rows, columns, as_json=False, empty="no gate rows")
    scores = report.get("measurements", {}).get("edits", [])
    print_others([other for score in scores for other in score.get(OTHERS) or () if not other["is_unchanged"]])


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
    marked = [other | {"": "takes over the answer" if other["takes_answer"] else ""} for other in map(dict, others)]
    print_rows(sorted(marked, key=lambda other: -other["kl"]), columns, as_json=False, empty="")


def print_answers(request: Mapping[str, Any], score: Mapping[str, Any] | None) -> None:
    """Show what the model answered before and after an edit: its prompt, another wording, the chat, what moved."""
    if not score or not score.get("generated"):
        return
    rows = [(request["prompt"], score.get("generated_before"), score["generated"])]
    if score.get("wording"):
        rows.append((score["wording"], score.get("wording_before"), score.get("wording_after")))
    if score.get("reply"):
        rows.append((f"(chat) {request['question'] or request['prompt']}", score.get("reply_before"), score["reply"]))
    rows += [(f"(must stay; base before) {one['prompt']}", one["base"], one["now"]) for one in score.get("moved") or ()]
    say()
    shown = [{"asked": text, "before": _first_line(old), "after": _first_line(new)} for text, old, new in rows]
    print_rows(shown, {name: name for name in ("asked", "before", "after")}, as_json=False, empty="")


def _first_line(answer: str | None) -> str | None:
    return answer.strip().partition("\n")[0] if answer else answer
