"""Answers in the making, a token at a time: how a token is chosen, where an answer ends, and its text as it grows.

Legend: B answers that are still made, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from editors.models.families import EditableModel
from editors.models.generation import Decoding

Ending = Literal["stop", "length"]
"""Why an answer ended: by itself or at a stop text, or at its most tokens; as OpenAI's API has it."""
UNFINISHED = "\ufffd"
"""What a tokenizer gives for the first bytes of a character whose other bytes are still to come."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How tokens are chosen, and where answers end."""

    max_tokens: int
    """Most tokens of an answer."""
    temperature: float = 0.0
    """0 for the most probable token each time."""
    top_p: float = 1.0
    """Choose among the most probable tokens that have this probability together."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer; they are not part of it."""
    seed: int | None = None
    """Makes the same request give the same answers; None for others each time."""
    num_choices: int = 1
    """Answers to each prompt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """What a step adds to one answer."""

    choice: int
    """Which of the request's answers, from 0."""
    text: str
    """The new text; empty while a character or a possible stop text is incomplete."""
    ending: Ending | None
    """Why the answer ended with this; None while it goes on."""
    num_tokens: int
    """Tokens of the answer so far, with the one that ended it."""


class Answering:
    """The answers to prompts that are made together, a token of each at every step.

    Args:
        model: the model, with the weights that the answers are to have at every step.
        prompts: token ids, each of at least one.
        choices: which of the request's answers each is.
        most: most tokens of each answer, at least 1.
        sampling: how tokens are chosen.
    """

    def __init__(
        self,
        model: EditableModel,
        prompts: Sequence[Sequence[int]],
        *,
        choices: Sequence[int],
        most: int,
        sampling: Sampling,
    ) -> None:
        self._decoding: Decoding = model.decoding(prompts)
        self._live = [_Answer(model, choice=choice, most=most, sampling=sampling) for choice in choices]
        self._next: tuple[Tensor, Tensor | None] | None = None

    @property
    def is_done(self) -> bool:
        """Whether every answer has ended."""
        return not self._live

    @torch.no_grad()
    def step(self) -> list[Piece]:
        """Choose one more token of each answer and return what that adds."""
        logits_BV = self._decoding.begin() if self._next is None else self._decoding.advance(*self._next)
        pieces = [answer.take(logits_V) for answer, logits_V in zip(self._live, logits_BV, strict=True)]
        rows = [row for row, piece in enumerate(pieces) if piece.ending is None]
        if rows:
            tokens_B = torch.tensor([self._live[row].tokens[-1] for row in rows], device=logits_BV.device)
            rows_B = torch.tensor(rows, device=logits_BV.device) if len(rows) < len(pieces) else None
            self._next = tokens_B, rows_B
        self._live = [self._live[row] for row in rows]
        return pieces


class _Answer:
    def __init__(self, model: EditableModel, *, choice: int, most: int, sampling: Sampling) -> None:
        self.tokens: list[int] = []
        self._choice, self._most, self._sampling = choice, most, sampling
        self._stop_ids = model.stop_ids
        self._text = GrowingText(model.decode, sampling.stop)
        self._random = torch.Generator()
        if sampling.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed((sampling.seed + choice) % 2**63)

    def take(self, logits_V: Tensor) -> Piece:
        token = chosen(logits_V, self._sampling, self._random)
        self.tokens.append(token)
        ending: Ending | None = None
        if token in self._stop_ids:
            text, ending = self._text.end(), "stop"
        else:
            text = self._text.add(token)
            if self._text.is_stopped:
                ending = "stop"
            elif len(self.tokens) >= self._most:
                text, ending = text + self._text.end(), "length"
        return Piece(choice=self._choice, text=text, ending=ending, num_tokens=len(self.tokens))


def chosen(logits_V: Tensor, sampling: Sampling, random: torch.Generator) -> int:
    """Return the next token: the most probable one, or one drawn on the CPU, so that a seed means the same anywhere."""
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    p_V = torch.softmax(logits_V.float().cpu() / sampling.temperature, dim=-1)
    if sampling.top_p < 1:
        sorted_V, order_V = p_V.sort(descending=True, stable=True)
        # The first token is always kept: nothing stands before it.
        sorted_V[sorted_V.cumsum(dim=-1) - sorted_V >= sampling.top_p] = 0
        return int(order_V[torch.multinomial(sorted_V, 1, generator=random)])
    return int(torch.multinomial(p_V, 1, generator=random))


class GrowingText:
    """The text of an answer as its tokens come: whole characters only, and nothing that may begin a stop text.

    Args:
        decode: gives the text of tokens.
        stop: texts that end the answer.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self.is_stopped = False
        """Whether a stop text has come; what was returned ends right before it."""
        self._decode, self._stop = decode, tuple(stop)
        self._tokens: list[int] = []
        # Decoded are the tokens from `_start` on, of which those up to `_read` were returned before: a token's text
        # depends on the one before it, and decoding the whole answer each time would cost its square.
        self._start = self._read = 0
        self._held = ""

    def add(self, token: int) -> str:
        """Return what a token adds to the text that may be shown."""
        self._tokens.append(token)
        return self._released(self._decoded())

    def end(self) -> str:
        """Return what was held back, once no token comes any more."""
        text = self._released(self._decoded(is_last=True))
        if not self.is_stopped:
            text, self._held = text + self._held, ""
        return text

    def _decoded(self, *, is_last: bool = False) -> str:
        before = self._decode(self._tokens[self._start : self._read])
        now = self._decode(self._tokens[self._start :])
        if not is_last and (now.endswith(UNFINISHED) or len(now) <= len(before)):
            return ""
        self._start, self._read = self._read, len(self._tokens)
        return now[len(before) :]

    def _released(self, text: str) -> str:
        self._held += text
        found = [place for stop in self._stop if (place := self._held.find(stop)) >= 0]
        if found:
            self.is_stopped = True
            text, self._held = self._held[: min(found)], ""
            return text
        kept = max((_begun(self._held, stop) for stop in self._stop), default=0)
        end = len(self._held) - kept
        text, self._held = self._held[:end], self._held[end:]
        return text


def _begun(text: str, stop: str) -> int:
    """Return how many characters at the end of a text may be the beginning of a stop text."""
    return next((num for num in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:num])), 0)
