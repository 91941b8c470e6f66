"""What the demo prints: answers side by side, what was refused, and the audit trail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from pipeline.bootstrap import Stores
from pipeline.domain.edits import EditRequest
from pipeline.domain.review.approvals import shown_actor
from pipeline.entrypoints.console import out, print_rows, say
from pipeline.entrypoints.demo.asking import Answers, Asked, Way, asked_about, share_right
from pipeline.entrypoints.demo.reader import ModelReader
from pipeline.entrypoints.demo.stream import REVERTED_ID
from pipeline.services.registry.anchoring import AnchorChecker

MAX_ANSWER_CHARS = {Way.stem: 44, Way.wording: 44, Way.chat: 72}
"""How much of an answer is printed; a reply in a chat is a sentence or two, and says the answer anywhere."""
NUM_SHOWN = 6
"""Corrections whose answers are printed; all of them are asked and counted."""
TITLES = {
    Way.stem: "The prompts of the corrections, before and after (models:/demo@champion through mlflow.pyfunc)",
    Way.wording: "Other wordings of the same facts, which the editor never saw",
    Way.chat: "Questions in the model's chat template, answered freely",
}


def heading(text: str) -> None:
    """Print a line of its own, bold on a terminal."""
    out.print()
    out.print(Text(text, style="bold"), soft_wrap=not out.is_terminal)


def tell_base(asked: Sequence[Asked], said: Answers) -> None:
    """Print what the base answers to some prompts of corrections, before anything is edited."""
    heading("The base model, asked before anything is edited")
    for one in shown(asked, Way.stem):
        say(f"  {one.text} … {first_line(one, said)}")
    out.print()


def tell_before_and_after(before: Answers, after: Answers) -> None:
    """Print what the base and the champion answer to some of the questions, and how many of all they get right.

    Args:
        before: the base's answers; more may have been asked of it.
        after: the champion's, about the corrections that it holds, asked in every way.
    """
    same = {one: before[one] for one in after}
    for way, title in TITLES.items():
        heading(title)
        _print_answers(shown(list(after), way), same, after)
        say(f"right: {_of_all(same, way)} by the base, {_of_all(after, way)} by the champion")


def tell_unedited(asked: Sequence[Asked], before: Answers, after: Answers) -> None:
    """Print what the base and the champion answer about facts that nobody corrected."""
    heading("Facts that nobody corrected must stay")
    _print_answers(asked, before, after)


def shown(asked: Sequence[Asked], way: Way) -> list[Asked]:
    """Return the questions of one way that are printed: about a few facts that are asked in every way."""
    ways: dict[str, list[Asked]] = {}
    for one in asked:
        ways.setdefault(one.request.request_id, []).append(one)
    most = max(map(len, ways.values()), default=0)
    full = [own for own in ways.values() if len(own) == most]
    step = max(1, len(full) // NUM_SHOWN)
    return [one for own in full[::step][:NUM_SHOWN] for one in own if one.way is way]


def tell_what_holds(kept: Stores, lineage: str, reader: ModelReader, requests: Sequence[EditRequest]) -> None:
    """Ask the champion for the reverted fact, for some that must hold, and for the one corrected four times.

    Args:
        kept: says what has become of each edit.
        lineage: name of the lineage.
        reader: asks the champion.
        requests: the corrections, and the last one of the contested fact at the end.
    """
    rows = {str(row["request_id"]): row for row in kept.history.edits(lineage)}
    last = requests[-1]
    holding = [one for one in requests[:-1] if rows[one.request_id]["status"] == "snapshotted"]
    reverted = [one for one in requests if one.request_id == REVERTED_ID]
    # The first way in which a correction is asked for is its own: the stem, or the chat that it came as.
    asked = [asked_about([one])[0] for one in [*reverted, *holding[:: max(1, len(holding) // NUM_SHOWN)], last]]
    said = reader.ask_champion(asked, package_digest=champion_package(kept, lineage))
    heading("After the revert and two more corrections of one fact, the champion says")
    _print_columns(
        [
            {
                "edit": one.request.request_id,
                "status": rows[one.request.request_id]["status"],
                "prompt": one.text,
                "champion": first_line(one, said),
                "edit asked for": one.request.target_new,
            }
            for one in asked
        ]
    )


def champion_package(kept: Stores, lineage: str) -> str:
    """Return what the database says of the champion's files, for whoever loads them from MLflow."""
    return str(kept.mirror.champion_mirror(lineage).package_digest)


def tell_refusals(kept: Stores, lineage: str) -> None:
    """Print what a gate refused and what could never be an edit, each with the reason."""
    heading("Refused by a gate, by what was measured")
    for row in kept.history.edits(lineage, status="rejected"):
        say(f"  {row['request_id']}: {row['reason']}")
    heading("Dead letters, with the reason for the producer")
    for letter in reversed(kept.intake.dead_letters()):
        say(f"  offset {letter.offset}: {letter.error}")


def tell_history(kept: Stores, anchors: AnchorChecker, lineage: str) -> list[str]:
    """Verify every chain and print one edit's whole history; return the chains that are broken."""
    heading("The audit trail")
    broken = []
    for chain in kept.audit.chains():
        compared = anchors.check(chain)
        found = kept.audit.verify(chain) or compared.contradiction
        verdict = found.reason if found else f"every one verifies, {compared.num_agreeing} anchors in MLflow agree"
        say(f"  {chain}: {kept.audit.head(chain)[0]} lines, {verdict}")
        broken += [chain] if found else []
    row = kept.history.edit(lineage, REVERTED_ID)
    heading(f"The history of {REVERTED_ID}: {row['prompt']} -> {row['target_new']}")
    for event in row["events"]:
        say(f"  {event['seq']:>4}  {event['at']:%H:%M:%S}  {shown_actor(event['actor']):<28.28}  {event['action']}")
    out.print()
    return broken


def first_line(asked: Asked, said: Answers) -> str:
    """Return the first line of an answer, cut where it runs on."""
    text, most = said[asked].strip(), MAX_ANSWER_CHARS[asked.way]
    line = text.splitlines()[0] if text else "(nothing)"
    return line if len(line) <= most else line[: most - 1] + "…"


def _print_answers(asked: Sequence[Asked], before: Answers, after: Answers) -> None:
    rows = [
        {
            "asked": one.text,
            "base": first_line(one, before),
            "base is right": _mark(one, before),
            "champion": first_line(one, after),
            "champion is right": _mark(one, after),
            "right": one.request.target_new,
        }
        for one in asked
    ]
    headings = {"asked": "asked", "base": "base", "base is right": "", "champion": "champion", "champion is right": ""}
    print_rows(rows, headings | {"right": "right"}, as_json=False, empty="nothing")


def _mark(asked: Asked, said: Answers) -> str:
    return "✓" if asked.is_answered_by(said[asked]) else "✗"


def _of_all(said: Answers, way: Way) -> str:
    share, num = share_right(said, way)
    return f"{round((share or 0.0) * num)} of {num}"


def _print_columns(rows: Sequence[Mapping[str, Any]]) -> None:
    print_rows(rows, {key: key for key in rows[0]} if rows else {}, as_json=False, empty="nothing")
