"""What a submitter is told of an edit that was judged: what the model answers now, and what can be done about it.

    refusal(score, policy, request)
    # after the edit the model answers 'Lyon' to 'The capital of France is' (wanted 'Paris'); send it again with ...

What strangers wrote and what a model said is quoted on one line and cut, so that a reason has a bounded length.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

from pipeline.domain.edits import EditRequest
from pipeline.domain.formats.counting import counted
from pipeline.domain.gates import GatePolicy, GateReport, GateRow, Verdict
from pipeline.domain.measurements import EditScore, OtherSubjectScore, share

MAX_QUOTED = 80
"""Most characters of a text that is quoted."""
REWORD = "send it again with another wording of the prompt, or with more rephrases"
"""What helps where an edit does not hold."""
NARROW = "send it again with a prompt that is about this subject alone, or with these neighbours as locality probes"
"""What helps where an edit moves more than its own fact."""
NAME_IT = "send it again with its subject, so that others of its kind are held where they are"
"""What helps where an edit that names no subject moves others."""
CHOOSE = "send it again with another wording of the prompt, or after that fact has been reverted"
"""What helps where the model cannot say two facts about one subject."""
LATER = "send it again later: it may pass beside other edits"
"""What helps where the model as a whole was moved too far."""


def refusal(policy: GatePolicy, score: EditScore, request: EditRequest | None) -> str | None:
    """Return why an edit fails by what was measured of it alone, and what to do; None if it does not.

    Args:
        policy: the bounds.
        score: what was measured.
        request: what was asked; what it says is not quoted if None.
    """
    if not score.edit_success:
        found = f"{score.token_fraction:.2f} of the target's tokens are the most probable ones"
        return _sentence(f"{_answered(score, request)}, {found}", _about_subject(score), advice=REWORD)
    moved = score.locality_kl
    if moved is not None and moved > policy.edit_locality_kl_max:
        found = f"its neighbours moved by {moved:.2f} nats (maximum {policy.edit_locality_kl_max:.2f})"
        return _sentence(f"{found}{_changed(score, request)}", _about_subject(score), advice=NARROW)
    return _refusal_by_others(policy, score, request) or _refusal_by_same_subject(policy, score)


def _refusal_by_same_subject(policy: GatePolicy, score: EditScore) -> str | None:
    lost = [one for one in score.same_subject if not one.holds]
    bound = policy.same_subject_lost_max
    if bound is None or not lost or len(lost) / len(score.same_subject) <= bound:
        return None
    found = f"{_lost(score)} (maximum {bound:g} of them)"
    return _sentence(found, f"{quoted(lost[0].prompt)} is answered otherwise", _about_subject(score), advice=CHOOSE)


def _lost(score: EditScore) -> str:
    lost = [one.request_id or one.edit_id for one in score.same_subject if not one.holds]
    facts = counted(len(score.same_subject), "active fact")
    return f"{len(lost)} of {facts} about its subject would be lost, {lost[0]}"


def _refusal_by_others(policy: GatePolicy, score: EditScore, request: EditRequest | None) -> str | None:
    others, moved = score.other_subjects, score.other_subjects_kl
    taken = share(other.takes_answer for other in others)
    figures = []
    if taken is not None and policy.other_subjects_taken_max is not None and taken > policy.other_subjects_taken_max:
        num = sum(other.takes_answer for other in others)
        bound = f"maximum {policy.other_subjects_taken_max:g} of them"
        figures.append(f"{num} of {len(others)} other subjects took over the answer ({bound})")
    if moved is not None and policy.other_subjects_kl_max is not None and moved > policy.other_subjects_kl_max:
        figures.append(f"other subjects moved by {moved:.2f} nats (maximum {policy.other_subjects_kl_max:.2f})")
    if not figures:
        return None
    worst = max(others, key=lambda other: (other.takes_answer, other.kl))
    advice = NAME_IT if request is not None and not request.subject else NARROW
    return _sentence(*figures, told_of_other(worst), _about_subject(score), advice=advice)


def praise(score: EditScore) -> str:
    """Return what was measured of an edit that passes."""
    rephrases = _counted(score.rephrases, "rephrase", "follows", "follow")
    if score.chat_success is not None:
        rephrases += f", a chat answers {'rightly' if score.chat_success else 'otherwise'}"
    neighbours = _counted(score.locality, "neighbour", "answers as before", "answer as before")
    return _sentence(
        "the target is the most probable answer",
        rephrases,
        neighbours,
        *_others(score),
        *_same_subject(score),
        _about_subject(score),
    )


def _counted(flags: Sequence[bool], noun: str, one: str, more: str) -> str:
    """Return how many of something are so: `2 of 3 neighbours answer as before`."""
    if not flags:
        return f"{noun}s not measured"
    return f"{sum(flags)} of {counted(len(flags), noun)} {one if len(flags) == 1 else more}"


def refusal_by_report(report: GateReport, edit_id: str, request: EditRequest) -> str:
    """Return why an edit that was tried by itself, or on top of what was accepted, is refused, and what to do."""
    own = next((row for row in report.edits if row.edit_id == edit_id and not row.passed), None)
    if own is not None:
        return own.reason
    score = next((score for score in report.measurements.edits if score.edit_id == edit_id), None)
    failed = [row for row in report.rows if row.verdict is Verdict.failed]
    told = [_by_row(row, score, request) for row in failed] if score is not None else []
    if not told:
        return report.summary
    advice = [of_row for _, of_row in told]
    return _sentence(*dict.fromkeys(found for found, _ in told), advice=advice[0])


def quoted(text: str) -> str:
    """Return a text in quotation marks, on one line and cut where it is long, never within a character."""
    line = " ".join(text.split())
    if len(line) > MAX_QUOTED:
        end = MAX_QUOTED - 1
        while end > 1 and (unicodedata.combining(line[end]) or line[end] in "\u200d\ufe0f"):
            end -= 1  # what follows belongs to the character before
        line = line[:end].rstrip("\u200d") + "…"
    return f"'{line}'"


def _by_row(row: GateRow, score: EditScore, request: EditRequest) -> tuple[str, str]:
    """Return what a row that failed says of one edit, and what to do."""
    figures = f"{row.metric} {row.value:.3g} ({row.bound})"
    match row.metric:
        case "edit_success" | "free_success":
            return f"{_answered(score, request)}: {figures}", REWORD
        case "generalization" | "generalization_other_context":
            missed = _first(request.unseen_rephrases(0), ())
            about = f", as after {quoted(missed)}" if missed else ""
            return f"other wordings do not follow{about}: {figures}", REWORD
        case "chat_success":
            asked = quoted(request.chat_question.question)
            return f"in a chat the model replies {quoted(score.reply)} to {asked}: {figures}", REWORD
    return f"the model as a whole was moved too far: {figures}", LATER


def _answered(score: EditScore, request: EditRequest | None) -> str:
    said = f"answers {quoted(score.generated)}" if score.generated.strip() else "answers nothing"
    if request is None:
        return f"after the edit the model {said}"
    asked = request.chat_question.question if request.is_chat else request.prompt
    return f"after the edit the model {said} to {quoted(asked)} (wanted {quoted(request.target_new)})"


def _changed(score: EditScore, request: EditRequest | None) -> str:
    """Return the first neighbour that is answered otherwise, if there is one."""
    probes = [probe.prompt for probe in request.locality] if request else []
    moved = _first(probes, score.locality)
    return f": {quoted(moved)} is answered otherwise" if moved else ""


def _first(texts: Iterable[str], kept: Iterable[bool]) -> str | None:
    """Return the first text that is not kept; the first one if nothing is said of any."""
    texts, flags = list(texts), list(kept)
    found = [text for text, flag in zip(texts, flags, strict=False) if not flag] if flags else texts
    return found[0] if found else None


def _others(score: EditScore) -> tuple[str, ...]:
    others = score.other_subjects
    if not others:
        return ()
    moved = [other for other in others if not other.is_unchanged]
    if not moved:
        return (f"{len(others)} other {'subject' if len(others) == 1 else 'subjects'} answered as before",)
    worst = max(moved, key=lambda other: other.kl)
    return (f"{len(moved)} of {len(others)} other subjects answered otherwise, {told_of_other(worst)}",)


def _same_subject(score: EditScore) -> tuple[str, ...]:
    facts = score.same_subject
    if not facts:
        return ()
    if not all(one.holds for one in facts):
        return (_lost(score),)
    return (f"{counted(len(facts), 'active fact')} about its subject {'holds' if len(facts) == 1 else 'hold'}",)


def told_of_other(other: OtherSubjectScore) -> str:
    """Return what became of one question about another subject."""
    became = "took over the answer" if other.takes_answer else "moved"
    return (
        f"{quoted(other.subject)} {became}: {quoted(other.prompt)} was {quoted(other.before)}, is {quoted(other.after)}"
    )


def _about_subject(score: EditScore) -> str:
    return "its prompt does not name its subject as a word" if score.names_subject is False else ""


def _sentence(*parts: str, advice: str = "") -> str:
    return "; ".join(part for part in (*parts, advice) if part)
