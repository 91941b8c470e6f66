"""A fact to change and how to test it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pipeline.domain.formats.canonical import canonical_json, sha256_json
from pipeline.domain.formats.counting import spoken
from pipeline.domain.language.names import last_mention, renamed
from pipeline.domain.language.spelling import normalised
from pipeline.domain.prompts import ChatPrompt, ChatTurn, Prompt, asked_in_chat, begun_before, is_question

MAX_AHEAD = timedelta(days=1)
"""How far ahead of the database's clock a correction may be dated unless a setting says otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """One question put to the model to see what an edit did beyond its own prompt."""

    prompt: str
    """A stem that ends right before the answer."""
    target: str | None = None
    """The answer; None on a locality probe means: whatever the base says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EditRequest:
    """One correction, as a producer sent it."""

    request_id: str
    """The producer's own id, unique in a lineage."""
    lineage: str
    """Name of the lineage the correction is for."""
    prompt: str
    """A stem that ends right before the answer; of a request that came only as a chat, the user's last turn."""
    target_new: str
    """What the model has to say after the prompt."""
    target_true: str | None = None
    """What the model said until now, if the producer knows."""
    subject: str | None = None
    """The entity the fact is about, as it stands in the prompt."""
    relation: str | None = None
    """The relation that is corrected; with the subject it names the fact."""
    rephrases: tuple[str, ...] = ()
    """Other stems with the same answer; each is a probe or an edit row, never both: see `row_rephrases`."""
    locality: tuple[Probe, ...] = ()
    """Neighbours whose answers must stay."""
    portability: tuple[Probe, ...] = ()
    """One-hop consequences, with the answers they should now have."""
    question: str | None = None
    """The fact as a question, as people ask it in a chat."""
    messages: tuple[ChatTurn, ...] = ()
    """The chat in which the model answered wrongly, up to the user's last turn."""
    answer: str | None = None
    """A right answer to the question or the chat, as a sentence; `target_new` stands in it."""
    aliases: tuple[str, ...] = ()
    """Other names of the subject."""
    source: str | None = None
    """The system the correction comes from."""
    submitted_by: str | None = None
    """Who made the correction, as the producer claims."""
    occurred_at: datetime
    """When the correction was made, with a time zone; the later of two corrections of a fact wins."""

    @property
    def is_chat(self) -> bool:
        """Whether the correction came only as a chat: then its prompt is the user's last turn."""
        return bool(self.messages) and self.messages[-1].content.rstrip() == self.prompt

    @property
    def own_prompt(self) -> Prompt:
        """What the target has to follow before all: the stem, or the chat where the correction came only as one."""
        return self.chat_prompt if self.is_chat else self.prompt

    @property
    def names_subject(self) -> bool | None:
        """Whether the own prompt names the subject as whole words; None without a subject."""
        own = self.own_prompt
        texts = (own,) if isinstance(own, str) else (*(turn.content for turn in own.turns), own.begun)
        return any(last_mention(text, self.subject) for text in texts) if self.subject else None

    def own_prompt_about(self, other: str, *, subject: str | None = None) -> Prompt | None:
        """Return the own prompt with another subject wherever it names its own; None where it names none.

        Args:
            other: the other subject.
            subject: the name that it takes the place of; the request's subject and its aliases if None.
        """
        known = (self.subject, *self.aliases) if self.subject else ()
        names = (subject,) if subject else sorted(known, key=len, reverse=True)

        def told(text: str) -> str:
            found = next((name for name in names if last_mention(text, name)), None)
            return renamed(text, found, other) if found else text

        own = self.own_prompt
        if isinstance(own, str):
            about: Prompt = told(own)
        else:
            turns = tuple(ChatTurn(role=turn.role, content=told(turn.content)) for turn in own.turns)
            about = ChatPrompt(turns=turns, begun=told(own.begun))
        return None if about == own else about

    @property
    def chat_prompt(self) -> ChatPrompt:
        """The fact in a chat, with the beginning of an answer where one is known.

        The turns are those that the producer sent, else the question, else the prompt as a user might type it.
        """
        begun = begun_before(self.answer, self.target_new)
        if not begun and not self.is_chat and not is_question(self.prompt):
            begun = self.prompt  # a stem is a beginning of the answer to any question about the fact
        return ChatPrompt(turns=self.chat_question.turns, begun=begun)

    @property
    def chat_question(self) -> ChatPrompt:
        """The fact as it is asked in a chat, with the whole answer left to the model."""
        if self.messages:
            return ChatPrompt(turns=self.messages)
        return asked_in_chat(self.question or self.prompt)

    @property
    def has_question(self) -> bool:
        """Whether the producer said how the fact is asked: by a question, by a chat, or by a prompt that is one."""
        return bool(self.question or self.messages) or is_question(self.prompt)

    @property
    def subject_key(self) -> str:
        """What facts about one subject have in common, as the database finds them; empty without a subject."""
        return (self.subject or "").lower()

    @property
    def conflict_key(self) -> str:
        """The key of the fact: two corrections with the same key cannot both hold."""
        return self.fact_key(normalised)

    @property
    def payload_digest(self) -> str:
        """SHA-256 of everything the producer said; a repeated id must repeat it."""
        return sha256_json(self.as_json())

    def fact_key(self, folded: Callable[[str], str]) -> str:
        """Return the key of the fact under a rule for which spellings are one."""
        if self.subject and self.relation:
            return canonical_json([self.lineage, folded(self.subject), folded(self.relation)])
        turns = [folded(turn.content) for turn in self.messages if turn.role != "system"]
        if self.is_chat and len(turns) > 1:  # "And its capital?" is about another country in every chat
            return canonical_json([self.lineage, turns])
        return canonical_json([self.lineage, folded(self.prompt)])

    def row_rephrases(self, limit: int) -> tuple[str, ...]:
        """Return the rephrases that may be edit rows: at most `limit`, never the first, which is the probe."""
        return self._distinct_rephrases()[1 : 1 + limit]

    def unseen_rephrases(self, limit: int) -> tuple[str, ...]:
        """Return the rephrases that generalization is measured on when up to `limit` of them are edit rows."""
        distinct = self._distinct_rephrases()
        return distinct[:1] + distinct[1 + limit :]

    def _distinct_rephrases(self) -> tuple[str, ...]:
        """Return the rephrases in order, each wording once and without those that an editor sees in any case.

        These are the prompt, the same with another name of the subject, and the question.
        """
        worded: dict[str, str] = {}
        for text in self.rephrases:
            worded.setdefault(normalised(text), text)
        others = (renamed(self.prompt, self.subject, alias) for alias in self.aliases) if self.subject else ()
        for seen in (self.prompt, *others, self.question or ""):
            worded.pop(normalised(seen), None)
        return tuple(worded.values())

    def as_json(self) -> dict[str, Any]:
        """Return the request as a JSON object, in the field names of the wire.

        Fields of later producers are left out where they are empty, so that older requests keep their digest.
        """
        later = {
            "question": self.question,
            "messages": [{"role": turn.role, "content": turn.content} for turn in self.messages],
            "answer": self.answer,
            "aliases": list(self.aliases),
        }
        return {name: value for name, value in later.items() if value} | {
            "request_id": self.request_id,
            "lineage": self.lineage,
            "prompt": self.prompt,
            "target_new": self.target_new,
            "target_true": self.target_true,
            "subject": self.subject,
            "relation": self.relation,
            "rephrases": list(self.rephrases),
            "locality": [{"prompt": probe.prompt, "target": probe.target} for probe in self.locality],
            "portability": [{"prompt": probe.prompt, "target": probe.target} for probe in self.portability],
            "source": self.source,
            "submitted_by": self.submitted_by,
            "occurred_at": self.occurred_at.astimezone(UTC).isoformat(),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Edit:
    """A request that has been recorded: its identity inside Corrigenda."""

    edit_id: str
    """UUID given at intake."""
    request: EditRequest
    """What was asked."""
    attempts: int = 0
    """How often it was tried by itself so far and came to no verdict."""
    traceparent: str | None = None
    """Where the trace of the request goes on, as W3C writes it; None if there is no trace."""


def too_far_ahead(occurred_at: datetime, now: datetime, most: timedelta) -> str:
    """Return why a correction that is dated ahead of the database's clock is refused."""
    clock = now.isoformat(timespec="seconds")
    return (
        f"expected an occurred_at at most {spoken(most)} ahead of the database's clock, which is at {clock}; got "
        f"{occurred_at.isoformat()}, {spoken(occurred_at - now)} ahead"
    )
