"""What the demo prints: answers side by side, what was refused, and the audit trail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from rich.text import Text

from pipeline.bootstrap import Stores
from pipeline.entrypoints.console import out, print_rows, say
from pipeline.entrypoints.demo.reader import ModelReader
from pipeline.entrypoints.demo.stream import CONTESTED_ID, REVERTED_ID

MAX_ANSWER_CHARS = 44
NUM_OTHERS = 4
"""Edits that are asked for again after the revert, spread over the stream."""


def heading(text: str) -> None:
    """Print a line of its own, bold on a terminal."""
    out.print()
    out.print(Text(text, style="bold"), soft_wrap=True)


def tell_base(asked: Sequence[Mapping[str, str]], said: Future[list[str]]) -> None:
    """Print what the base answered, above the stream, as soon as it is known."""
    if said.exception() is None:
        heading("The base model, asked before anything is edited")
        for question, answer in zip(asked, said.result(), strict=True):
            say(f"  {question['question']} … {first_line(answer)}")
        out.print()


def tell_before_and_after(
    asked: Sequence[Mapping[str, str]], before: Mapping[str, str], after: Mapping[str, str]
) -> None:
    """Print what the base and the champion answered to the same questions, side by side."""
    heading("The same questions, before and after (models:/demo@champion through mlflow.pyfunc)")
    rows = [
        {
            "question": question["question"],
            "base": first_line(before[question["question"]]),
            "champion": first_line(after[question["question"]]),
            "expected": question["expected"] + ("" if question.get("request_id") else " (must stay)"),
        }
        for question in asked
    ]
    _print_columns(rows)


def tell_what_holds(kept: Stores, lineage: str, reader: ModelReader) -> None:
    """Ask the champion for the reverted fact, for some that must hold, and for the one corrected four times."""
    rows = {str(row["request_id"]): row for row in kept.history.edits(lineage)}
    last = rows[f"{CONTESTED_ID}-again-4"]
    holding = [row for row in rows.values() if row["status"] == "snapshotted" and row is not last]
    chosen = [rows[REVERTED_ID], *holding[:: len(holding) // NUM_OTHERS], last]
    answers = reader.ask_champion([str(row["prompt"]) for row in chosen])
    heading("After the revert and two more corrections of one fact, the champion says")
    _print_columns(
        [
            {
                "edit": row["request_id"],
                "status": row["status"],
                "prompt": row["prompt"],
                "champion": first_line(answer),
                "edit asked for": row["target_new"],
            }
            for row, answer in zip(chosen, answers, strict=True)
        ]
    )


def tell_refusals(kept: Stores, lineage: str) -> None:
    """Print what a gate refused and what could never be an edit, each with the reason."""
    heading("Refused by a gate, by what was measured")
    for row in kept.history.edits(lineage, status="rejected"):
        say(f"  {row['request_id']}: {row['reason']}")
    heading("Dead letters, with the reason for the producer")
    for letter in reversed(kept.intake.dead_letters()):
        say(f"  offset {letter.offset}: {letter.error}")


def tell_history(kept: Stores, lineage: str) -> list[str]:
    """Verify every chain and print one edit's whole history; return the chains that are broken."""
    heading("The audit trail")
    broken = []
    for chain in kept.audit.chains():
        found = kept.audit.verify(chain)
        say(f"  {chain}: {kept.audit.head(chain)[0]} lines, {found.reason if found else 'every one verifies'}")
        broken += [chain] if found else []
    row = kept.history.edit(lineage, REVERTED_ID)
    heading(f"The history of {REVERTED_ID}: {row['prompt']} -> {row['target_new']}")
    for event in row["events"]:
        say(f"  {event['seq']:>4}  {event['at']:%H:%M:%S}  {event['actor']:<28.28}  {event['action']}")
    out.print()
    return broken


def first_line(text: str) -> str:
    """Return the first line of an answer, cut where it runs on."""
    line = text.strip().splitlines()[0] if text.strip() else "(nothing)"
    return line if len(line) <= MAX_ANSWER_CHARS else line[: MAX_ANSWER_CHARS - 1] + "…"


def _print_columns(rows: Sequence[Mapping[str, Any]]) -> None:
    print_rows(rows, {key: key for key in rows[0]}, as_json=False, empty="nothing")
