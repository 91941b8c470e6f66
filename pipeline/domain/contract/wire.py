"""The wire contract `edits.requests.v1`: bytes in, an `EditRequest` or a reason out.

A correction is a prompt and a target, or the chat that went wrong and a right answer, or both:

    {"prompt": "The capital of Australia is", "target_new": "Canberra", ...}
    {"messages": [{"role": "user", "content": "What is Australia's capital?"}], "answer": "It is Canberra.", ...}

Fields that came after the first producers may be left out, and the others mean what they meant.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from pipeline.domain.contract.chat_wire import (
    MAX_PROMPT_CHARS,
    MAX_TURNS,
    Identifier,
    MessageV1,
    Wire,
    readable,
    require_asked,
)
from pipeline.domain.contract.reasons import reasons_of
from pipeline.domain.edits import EditRequest, Probe
from pipeline.domain.errors import InvalidInput, InvalidMessage
from pipeline.domain.formats.json_lines import json_value, kind_of

MAX_MESSAGE_BYTES = 1_000_000
MAX_TARGET_CHARS = 200
MAX_PROBES = 32
MAX_ALIASES = 32
MAX_FIELDS = 64
"""Bound of an object's fields, known or not: every unknown one costs a sentence."""
VERSION: Literal[1] = 1
RFC_3339 = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})$"
_TIME = re.compile(RFC_3339)
_LEAP_SECOND = slice(17, 19)

PromptText = Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_CHARS), AfterValidator(readable)]
TargetText = Annotated[str, Field(min_length=1, max_length=MAX_TARGET_CHARS), AfterValidator(readable)]
Name = Annotated[Identifier, AfterValidator(readable)]


class ProbeV1(Wire):
    """A neighbour or a consequence of an edit, with the answer it should have."""

    prompt: PromptText
    target: TargetText | None = None

    def to_domain(self) -> Probe:
        """Return the same probe as a domain record, trimmed as an edit's prompt and target are."""
        return Probe(prompt=self.prompt.rstrip(), target=self.target.strip() if self.target else None)


def _as_probe(value: Any) -> Any:
    if not isinstance(value, str | dict | ProbeV1):
        raise ValueError(f"expected a stem, or an object with its prompt, got {kind_of(value)}")
    return {"prompt": value} if isinstance(value, str) else value


StemOrProbe = Annotated[ProbeV1, BeforeValidator(_as_probe, json_schema_input_type=PromptText | ProbeV1)]
"""A probe, or its prompt alone: most neighbours have no answer that their producer knows."""


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
    request_id: Name = Field(description="The producer's id; the same id must carry the same payload.")
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
    subject: Name | None = Field(None, description="The entity the fact is about.")
    aliases: Annotated[list[Name], Field(max_length=MAX_ALIASES)] = Field(
        default_factory=list, description="Other names of the subject."
    )
    relation: Name | None = Field(None, description="The relation that is corrected.")
    question: PromptText | None = Field(None, description="The fact as a question, as people ask it in a chat.")
    rephrases: Annotated[list[PromptText], Field(max_length=MAX_PROBES)] = Field(
        default_factory=list,
        description="Other stems with the same answer; the first is kept back to test the edit.",
    )
    locality: Annotated[list[StemOrProbe], Field(max_length=MAX_PROBES)] = Field(
        default_factory=list,
        description="Neighbours whose answers must stay: each a stem, or an object with its prompt and target.",
    )
    portability: Annotated[list[ProbeV1], Field(max_length=MAX_PROBES)] = Field(
        default_factory=list, description="Consequences, with the answers they should have."
    )
    source: Name | None = Field(None, description="The system that the correction comes from.")
    submitted_by: Name | None = Field(None, description="Who made the correction.")
    occurred_at: AwareDatetime = Field(
        description="When it was made (RFC 3339 with an offset), by a clock that is not ahead of the database's.",
        strict=False,
        json_schema_extra={"pattern": RFC_3339},
    )

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
        return aliases

    @field_validator("occurred_at", mode="before")
    @classmethod
    def _is_rfc_3339(cls, value: Any) -> Any:
        if isinstance(value, datetime):
            return value
        if not isinstance(value, str) or _TIME.fullmatch(value) is None:
            form = "an RFC 3339 time with an offset, such as 2026-06-01T12:00:00Z, as a string"
            raise ValueError(f"expected {form}, got {value!r:.60}")
        return _after_leap_second(value) if value[_LEAP_SECOND] == "60" else value

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
        """Return the same request as a domain record; texts lose outer blanks, prompts those at their end."""
        asked = self.messages[-1].content if self.prompt is None else self.prompt
        answer = self.answer.strip() if self.answer else None
        return EditRequest(
            request_id=self.request_id,
            lineage=self.lineage,
            prompt=asked.rstrip(),
            target_new=(self.target_new or answer or "").strip(),
            target_true=self.target_true.strip() if self.target_true else None,
            subject=self.subject.strip() if self.subject else None,
            relation=self.relation.strip() if self.relation else None,
            rephrases=tuple(rephrase.rstrip() for rephrase in self.rephrases),
            locality=tuple(probe.to_domain() for probe in self.locality),
            portability=tuple(probe.to_domain() for probe in self.portability),
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
        raise InvalidMessage(f"expected a JSON object, got {kind_of(document)}")
    version = document.get("version", VERSION)
    if isinstance(version, bool) or version != VERSION:
        raise InvalidMessage(f"expected version {VERSION} of edits.requests, got {version!r:.40}")
    try:
        return EditRequestV1.model_validate(document).to_domain()
    except ValidationError as error:
        raise InvalidMessage(reasons_of(error, EditRequestV1.model_fields)) from error


def json_schema() -> dict[str, Any]:
    """Return the versioned JSON Schema of the contract, as kept in `pipeline/schemas/edits.requests.v1.json`."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "edits.requests.v1.json",
    } | EditRequestV1.model_json_schema()


def _decode(value: bytes) -> object:
    try:
        return json_value(value.decode("utf-8"), most_fields=MAX_FIELDS)
    except UnicodeDecodeError as error:
        raise InvalidMessage(f"expected UTF-8 JSON, got bytes that do not parse: {error}") from error
    except InvalidInput as error:
        raise InvalidMessage(str(error)) from error


def _after_leap_second(value: str) -> datetime:
    """Return the time that follows a leap second at once: Python's clock has none.

    Raises:
        ValueError: if it is none, which is the last second of a month in UTC.
    """
    after = datetime.fromisoformat(f"{value[:17].upper()}59{value[19:].upper()}") + timedelta(seconds=1)
    first = after.astimezone(UTC)
    if (first.day, first.hour, first.minute, first.second) != (1, 0, 0, 0):
        raise ValueError(f"expected an RFC 3339 time, got a second 60 that is no leap second: {value!r:.60}")
    return after
