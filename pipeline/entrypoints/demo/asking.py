"""What a model is asked about the corrections, in which ways, and whether it answers rightly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from pipeline.domain.edits import EditRequest
from pipeline.domain.language.answers import confirms
from pipeline.domain.wordings import Wording, is_right, wording_of


class Way(StrEnum):
    """How a fact is asked for."""

    stem = "stem"
    """The prompt of the correction."""
    wording = "wording"
    """Another wording that names the subject elsewhere; the editor never saw it."""
    chat = "chat"
    """A question in the model's chat template, answered freely."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """One text put to the base and to the champion."""

    request: EditRequest
    """The correction it asks about."""
    way: Way
    """How it asks."""
    text: str
    """The stem, or the user's turn of a chat."""

    def is_answered_by(self, reply: str) -> bool:
        """Return whether a reply is right: a chat may say the new answer anywhere, a stem goes on with it."""
        if self.way is Way.chat:
            return is_right(reply, self.request)
        return confirms(reply, self.request.target_new, instead_of=self.request.target_true)


Answers = Mapping[Asked, str]
"""What a model said to each question, in the order asked."""


def asked_about(requests: Iterable[EditRequest]) -> list[Asked]:
    """Return every way in which each correction is asked for; one that came only as a chat has no stem."""
    return [Asked(request=request, way=way, text=text) for request in requests for way, text in _texts(request) if text]


def share_right(answers: Answers, way: Way) -> tuple[float | None, int]:
    """Return the share of the answers to one way that are right, and how many there are; None where there are none."""
    right = [one.is_answered_by(reply) for one, reply in answers.items() if one.way is way]
    return (sum(right) / len(right) if right else None), len(right)


def _texts(request: EditRequest) -> Iterable[tuple[Way, str | None]]:
    # The first rephrase is never an edit row, whatever the editor's settings say of the others.
    kept_back = request.unseen_rephrases(len(request.rephrases))[:1]
    yield Way.stem, None if request.is_chat else request.prompt
    yield from ((Way.wording, text) for text in kept_back if wording_of(text, request) is Wording.other_context)
    yield Way.chat, request.chat_question.question if request.has_question else None
