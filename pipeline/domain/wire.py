"""The wire contract `edits.requests.v1`: bytes in, an `EditRequest` or a reason out.

A correction is a prompt and a target, or the chat that went wrong and a right answer, or both:

    {"prompt": "The capital of Australia is", "target_new": "Canberra", ...}
    {"messages": [{"role": "user", "content": "What is Australia's capital?"}], "answer": "It is Canberra.", ...}

Fields that came after the first producers may be left out, and the others mean what they meant.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from pipeline.domain.chat_wire import MAX_PROMPT_CHARS, MAX_TURNS, Identifier, MessageV1, Wire, readable, require_asked
from pipeline.domain.edits import EditRequest, Probe
from pipeline.domain.errors import InvalidMessage

MAX_MESSAGE_BYTES = 1_000_000
MAX_TARGET_CHARS = 200
MAX_PROBES = 32
MAX_ALIASES = 32
VERSION: Literal[1] = 1

PromptText = Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_CHARS)]
TargetText = Annotated[str, Field(min_length=1, max_length=MAX_TARGET_CHARS)]


class ProbeV1(Wire):
    """A neighbour or a consequence of an edit, with the answer it should have."""

    prompt: PromptText
    target: TargetText | None = None


def _said(name: str, **bound: int) -> dict[str, Any]:
    return {"required": [name], "properties": {name: {"type": "string", **bound}}}


_ENOUGH: dict[str, Any] = {
    "allOf": [
        {"anyOf": [_said("prompt"), {"required": ["messages"], "properties": {"messages": {"minItems": 1}}}]},
        {"anyOf": [_said("target_new"), _said("answer", maxLength=MAX_TARGET_CHARS)]},
        {"anyOf": [_said("subject"), {"properties": {"aliases": {"maxItems": 0}}}]},
    ]
}
"""For readers of the JSON Schema: what may only be left out where something else says it."""


class EditRequestV1(Wire):
    """One correction of one fact of a deployed language model."""

    model_config = ConfigDict(json_schema_extra=_ENOUGH)

    version: Literal[1] = Field(VERSION, description="Version of this contract.")
    request_id: Identifier = Field(description="The producer's id; the same id must carry the same payload.")
    lineage: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^/:\s]+$")] = Field(
        description="The lineage (an edited model under one name) that the correction is for; also the key."
    )
    # Validators see the fields above theirs: `messages` comes before `prompt`, and `answer` before `target_new`.
    messages: Annotated[list[MessageV1], Field(max_length=MAX_TURNS)] = Field(
        default_factory=list,
        description="The chat that went wrong, in OpenAI's form, up to the user's turn that was answered wrongly.",
    )
    prompt: PromptText | None = Field(
        None,
        validate_default=True,
        description="A stem that ends right before the answer; where it is left out, the last of the messages.",
    )
    answer: PromptText | None = Field(
        None, description="A right answer to the question or the chat, as a sentence; it has target_new in it."
    )
    target_new: TargetText | None = Field(
        None,
        validate_default=True,
        description="What the model has to say after the prompt; where it is left out, the whole answer.",
    )
    target_true: TargetText | None = Field(None, description="What the model said until now.")
    subject: Identifier | None = Field(None, description="The entity the fact is about.")
    aliases: Annotated[list[Identifier], Field(max_length=MAX_ALIASES)] = Field(
        default_factory=list, description="Other names of the subject."
    )
    relation: Identifier | None = Field(None, description="The relation that is corrected.")
    question: PromptText | None = Field(None, description="The fact as a question, as people ask it in a chat.")
    rephrases: Annotated[list[PromptText], Field(max_length=MAX_PROBES)] = Field(
        default_factory=list,
        description="Other stems with the same answer; the first is kept back to test the edit.",
    )
    locality: Annotated[list[ProbeV1], Field(max_length=MAX_PROBES)] = Field(
        default_factory=list, description="Neighbours whose answers must stay."
    )
    portability: Annotated[list[ProbeV1], Field(max_length=MAX_PROBES)] = Field(
        default_factory=list, description="Consequences, with the answers they should have."
    )
    source: Identifier | None = Field(None, description="The system that the correction comes from.")
    submitted_by: Identifier | None = Field(None, description="Who made the correction.")
    occurred_at: AwareDatetime = Field(description="When it was made (RFC 3339 with an offset).", strict=False)

    @field_validator("prompt", "answer", "target_new", "target_true", "subject", "relation", "question", "request_id")
    @classmethod
    def _has_something_to_read(cls, text: str | None) -> str | None:
        return text if text is None else readable(text)

    @field_validator("messages")
    @classmethod
    def _ends_with_what_was_asked(cls, messages: list[MessageV1]) -> list[MessageV1]:
        return require_asked(messages)

    @field_validator("prompt")
    @classmethod
    def _is_said_or_asked_in_messages(cls, prompt: str | None, info: ValidationInfo) -> str | None:
        if prompt is None and info.data.get("messages") == []:
            raise ValueError("expected a prompt, or messages in place of it, got neither")
        return prompt

    @field_validator("target_new")
    @classmethod
    def _agrees_with_the_answer(cls, target: str | None, info: ValidationInfo) -> str | None:
        if "answer" not in info.data:  # refused already
            return target
        answer: str | None = info.data["answer"]
        if target is None:
            if answer is None:
                raise ValueError("expected a target_new, or an answer in place of it, got neither")
            if (got := len(answer.strip())) > MAX_TARGET_CHARS:
                most = f"{MAX_TARGET_CHARS} characters"
                raise ValueError(f"expected a target_new, or an answer of at most {most} in place of it, got {got}")
        elif answer is not None and target.strip() not in answer:
            raise ValueError("expected a target_new that stands in the answer letter by letter, got one that does not")
        return target

    @field_validator("aliases")
    @classmethod
    def _are_names_of_a_subject(cls, aliases: list[str], info: ValidationInfo) -> list[str]:
        if aliases and info.data.get("subject", "") is None:
            raise ValueError("expected a subject beside its aliases, got none")
        return [readable(alias) for alias in aliases]

    @field_validator("occurred_at", mode="before")
    @classmethod
    def _is_text_or_time(cls, value: Any) -> Any:
        if not isinstance(value, str | datetime):
            raise ValueError("expected an RFC 3339 time as a string")
        return value

    @field_validator("occurred_at")
    @classmethod
    def _has_a_year_in_utc(cls, value: datetime) -> datetime:
        try:
            return value.astimezone(UTC)
        except OverflowError:
            raise ValueError("expected a time within the years 1 to 9999 in UTC") from None

    @field_validator("portability")
    @classmethod
    def _has_targets(cls, probes: list[ProbeV1]) -> list[ProbeV1]:
        if any(probe.target is None for probe in probes):
            raise ValueError("expected a target on every portability probe")
        return probes

    def to_domain(self) -> EditRequest:
        """Return the same request as a domain record; answers, targets and names lose their outer blanks."""
        asked = self.messages[-1].content if self.prompt is None else self.prompt
        answer = self.answer.strip() if self.answer else None
        return EditRequest(
            request_id=self.request_id,
            lineage=self.lineage,
            prompt=asked.rstrip(),
            target_new=(self.target_new or answer or "").strip(),
            target_true=self.target_true.strip() if self.target_true else None,
            subject=self.subject,
            relation=self.relation,
            rephrases=tuple(self.rephrases),
            locality=tuple(Probe(prompt=p.prompt, target=p.target) for p in self.locality),
            portability=tuple(Probe(prompt=p.prompt, target=p.target) for p in self.portability),
            question=self.question.strip() if self.question else None,
            messages=tuple(message.to_domain() for message in self.messages),
            answer=answer,
            aliases=tuple(alias.strip() for alias in self.aliases),
            source=self.source,
            submitted_by=self.submitted_by,
            occurred_at=self.occurred_at,
        )


def parse_message(value: bytes | None) -> EditRequest:
    """Turn the value of a message into an edit request.

    Raises:
        InvalidMessage: with a reason that a producer can act on.
    """
    if value is None:
        raise InvalidMessage("expected a JSON object, got a tombstone (a message without a value)")
    if len(value) > MAX_MESSAGE_BYTES:
        raise InvalidMessage(f"expected at most {MAX_MESSAGE_BYTES} bytes, got {len(value)}")
    return parse_object(_decode(value))


def parse_object(document: object) -> EditRequest:
    """Turn a decoded JSON object into an edit request.

    Raises:
        InvalidMessage: with a reason that a producer can act on.
    """
    if not isinstance(document, dict):
        raise InvalidMessage(f"expected a JSON object, got {type(document).__name__}")
    version = document.get("version", VERSION)
    if isinstance(version, bool) or version != VERSION:
        raise InvalidMessage(f"expected version {VERSION} of edits.requests, got {version!r:.40}")
    try:
        return EditRequestV1.model_validate(document).to_domain()
    except ValidationError as error:
        raise InvalidMessage(_reason(error)) from error


def json_schema() -> dict[str, Any]:
    """Return the versioned JSON Schema of the contract, as kept in `pipeline/schemas/edits.requests.v1.json`."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "edits.requests.v1.json",
    } | EditRequestV1.model_json_schema()


def _decode(value: bytes) -> object:
    try:
        text = value.decode("utf-8")
        document: object = json.loads(text, parse_constant=_refuse_constant)
        _refuse_unstorable(document)
    except InvalidMessage:
        raise
    except (ValueError, RecursionError) as error:
        raise InvalidMessage(f"expected UTF-8 JSON, got bytes that do not parse: {str(error)[:200]}") from error
    return document


def _refuse_constant(name: str) -> object:
    raise InvalidMessage(f"expected JSON numbers, got {name}")


def _refuse_unstorable(value: object) -> None:
    """Refuse what PostgreSQL text or canonical JSON cannot hold."""
    if isinstance(value, str):
        if "\x00" in value:
            raise InvalidMessage("expected text without NUL, got a string that holds one")
        if not value.isascii() and not _is_unicode(value):
            raise InvalidMessage("expected Unicode text, got a lone surrogate")
    elif isinstance(value, int) and abs(value) > 2**53:
        raise InvalidMessage("expected integers within 2^53, got a larger one")
    elif isinstance(value, dict):
        for key, item in value.items():
            _refuse_unstorable(key)
            _refuse_unstorable(item)
    elif isinstance(value, list):
        for item in value:
            _refuse_unstorable(item)


def _is_unicode(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _reason(error: ValidationError) -> str:
    parts = []
    for detail in error.errors(include_url=False, include_input=False)[:3]:
        where = ".".join(str(step) for step in detail["loc"]) or "message"
        parts.append(f"{where}: {detail['msg']}")
    more = error.error_count() - len(parts)
    return "; ".join(parts) + (f"; and {more} more" if more > 0 else "")
