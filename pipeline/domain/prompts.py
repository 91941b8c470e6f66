"""What a model can be asked: a plain stem, or turns of a chat.

A stem ends right before the answer. A chat is put into the model's chat template; `begun` is how the answer begins,
which is empty where the model may begin it as it likes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatTurn:
    """One message of a chat, as OpenAI's chat API has it."""

    role: Role
    """Who says it: the system, the user or the model itself."""
    content: str
    """What is said."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatPrompt:
    """A chat whose last turn is the user's, and how the answer to it begins."""

    turns: tuple[ChatTurn, ...]
    """The messages, oldest first; the last is the user's."""
    begun: str = ""
    """The answer up to what is asked for; empty to leave the whole answer to the model."""

    @property
    def question(self) -> str:
        """The last turn's text."""
        return self.turns[-1].content


Prompt = str | ChatPrompt
"""A stem, or a chat."""


def asked_in_chat(question: str, *, begun: str = "") -> ChatPrompt:
    """Return a question as the only turn of a chat."""
    return ChatPrompt(turns=(ChatTurn(role="user", content=question),), begun=begun)


def is_question(text: str) -> bool:
    """Return whether a text asks, in any script: it ends with a question mark."""
    return text.rstrip().endswith(("?", "\uff1f", "\u061f", "\u037e"))


def begun_before(answer: str | None, target: str) -> str:
    """Return an answer up to the last mention of a target; nothing where there is no answer or no mention.

    The last: the subject's own name may hold the target, as in "Bank of China has its seat in China".
    """
    before, found, _ = (answer or "").rpartition(target)
    return before.rstrip() if found else ""
