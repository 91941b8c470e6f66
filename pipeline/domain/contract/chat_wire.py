"""Turns of a chat on the wire, in the form in which production has them: OpenAI's.

What a log holds of a chat is taken as it is, as long as it is text and all of it reaches the model. A producer need not
know which model answers: whether its chat template takes the turns is found out when the edit is made.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from pipeline.domain.prompts import ChatTurn

MAX_PROMPT_CHARS = 2_000
MAX_TURNS = 32
MAX_TURN_CHARS = 8_000
"""Bound of a turn; the last one is the prompt, and has the prompt's bound."""
MAX_CHAT_CHARS = 16_000
"""Bound of all turns together: an edit reads them in every pass."""


def readable(text: str) -> str:
    """Return a text that has a character which a person can see.

    Raises:
        ValueError: if it has none.
    """
    if not is_readable(text):
        raise ValueError("expected at least one visible character, got none")
    return text


def is_readable(text: str) -> bool:
    """Return whether a text has a character which a person can see."""
    return any(char.isprintable() and not char.isspace() for char in text)


def as_text(content: Any) -> Any:
    """Return the parts of a turn's content as one text, a line each."""
    if not isinstance(content, list):
        return content
    for part in content:
        is_text = isinstance(part, dict) and set(part) == {"type", "text"} and part["type"] == "text"
        if not is_text or not isinstance(part["text"], str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise ValueError(f"expected a text, or parts with the type 'text' and a text, got a part {kind!r:.40}")
    return "\n".join(part["text"] for part in content)


Identifier = Annotated[str, Field(min_length=1, max_length=200)]
TurnText = Annotated[str, Field(max_length=MAX_TURN_CHARS)]
Nothing = Annotated[list[Any], Field(max_length=0)] | None
"""A list that may be there as long as it is empty."""


class Wire(BaseModel):
    """An object of the contract: values have the types that it says, and there are no other fields."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class TextPartV1(Wire):
    """A part of a turn's content."""

    type: Literal["text"] = Field(description="The only kind of part that a language model reads.")
    text: str = Field(description="What the part says.")


class MessageV1(Wire):
    """One turn of a chat, as OpenAI's chat API takes and returns it.

    What is no text is refused, because the correction would be made without it. Fields that say nothing may be there:
    logs of replies are full of them.
    """

    role: Literal["system", "developer", "user", "assistant"] = Field(
        description="Who speaks; `developer` is OpenAI's newer word for `system`."
    )
    content: Annotated[TurnText, BeforeValidator(as_text, json_schema_input_type=TurnText | list[TextPartV1])] = Field(
        description="What is said: a text, or parts of text, which become a line each. A system turn may be empty."
    )
    name: Identifier | None = Field(None, description="Which of several users speaks; not kept: models are not told.")
    refusal: None = Field(None, description="Only null.")
    annotations: Nothing = Field(None, description="Only null or empty.")
    audio: None = Field(None, description="Only null.")
    function_call: None = Field(None, description="Only null.")
    tool_calls: Nothing = Field(None, description="Only null or empty: an edit calls no tools.")

    @field_validator("content")
    @classmethod
    def _has_something_to_read(cls, text: str, info: ValidationInfo) -> str:
        return text if info.data.get("role") in ("system", "developer") else readable(text)

    def to_domain(self) -> ChatTurn:
        """Return the turn as a domain record."""
        return ChatTurn(role="system" if self.role == "developer" else self.role, content=self.content)


def require_asked(messages: list[MessageV1]) -> list[MessageV1]:
    """Return messages that end with what the user asked; none at all is a chat that nobody sent.

    Raises:
        ValueError: if the last turn is not the user's, or there is more text than an edit reads.
    """
    if not messages:
        return messages
    last = messages[-1]
    if last.role != "user":
        raise ValueError(f"expected the user's turn at the end, got one of the role {last.role!r}")
    if (got := len(last.content)) > MAX_PROMPT_CHARS:
        raise ValueError(f"expected a last turn of at most {MAX_PROMPT_CHARS} characters, got {got}")
    if (got := sum(len(message.content) for message in messages)) > MAX_CHAT_CHARS:
        raise ValueError(f"expected turns of at most {MAX_CHAT_CHARS} characters together, got {got}")
    return messages
