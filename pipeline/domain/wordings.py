"""How a fact is worded: which class a rephrase is in, and whether a reply says the right answer.

A name is in a text where it stands as whole words (see `words`), which in Chinese no blanks set off:

    contains("Paris, of course", "paris")           # True
    contains("a Parisian cafe", "Paris")            # False
    contains("\u6cd5\u56fd\u7684\u9996\u90fd\u662f\u5df4\u9ece", "\u5df4\u9ece")  # True
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from pipeline.domain.edits import EditRequest
from pipeline.domain.language.answers import confirms
from pipeline.domain.language.names import named_at
from pipeline.domain.language.spelling import exact, lowered
from pipeline.domain.language.words import Span, as_said, mentions


class Wording(StrEnum):
    """How a rephrase words the fact, as far as an edit of the subject's key can notice."""

    same_context = "same_context"
    """The subject stands behind the same text as in the edit's prompt, so that a causal model sees the same key."""
    other_context = "other_context"
    """The subject is named behind other text."""
    unnamed = "unnamed"
    """The subject is not named: an alias or a description stands for it."""


def wording_of(rephrase: str, request: EditRequest) -> Wording:
    """Return the class of a rephrase.

    The edit's row is the last mention of the subject in its prompt, so that is what a rephrase is compared with; one
    mention behind the same text is enough. Where no subject is known, nothing says that a key is shared or that a name
    is left out: such rephrases are `other_context`.
    """
    if not request.subject:
        return Wording.other_context
    left = {before for _, before in _mentions_behind(rephrase, request.subject)}
    if not left:
        return Wording.unnamed
    edited = [before for _, before in _mentions_behind(request.prompt, request.subject)][-1:]
    return Wording.same_context if left.intersection(edited) else Wording.other_context


def contains(text: str, name: str) -> bool:
    """Return whether a name stands in a text as whole words; a name of nothing does not."""
    return bool(mentions(as_said(text), as_said(name)))


def can_be_asked(request: EditRequest) -> bool:
    """Return whether a reply in a chat can show that an edit holds: there is a question, which does not say the answer.

    A reply that only takes up the question's words would be right where the question names the new answer.
    """
    return request.has_question and not _is_told(request, request.target_new)


def is_right(reply: str, request: EditRequest) -> bool:
    """Return whether a free reply to a request's question says the new answer, and not the old one.

    A mention within a longer name is none: neither "New York" in "New York City" where that is the other answer, nor
    "BBC" in the subject "BBC One". An old answer that the question itself names is not held against the reply, which
    may have to deny it. Where the old and the new answer differ only by what a comparison folds, as "Iphone" and
    "iPhone" do, the new one has to be said letter by letter.
    """
    if _is_respelt(request):
        return contains(reply, request.target_new) and exact(request.target_new) in exact(reply)
    said = as_said(reply)
    subjects, new, old = (
        mentions(said, as_said(name or "")) for name in (request.subject, request.target_new, request.target_true)
    )
    is_said = any(not _is_inside(span, [*subjects, *old], or_equal=False) for span in new)
    is_old = any(not _is_inside(span, [*subjects, *new], or_equal=True) for span in old)
    return is_said and (not is_old or _is_told(request, request.target_true))


def wording_success(said: str | None, *, target: str, instead_of: str | None) -> bool | None:
    """Return whether the other wording that was asked freely is answered rightly now; None where none was.

    Args:
        said: what the model says after it, `EditScore.wording_after`.
        target: the right answer.
        instead_of: the old answer, if the request names it.
    """
    return None if said is None else confirms(said, target, instead_of=instead_of)


def _is_respelt(request: EditRequest) -> bool:
    """Return whether the old answer is the new one, but for what a comparison folds."""
    old, new = request.target_true or "", request.target_new
    return exact(old) != exact(new) and lowered(as_said(old)) == lowered(as_said(new))


def _is_told(request: EditRequest, answer: str | None) -> bool:
    """Return whether the question names an answer, other than within the subject's longer name."""
    asked = as_said(request.chat_question.question)
    subjects, answers = (mentions(asked, as_said(name or "")) for name in (request.subject, answer))
    return any(not _is_inside(span, subjects, or_equal=False) for span in answers)


def _is_inside(span: Span, others: Iterable[Span], *, or_equal: bool) -> bool:
    return any(start <= span[0] and span[1] <= end and (or_equal or span != (start, end)) for start, end in others)


def _mentions_behind(text: str, name: str) -> list[tuple[Span, str]]:
    """Return where a name stands in a text, as an edit finds its subject but in either case, and what is before."""
    said, wanted = as_said(text), as_said(name)
    small = lowered(said)
    return [(span, small[: span[0]]) for span in named_at(small, lowered(wanted)) or mentions(said, wanted)]
