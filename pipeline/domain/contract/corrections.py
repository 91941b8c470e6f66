"""A correction and a user's feedback as the HTTP API takes them: the wire contract, with less to fill in."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from pydantic import AwareDatetime, Field

from pipeline.domain.contract.wire import RFC_3339, EditRequestV1, Name
from pipeline.domain.errors import InvalidInput
from pipeline.domain.formats.json_lines import kind_of

LineageName = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^/:\s]+$")]
FEEDBACK = "feedback"
"""What the source of a correction says that came as feedback."""
_CHAT = ("messages", "correction", "model")
"""Fields of feedback that have another name on the wire."""
CHAMPION = "@champion"


class CorrectionV1(EditRequestV1):
    """One correction. The fields are those of `edits.requests.v1`; what the API can fill in may be left out."""

    request_id: Name | None = Field(  # type: ignore[assignment]
        None, description="Your own id; the same id must carry the same correction. One is made up otherwise."
    )
    lineage: LineageName | None = Field(  # type: ignore[assignment]
        None, description="The lineage that the correction is for; may be left out while there is only one."
    )
    occurred_at: AwareDatetime | None = Field(  # type: ignore[assignment]
        None,
        description="When the fact was seen to be wrong, RFC 3339 with an offset; now, if left out.",
        json_schema_extra={"pattern": RFC_3339},
    )


class FeedbackV1(CorrectionV1):
    """A chat as OpenAI's API has it, with the answer that would have been right.

    It becomes a correction of the kind messages and answer. Turns of the assistant at the end, which are what was
    wrong, are left out; so is everything after the last turn of the user.
    """

    correction: str = Field(min_length=1, max_length=2_000, description="A right answer to the last turn of the user.")
    model: str | None = Field(
        None, max_length=120, description="The model that answered: the name of the lineage, with or without @champion."
    )


def correction_of(feedback: Mapping[str, Any]) -> dict[str, Any]:
    """Return the correction that feedback asks for, as an object of the wire contract that may lack fields.

    Raises:
        InvalidInput: saying what is missing.
    """
    messages, correction = feedback.get("messages"), feedback.get("correction")
    if not isinstance(messages, list) or not messages:
        got = "none" if messages in (None, []) else kind_of(messages)
        raise InvalidInput(f"messages: expected the turns of the chat that went wrong, got {got}")
    if not isinstance(correction, str) or not correction.strip():
        raise InvalidInput("correction: expected the answer that would have been right, as a text, got none")
    given = {name: value for name, value in feedback.items() if name not in _CHAT}
    if "answer" in given:
        raise InvalidInput("answer: expected the right answer in the field correction alone, got both")
    lineage = _lineage(feedback.get("model"), given.get("lineage"))
    more = {} if lineage is None else {"lineage": lineage}
    return {"source": FEEDBACK} | given | more | {"messages": _asked(messages), "answer": correction.strip()}


def _asked(messages: list[Any]) -> list[Any]:
    """Return the turns up to the last one of the user."""
    roles = [turn.get("role") if isinstance(turn, dict) else None for turn in messages]
    if "user" not in roles:
        raise InvalidInput("messages: expected a turn of the user, whose question was answered wrongly; got none")
    last = len(roles) - roles[::-1].index("user")
    return messages[:last]


def _lineage(model: Any, lineage: Any) -> Any:
    if model is None:
        return lineage
    if not isinstance(model, str):
        raise InvalidInput("model: expected the name of the model that answered, got something else than a text")
    name = model.removesuffix(CHAMPION)
    if lineage not in (None, name):
        raise InvalidInput(f"model: expected the same as lineage, {lineage!r:.80}, or none; got {model!r:.80}")
    return name


def filled_in(
    correction: Mapping[str, Any], *, request_id: str, lineage: str, submitted_by: str, occurred_at: datetime
) -> dict[str, Any]:
    """Return a correction with what may be left out, as it goes on the topic."""
    defaults = {
        "request_id": request_id,
        "lineage": lineage,
        "occurred_at": occurred_at.isoformat(),
        "source": "api",
    }
    said = {name: value for name, value in correction.items() if value is not None or name not in defaults}
    return defaults | said | {"submitted_by": submitted_by}
