"""The page of a model version, as a reviewer reads it: verdict, what changed, what else moved, bounds, how to decide.

MLflow keeps few characters of it, so that a large batch is cut; the run's artifacts have all of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.adapters.mlflow.answers import asked, before_after, mark, measurements_of
from pipeline.adapters.mlflow.markdown import plain
from pipeline.domain.formats.counting import counted
from pipeline.domain.gates import bound_text
from pipeline.services.registry.links import review_link, version_link
from pipeline.services.registry.registry_ports import RegistryEntry, Waiting

MAX_DESCRIPTION_CHARS = 4_800
"""MLflow's own column holds 5,000."""
MAX_SAID = 60
"""Characters of an answer on the page."""
MAX_WORK = 300
"""Characters of what a snapshot without a batch is."""
AGAINST = {
    "perplexity": "perplexity",
    "accuracy": "accuracy",
    "retention": "retention",
    "locality": "suite_unchanged",
}
"""Metrics whose row also names what parent and base have, where that was measured -> what a model's score calls it."""
MARKS = {"passed": "✓", "failed": "✗", "saturated": "✗", "reported": "·"}
HOW_TO_APPROVE = """\
### How to decide

1. **Say why:** under *Tags*, add the tag `approval.reason`{actor}.
2. **Decide:** beside *Aliases*, click *Add*, type `approved` (or `rejected`), save. \
The tag `approval` with that value does the same.

In seconds Corrigenda checks the request, writes what became of it into the tag `approval.outcome`, \
and moves the alias `champion` itself. Or: `corrigenda approve {seq} -l {name} --reason "…"`. **Policy:** {policy}
"""


def metrics(entry: RegistryEntry) -> dict[str, float]:
    """Return the run's metrics: every gate that was measured, what parent and base have, counts; never a NaN."""
    rows, measured = entry.report.get("rows") or (), measurements_of(entry)
    found = {str(row["metric"]): row.get("value") for row in rows}
    found |= {f"num_{row['metric']}": row.get("num_measured") for row in rows}
    found["base_kl"] = (measured.get("candidate") or {}).get("suite_kl")
    for of in ("parent", "base"):
        score = measured.get(of) or {}
        found |= {f"{of}_{name}": score[field] for name, field in AGAINST.items() if score.get(field) is not None}
    scores = measured.get("edits") or ()
    found["prob_new"] = _mean(score.get("prob_new") for score in scores)
    found["prob_before"] = _mean(score.get("prob_before") for score in scores)
    found["num_edits"] = len(entry.edits)
    found["num_active_edits"] = entry.snapshot.num_active
    found["num_edits_going_live"] = _num_going_live(entry)
    return {
        name: float(value)
        for name, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def description(
    entry: RegistryEntry, *, links: str = "", pages: str = "", review_pages: str = "", tells_actor: bool = True
) -> str:
    """Return Markdown of at most `MAX_DESCRIPTION_CHARS`.

    Args:
        entry: the snapshot and all that is shown of it.
        links: a line of links to the run, its charts and files.
        pages: address of MLflow's pages, for links to other versions where there is nothing better.
        review_pages: address of Corrigenda's own pages, where a snapshot stays though its version may be deleted.
        tells_actor: whether the server notes who asks; else they have to write their name down.
    """
    name = entry.lineage.settings.name
    how = HOW_TO_APPROVE.format(
        seq=entry.snapshot.seq,
        name=name,
        actor="" if tells_actor else ", and your name as `approval.actor` (it is recorded as claimed)",
        policy=entry.lineage.settings.approval_policy.words(),
    )
    around = [
        _title(entry),
        links,
        _going_live(entry, pages, review_pages),
        "{}",
        _moved(entry),
        _gates(entry),
        how,
        _origin(entry),
    ]
    text = "\n".join(part for part in around if part)
    room = MAX_DESCRIPTION_CHARS - len(text)
    return text.replace("{}", _changes(entry, room=room), 1)[:MAX_DESCRIPTION_CHARS]


def _title(entry: RegistryEntry) -> str:
    snapshot, verdict = entry.snapshot, str(entry.report.get("verdict", ""))
    judged = "it passed its gates" if verdict == "passed" else f"**its gates say: {verdict}**"
    are = "is" if snapshot.num_active == 1 else "are"
    came = f"{counted(len(entry.edits), 'edit')} came in"
    if entry.around.work and not entry.edits:
        came = f"**{plain(entry.around.work, most=MAX_WORK)}.** No edit came in"
    return (
        f"## {plain(entry.lineage.settings.name)}, snapshot {snapshot.seq}: {judged}\n\n"
        f"{came}, {snapshot.num_active:,} {are} active.\n"
    )


def _going_live(entry: RegistryEntry, pages: str, review_pages: str) -> str:
    """Say what else approving it makes live."""
    around = entry.around
    if not around.num_waiting:
        return ""
    left_out = around.num_waiting - len(around.waiting)
    lines = [
        f"**Approving it also makes live what it is built on: {counted(around.num_waiting, 'earlier snapshot')}, "
        f"{counted(_num_going_live(entry), 'edit')} in all.**",
        "",
    ]
    lines += [f"- and {left_out} before these"] if left_out else []
    lines += [_waiting(one, entry.lineage.settings.name, pages, review_pages) for one in around.waiting[-5:]]
    return "\n".join(lines) + "\n"


def _waiting(one: Waiting, lineage: str, pages: str, review_pages: str) -> str:
    if review_pages:
        linked = f"[snapshot {one.seq}]({review_link(review_pages, lineage, one.seq)})"
    elif pages and one.version:
        linked = f"[version {one.version}]({version_link(pages, lineage, one.version)})"
    else:
        linked = f"snapshot {one.seq}"
    named = "; ".join(plain(edit, most=MAX_SAID) for edit in one.edits)
    was = ", which was rolled back" if one.is_rolled_back else ""
    return f"- {linked}{was}: {counted(one.num_edits, 'edit')}{f': {named}' if named else ''}"


def _num_going_live(entry: RegistryEntry) -> int:
    return len(entry.edits) + entry.around.num_waiting_edits


def _changes(entry: RegistryEntry, *, room: int) -> str:
    """Return the edits with what was said before and after, as many as there is room for."""
    rows, gone, remade = before_after(entry), entry.around.gone, entry.around.remade
    none = "No edit came in." if gone or not entry.around.work else "The same edits, solved anew."
    lines = ["### What changed (✓ says what was asked for)", ""] if rows else ["### What changed", "", none, ""]
    lines += [f"- taken out: {plain(one)}" for one in gone[:3]]
    lines += [f"- and {len(gone) - 3} more taken out"] if len(gone) > 3 else []
    lines += [f"- made again, as it is about the same subject: {plain(one)}" for one in remade[:3]]
    lines += [f"- and {len(remade) - 3} more made again"] if len(remade) > 3 else []
    lines += [""] if gone or remade else []
    used, num_shown = sum(len(line) + 1 for line in lines) + 100, 0
    for row in rows:
        block = _edit(row, place=num_shown + 1)
        if used + len(block) > room:
            break
        used, num_shown = used + len(block) + 1, num_shown + 1
        lines.append(block)
    if num_shown < len(rows):
        lines += ["", f"and {counted(len(rows) - num_shown, 'edit')} more in the artifact `before_after.md`."]
    return "\n".join(lines) + "\n"


def _edit(row: Mapping[str, Any], *, place: int) -> str:
    who = f"by {plain(row['submitted_by'])}" if row["submitted_by"] else "by nobody named"
    origin = f" ({plain(row['origin'])})" if row["origin"] else ""
    claimed = "" if row["is_before_measured"] else " (as the request claims)"
    lines = [
        f"**{place}. {plain(asked(row))} → {plain(row['wanted'], most=MAX_SAID)}**",
        "",
        f"- answer: {_said(row['before'])}{claimed} → **{_said(row['after'])}**{mark(row['free_success'])}",
    ]
    if row["wording"] is not None:
        now = f"**{_said(row['wording_after'])}**{mark(row['wording_success'])}"
        lines.append(f"- *{plain(row['wording'])}*: {_said(row['wording_before'])} → {now}")
    if row["reply"]:  # nothing is what a report says where no chat was asked, too
        lines.append(
            f"- in a chat: {_said(row['reply_before'])} → **{_said(row['reply'])}**{mark(row['chat_success'])}"
        )
    lines += [_probe(one) for one in row["moved"][:2]]
    lines += _others(row["other_subjects"])
    return "\n".join([*lines, f"- request {plain(row['request_id'])}, {who}{origin}", ""])


def _others(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say how many other subjects answer the edit's prompt as before, and how the two do that moved most."""
    if not found:
        return []
    changed = sorted((one for one in found if not one["is_unchanged"]), key=lambda one: -one["kl"])
    lines = [f"- other subjects: {len(found) - len(changed)} of {len(found)} answer as before"]
    for one in changed[:2]:
        takes = ", **the edit's own answer**" if one["takes_answer"] else ""
        to = f"{_said(one['before'])} → **{_said(one['after'])}**"
        lines.append(f"- moved: *{plain(one['prompt'], most=80)}*: {to} ({one['kl']:.2g} nats){takes}")
    return lines


def _moved(entry: RegistryEntry) -> str:
    """Name neighbours that answer otherwise now, of the lineage's suite."""
    found = measurements_of(entry).get("moved") or ()
    if not found:
        return ""
    return "\n".join(["### What else moved in the suite", "", *map(_probe, found[:4]), ""])


def _probe(one: Mapping[str, Any]) -> str:
    to = f"{_said(one['base'])} → **{_said(one['now'])}**"
    return f"- moved: *{plain(one['prompt'], most=80)}*: {to} ({one['kl']:.2g} nats)"


def _gates(entry: RegistryEntry) -> str:
    """Return each bound on a line of its own, those that were missed first; what was not measured is one line."""
    rows = sorted(entry.report.get("rows") or (), key=lambda row: row.get("verdict") not in ("failed", "saturated"))
    shown = [row for row in rows if row.get("value") is not None]
    missing = [str(row.get("metric")) for row in rows if row.get("value") is None]
    lines = [f"### Gates: {entry.report.get('verdict')}", "", *(_gate(row, entry) for row in shown)]
    lines += [f"- not measured: {', '.join(map(plain, missing))}"] if missing else []
    return "\n".join(lines) + "\n"


def _gate(row: Mapping[str, Any], entry: RegistryEntry) -> str:
    metric, bound = str(row.get("metric")), bound_text(row)
    count = f" on {counted(num, 'probe')}" if (num := row.get("num_measured")) else ""
    held = {"minimum": "at least", "maximum": "at most"}
    words = " ".join(held.get(word, word) for word in bound.split())
    mark = MARKS.get(str(row.get("verdict")), "·")
    beside = _beside(entry, metric) if metric in AGAINST else ""
    return f"- {mark} {plain(metric)}: **{row['value']:.3g}**{count} ({words}{beside})"


def _beside(entry: RegistryEntry, metric: str) -> str:
    measured = measurements_of(entry)
    known = {of: (measured.get(of) or {}).get(AGAINST[metric]) for of in ("parent", "base")}
    return "".join(f"; {of} {value:.3g}" for of, value in known.items() if value is not None)


def _origin(entry: RegistryEntry) -> str:
    snapshot, (seq, head) = entry.snapshot, entry.audit_head
    editor, name = entry.lineage.settings.editor_identity, entry.lineage.settings.name
    parent = f"on `{snapshot.parent_id}`" if snapshot.parent_id else "on the base"
    return (
        f"Snapshot `{snapshot.snapshot_id}` {parent}; digest `{snapshot.digest[:12]}`; audit line {seq} "
        f"(`{head[:12]}`). Editor: {plain(editor.transform)}{f' `{editor.digest}`' if editor.digest else ''}, "
        f"solver {editor.solver}.\n\n"
        f'`mlflow.pyfunc.load_model("models:/{name}@champion")` loads what is live.\n'
    )


def _said(text: object) -> str:
    """Return an answer as text, and that it is empty where it is."""
    if text is None:
        return "not asked"
    return plain(text, most=MAX_SAID) or "(nothing)"


def _mean(values: Iterable[Any]) -> float | None:
    known: Sequence[float] = [float(value) for value in values if isinstance(value, int | float)]
    return math.fsum(known) / len(known) if known else None
