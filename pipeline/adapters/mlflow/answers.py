"""What the model said before and after each edit of a snapshot: rows for programs, and a table of all for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pipeline.adapters.mlflow.markdown import cell
from pipeline.domain.wordings import wording_success
from pipeline.services.registry.registry_ports import RegistryEntry

MEASURED = (
    "edit_success",
    "free_success",
    "reply",
    "reply_before",
    "chat_success",
    "wording",
    "wording_before",
    "wording_after",
    "prob_before",
    "prob_new",
    "locality_kl",
)
"""Fields of an edit's score that a row takes over as they are."""
JUDGED = {"after": "free_success", "reply": "chat_success", "wording_after": "wording_success"}
"""What the model says now -> whether that is what was asked for."""
COLUMNS = {
    "request_id": "request",
    "submitted_by": "asked by",
    "asked": "prompt",
    "before": "before",
    "wanted": "wanted",
    "after": "after",
    "reply_before": "in a chat, before",
    "reply": "in a chat",
    "wording": "other wording",
    "wording_before": "it, before",
    "wording_after": "it, after",
    "reason": "verdict",
}


def measurements_of(entry: RegistryEntry) -> Mapping[str, Any]:
    """Return the figures behind a gate report, as JSON."""
    found: Mapping[str, Any] = entry.report.get("measurements") or {}
    return found


def before_after(entry: RegistryEntry) -> list[dict[str, Any]]:
    """Return a row for each edit that the snapshot brought in: what was asked, what the model said, the verdict.

    `before` is the parent's answer where that was asked, else what the producer said the model answered.
    """
    scores = {str(row["edit_id"]): row for row in measurements_of(entry).get("edits") or ()}
    verdicts = {str(row["edit_id"]): row for row in entry.report.get("edits") or ()}
    rows = []
    for edit in entry.edits:
        request, score = edit.request, scores.get(edit.edit_id, {})
        said = score.get("generated_before")
        rows.append(
            {
                "request_id": request.request_id,
                "edit_id": edit.edit_id,
                "submitted_by": request.submitted_by,
                "source": request.source,
                "origin": entry.around.origins.get(edit.edit_id),
                "prompt": request.prompt,
                "question": request.question,
                "messages": [asdict(turn) for turn in request.messages],
                "answer": request.answer,
                "is_chat": request.is_chat,
                "before": request.target_true if said is None else said,
                "is_before_measured": said is not None,
                "claimed_before": request.target_true,
                "wanted": request.target_new,
                "after": score.get("generated"),
                "moved": score.get("moved") or [],
                "other_subjects": score.get("other_subjects") or [],
                "reason": verdicts.get(edit.edit_id, {}).get("reason", ""),
            }
            | {name: score.get(name) for name in MEASURED}
            | {
                "wording_success": wording_success(
                    score.get("wording_after"), target=request.target_new, instead_of=request.target_true
                )
            }
        )
    return rows


def asked(row: Mapping[str, Any]) -> str:
    """Return the prompt of a row, and that it is what a user asked where no stem was sent."""
    return f"asked in a chat: {row['prompt']}" if row["is_chat"] else str(row["prompt"])


def mark(is_right: bool | None) -> str:
    """Return a sign behind an answer that says whether it is right; nothing where that was not judged."""
    return "" if is_right is None else " ✓" if is_right else " ✗"


def before_after_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the same rows as a Markdown table, one a row; of an edit that came only as a chat, the last turn.

    Behind each answer of now stands whether it is what was asked for.
    """
    head = f"| {' | '.join(COLUMNS.values())} |\n{'|---' * len(COLUMNS)}|\n"
    lines = []
    for row in rows:
        marks = {name: mark(row[judged]) for name, judged in JUDGED.items() if row[name] is not None}
        said = {**row, "asked": asked(row)}
        lines.append("| " + " | ".join(cell(said[name]) + marks.get(name, "") for name in COLUMNS) + " |\n")
    return head + "".join(lines)
