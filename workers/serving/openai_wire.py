"""Requests and answers of OpenAI's API, as far as a language model of ours can serve them.

What would change an answer and cannot be done is refused by its name. What only labels a request is read over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from pipeline.domain.contract.chat_wire import as_text
from pipeline.domain.contract.reasons import place_of, reasons_of
from pipeline.domain.errors import InvalidInput
from pipeline.domain.prompts import ChatPrompt, ChatTurn, Role
from workers.serving.answering import Sampling

MAX_PROMPTS = 32
MAX_CHOICES = 8
MAX_STOPS = 4
MAX_TOKENS_TOGETHER = 262_144
"""Most tokens of all prompts and answers of a request, a prompt once for each answer to it."""
DEFAULT_TOKENS = {"chat": 512, "completion": 16}
"""Most tokens of an answer where a request does not say; 16 is OpenAI's for completions."""
CANNOT = "this server cannot do what this field asks for; leave it out"
LABELS = ("user", "metadata", "store", "safety_identifier", "prompt_cache_key", "service_tier")
"""Fields that say something about a request and nothing about its answers."""
HARMLESS: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False, 0),
    "top_logprobs": (0,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
"""Fields that clients send with the values that ask for nothing."""


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Turn(BaseModel):
    """A message of a chat: text, or parts of text. How long a chat may be, the model says."""

    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(as_text)]
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None

    @property
    def said_by(self) -> Role:
        """Who speaks, as chat templates name them."""
        return "system" if self.role == "developer" else self.role


class StreamOptions(BaseModel):
    """What a stream tells besides the answers."""

    model_config = ConfigDict(extra="ignore")
    include_usage: bool = Field(False, description="Whether the last event counts the tokens.")


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")
    model: str = Field(description="Name of a lineage.")
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stop: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=200)]],
            Field(max_length=MAX_STOPS),
            BeforeValidator(_listed),
        ]
        | None
    ) = None
    seed: int | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_what_asks_nothing(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        return {
            name: value
            for name, value in fields.items()
            if name not in LABELS and not (name in HARMLESS and (value is None or value in HARMLESS[name]))
        }

    @property
    def bound(self) -> int | None:
        """The most tokens of an answer, if the request says."""
        return self.max_tokens

    def sampling(self, default_tokens: int) -> Sampling:
        """Return how the answers are made; without a temperature as gates measure them, greedily."""
        return Sampling(
            max_tokens=self.bound or default_tokens,
            temperature=self.temperature or 0.0,
            top_p=1.0 if self.top_p is None else self.top_p,
            stop=tuple(self.stop or ()),
            seed=self.seed,
            num_choices=self.n or 1,
        )


class ChatRequest(_Asked):
    """Body of `POST /v1/chat/completions`."""

    messages: Annotated[list[Turn], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    def chat(self) -> ChatPrompt:
        """Return the turns to answer."""
        return ChatPrompt(turns=tuple(ChatTurn(role=turn.said_by, content=turn.content) for turn in self.messages))

    @property
    def bound(self) -> int | None:
        """The most tokens of an answer; the newer name counts if both are given."""
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(_Asked):
    """Body of `POST /v1/completions`."""

    prompt: Annotated[
        list[Annotated[str, Field(min_length=1)]],
        Field(min_length=1, max_length=MAX_PROMPTS),
        BeforeValidator(_listed),
    ]


def read(kind: type[ChatRequest] | type[CompletionRequest], body: bytes) -> Any:
    """Return a request.

    Raises:
        InvalidInput: naming each field that is wrong; `ids["param"]` is the first of them.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InvalidInput(reasons_of(error, unknown=CANNOT), param=place_of(first)) from None


def require_bounded(lengths: Sequence[int], asked: ChatRequest | CompletionRequest) -> None:
    """Check how much a request asks for; a single answer may be as long as the model takes.

    Args:
        lengths: most tokens of each prompt with one answer.
        asked: the request.

    Raises:
        InvalidInput: if all answers together may come to too many tokens.
    """
    num_answers, total = len(lengths) * (asked.n or 1), sum(lengths) * (asked.n or 1)
    if num_answers > 1 and total > MAX_TOKENS_TOGETHER:
        raise InvalidInput(
            f"expected prompts and answers of at most {MAX_TOKENS_TOGETHER} tokens together, got {num_answers} answers "
            f"that may come to {total}; ask for fewer or shorter ones at once",
            param="max_tokens",
        )


def error_body(message: str, *, kind: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """Return an error as OpenAI's API has it."""
    return {"error": {"message": message, "type": kind, "param": param or None, "code": code}}


Kind = Literal["chat", "completion"]


def whole(
    kind: Kind, *, about: dict[str, Any], choices: list[tuple[str, str]], usage: dict[str, int]
) -> dict[str, Any]:
    """Return an answer that is not streamed.

    Args:
        kind: of the request.
        about: id, time, model and snapshot.
        choices: text and ending of each answer, in order.
        usage: counts of tokens.
    """
    listed = [
        {"index": index, "finish_reason": ending, "logprobs": None, **_said(kind, text)}
        for index, (text, ending) in enumerate(choices)
    ]
    name = "chat.completion" if kind == "chat" else "text_completion"
    return {**about, "object": name, "choices": listed, "usage": usage}


def _said(kind: Kind, text: str) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": text, "refusal": None}} if kind == "chat" else {"text": text}


def chunk(
    kind: Kind,
    *,
    about: dict[str, Any],
    index: int = 0,
    text: str = "",
    ending: str | None = None,
    is_first: bool = False,
    usage: dict[str, int] | None = None,
) -> dict[str, Any]:
    """Return one event of a stream: what one answer goes on with, or at the end the counts of all."""
    name = "chat.completion.chunk" if kind == "chat" else "text_completion"
    if usage is not None:
        return {**about, "object": name, "choices": [], "usage": usage}
    if kind == "chat":
        delta = ({"role": "assistant"} if is_first else {}) | ({"content": text} if text or is_first else {})
        choice: dict[str, Any] = {"delta": delta}
    else:
        choice = {"text": text}
    choice |= {"index": index, "finish_reason": ending, "logprobs": None}
    return {**about, "object": name, "choices": [choice]}
