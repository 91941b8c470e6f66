"""The wire contract `edits.requests.v1`: bytes in, an `EditRequest` or a reason out."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator

from pipeline.domain.edits import EditRequest, Probe
from pipeline.domain.errors import InvalidMessage

MAX_MESSAGE_BYTES = 1_000_000
MAX_PROMPT_CHARS = 2_000
MAX_TARGET_CHARS = 200
MAX_PROBES = 32
VERSION: Literal[1] = 1

Identifier = Annotated[str, Field(min_length=1, max_length=200)]
PromptText = Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_CHARS)]
TargetText = Annotated[str, Field(min_length=1, max_length=MAX_TARGET_CHARS)]


class _Wire(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class ProbeV1(_Wire):
    """A neighbour or a consequence of an edit, with the answer it should have."""

    prompt: PromptText
    target: TargetText | None = None


class EditRequestV1(_Wire):
    """One correction of one fact of a deployed language model."""

    version: Literal[1] = Field(VERSION, description="Version of this contract.")
    request_id: Identifier = Field(description="The producer's id; the same id must carry the same payload.")
    lineage: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^/:\s]+$")] = Field(
        description="The lineage (an edited model under one name) that the correction is for; also the key."
    )
    prompt: PromptText = Field(description="A stem that ends right before the answer.")
    target_new: TargetText = Field(description="What the model has to say after the prompt.")
    target_true: TargetText | None = Field(None, description="What the model said until now.")
    subject: Identifier | None = Field(None, description="The entity the fact is about.")
    relation: Identifier | None = Field(None, description="The relation that is corrected.")
    rephrases: Annotated[list[PromptText], Field(max_length=MAX_PROBES)] = Field(
        default_factory=list, description="Other stems with the same answer, used to test the edit."
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

    @field_validator("prompt", "target_new", "target_true", "subject", "relation", "request_id")
    @classmethod
    def _has_something_to_read(cls, text: str | None) -> str | None:
        if text is not None and not any(char.isprintable() and not char.isspace() for char in text):
            raise ValueError("expected at least one visible character, got none")
        return text

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
        """Return the same request as a domain record; a target loses its outer blanks."""
        return EditRequest(
            request_id=self.request_id,
            lineage=self.lineage,
            prompt=self.prompt.rstrip(),
            target_new=self.target_new.strip(),
            target_true=self.target_true.strip() if self.target_true else None,
            subject=self.subject,
            relation=self.relation,
            rephrases=tuple(self.rephrases),
            locality=tuple(Probe(prompt=p.prompt, target=p.target) for p in self.locality),
            portability=tuple(Probe(prompt=p.prompt, target=p.target) for p in self.portability),
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
        if any("\ud800" <= char <= "\udfff" for char in value):
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


def _reason(error: ValidationError) -> str:
    parts = []
    for detail in error.errors(include_url=False, include_input=False)[:3]:
        where = ".".join(str(step) for step in detail["loc"]) or "message"
        parts.append(f"{where}: {detail['msg']}")
    more = error.error_count() - len(parts)
    return "; ".join(parts) + (f"; and {more} more" if more > 0 else "")
