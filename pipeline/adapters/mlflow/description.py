"""What a person reads about a model version: its description, its answers before and after, its metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pipeline.domain.gates import bound_text
from pipeline.services.registry.registry_ports import RegistryEntry

MAX_DESCRIPTION_CHARS = 4_800
"""MLflow's own column holds 5,000."""
MAX_CELL_CHARS = 120

HOW_TO_APPROVE = """\
### How to approve

Give this version the alias `approved`, or the tag `approval` with the value `approved` (`rejected` to turn it down).
Say who you are in the tag `approval.actor` and why in `approval.reason`; the name is recorded as claimed, since MLflow
does not say who set a tag. What `corrigenda approve` is asked with a reviewer's token is recorded as that reviewer's.
Corrigenda checks the request, writes what became of it into the tag `approval.outcome`, and moves the alias `champion`
itself; it puts that alias back when somebody else moves it.
"""


def before_after(entry: RegistryEntry) -> list[dict[str, Any]]:
    """Return a row for each edit that the snapshot brought in: what was asked, what the model said, the verdict."""
    scores = {str(row["edit_id"]): row for row in _measurements(entry).get("edits") or ()}
    verdicts = {str(row["edit_id"]): row for row in entry.report.get("edits") or ()}
    return [
        {
            "request_id": edit.request.request_id,
            "edit_id": edit.edit_id,
            "prompt": edit.request.prompt,
            "question": edit.request.question,
            "messages": [asdict(turn) for turn in edit.request.messages],
            "answer": edit.request.answer,
            "is_chat": edit.request.is_chat,
            "before": edit.request.target_true,
            "wanted": edit.request.target_new,
            "after": scores.get(edit.edit_id, {}).get("generated"),
            "edit_success": scores.get(edit.edit_id, {}).get("edit_success"),
            "reply": scores.get(edit.edit_id, {}).get("reply"),
            "chat_success": scores.get(edit.edit_id, {}).get("chat_success"),
            "reason": verdicts.get(edit.edit_id, {}).get("reason", ""),
        }
        for edit in entry.edits
    ]


def before_after_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the same rows as a Markdown table.

    `before` is what the producer said the model answered; `in a chat` the reply to the request's question, of those
    edits that were asked it. Of an edit that came only as a chat, the prompt is the user's last turn.
    """
    head = "| request | prompt | before | wanted | after | in a chat | verdict |\n|---|---|---|---|---|---|---|\n"
    keys = ("before", "wanted", "after", "reply", "reason")
    cells = ([row["request_id"], _asked(row), *(row.get(key) for key in keys)] for row in rows)
    return head + "".join("| " + " | ".join(map(_cell, line)) + " |\n" for line in cells)


def metrics(entry: RegistryEntry) -> dict[str, float]:
    """Return the run's metrics: every gate that was measured, and counts; never a NaN."""
    rows = entry.report.get("rows") or ()
    found = {str(row["metric"]): row.get("value") for row in rows}
    found |= {f"num_{row['metric']}": row.get("num_measured") for row in rows}
    candidate = _measurements(entry).get("candidate") or {}
    found["base_kl"] = candidate.get("suite_kl")
    found["num_edits"] = len(entry.edits)
    found["num_active_edits"] = entry.snapshot.num_active
    return {
        name: float(value)
        for name, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def description(entry: RegistryEntry) -> str:
    """Return Markdown of at most `MAX_DESCRIPTION_CHARS`: what changed, the gates, how to approve, how to load."""
    around = "\n".join([_title(entry), "{}", _gates(entry), HOW_TO_APPROVE, _how_to_load(entry)])
    room = MAX_DESCRIPTION_CHARS - len(around)
    return around.replace("{}", _changes(before_after(entry), room=room), 1)[:MAX_DESCRIPTION_CHARS]


def _title(entry: RegistryEntry) -> str:
    snapshot, (seq, head) = entry.snapshot, entry.audit_head
    editor = entry.lineage.settings.editor_identity
    parent = f"on `{snapshot.parent_id}`" if snapshot.parent_id else "on the base"
    return (
        f"## {_cell(entry.lineage.settings.name)}, snapshot {snapshot.seq}\n\n"
        f"{len(entry.edits)} edits came in, {snapshot.num_active} are active. Snapshot `{snapshot.snapshot_id}` "
        f"{parent}; digest `{snapshot.digest[:12]}`; audit line {seq} (`{head[:12]}`). "
        f"Editor: {_cell(editor.transform)}{f' `{editor.digest}`' if editor.digest else ''}, solver {editor.solver}.\n"
    )


def _changes(rows: Sequence[Mapping[str, Any]], *, room: int) -> str:
    """Return the table of edits, cut where the room ends."""
    if not rows:
        return "### What changed\n\nNo edit came in: this snapshot takes edits out.\n"
    lines = ["### What changed", "", "| prompt | before | now |", "|---|---|---|"]
    used = sum(map(len, lines)) + 120
    for num_shown, row in enumerate(rows):
        line = f"| {_cell(_asked(row))} | {_cell(row['before'])} | {_cell(row['wanted'])} |"
        used += len(line) + 1
        if used > room:
            lines += ["", f"and {len(rows) - num_shown} more in the artifact `before_after.md`."]
            break
        lines.append(line)
    return "\n".join(lines) + "\n"


def _gates(entry: RegistryEntry) -> str:
    lines = [f"### Gates: {_cell(entry.report.get('verdict'))}", "", "| metric | value | bound | against | verdict |"]
    lines.append("|---|---|---|---|---|")
    for row in entry.report.get("rows") or ():
        value, bound = _figure(row.get("value")), bound_text(row)
        value += f" of {count}" if (count := row.get("num_measured")) else ""
        verdict = _cell(row.get("verdict")).replace("_", " ")
        lines.append(f"| {_cell(row.get('metric'))} | {value} | {bound} | {_cell(row.get('against'))} | {verdict} |")
    return "\n".join(lines) + "\n"


def _how_to_load(entry: RegistryEntry) -> str:
    name = entry.lineage.settings.name
    return (
        "### How to load\n\n```python\n"
        f'model = mlflow.pyfunc.load_model("models:/{name}@champion")  # or models:/{name}/VERSION\n'
        'model.predict(["The capital of Japan is"], params={"max_new_tokens": 24, "chat": False})\n```\n'
    )


def _asked(row: Mapping[str, Any]) -> str:
    """Return the prompt of a row, and that it is what a user asked where no stem was sent."""
    return f"asked in a chat: {row['prompt']}" if row["is_chat"] else str(row["prompt"])


def _measurements(entry: RegistryEntry) -> Mapping[str, Any]:
    found: Mapping[str, Any] = entry.report.get("measurements") or {}
    return found


def _figure(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else "not measured"


def _cell(value: object) -> str:
    """Return text that cannot break out of a table: one line, no pipes, no markup."""
    text = " ".join(str("" if value is None else value).split())
    if len(text) > MAX_CELL_CHARS:
        text = text[: MAX_CELL_CHARS - 1] + "…"
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
