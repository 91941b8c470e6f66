"""What a model says freely to prompts of many measurements, which are answered in one round.

A token costs a pass over all weights, whether one answer gets it or fifty. So what several parts want to hear is asked
together. Each part is a generator that yields what it asks, once, and goes on with the answers:

    def said(model: EditableModel, prompt: str) -> Talk[str]:
        [tokens] = yield [Ask(prompt_ids=model.encode_prompt(prompt), most=12)]
        return model.decode(tokens)

    together = Round(model)
    one, other = together.take(said(model, "Rome is in")), together.take(said(model, "Bonn is in"))
    together.answer()
    one.value, other.value

What the model said before it was changed is asked in the same round, with the change taken off again beside the
weights.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from editors.models.families import EditableModel
from editors.models.hooks import Branch

T = TypeVar("T")

AT_ONCE = 80
"""Most prompts that a CPU continues together, which bounds the memory of their keys and values. Gates ask some 120
about a batch of 32, and 100 of its parent; those with the longest answers are continued first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """A prompt to be continued greedily."""

    prompt_ids: tuple[int, ...]
    """Its token ids; at least one."""
    most: int
    """Most tokens of the answer."""
    is_done: Callable[[Sequence[int]], bool] | None = None
    """Asked after each token with those so far; where it is true, the answer ends. It ends with `most` if None."""
    is_before: bool = False
    """Whether it is answered as before the change that the round takes off again."""


Talk = Generator[Sequence[Ask], Sequence[Sequence[int]], T]
"""A part of a measurement: yields what it asks, gets the answers as token ids, and returns what comes of them."""


class Promise(Generic[T]):
    """What comes of a talk; there once its round has been answered."""

    value: T


class Round:
    """Talks that are answered together. Every rank that holds the model has to take the same ones.

    Args:
        model: the model as it is when the round is answered.
        undone: branches that take the model's change off again; without them, nothing is asked as before.
    """

    def __init__(self, model: EditableModel, *, undone: Mapping[str, Branch] | None = None) -> None:
        self._model, self._undone = model, undone or {}
        self._talks: list[tuple[Talk[Any], Promise[Any], Sequence[Ask]]] = []

    def take(self, talk: Talk[T]) -> Promise[T]:
        """Let a talk ask; what comes of it is there after `answer`."""
        promise = Promise[T]()
        self._talks.append((talk, promise, next(talk)))
        return promise

    def answer(self) -> None:
        """Ask the model everything, and let each talk go on with its answers."""
        answers = iter(_answers(self._model, [ask for _, _, asks in self._talks for ask in asks], self._undone))
        for talk, promise, asks in self._talks:
            try:
                talk.send([next(answers) for _ in asks])
            except StopIteration as ended:
                promise.value = ended.value
        self._talks = []


def answered(model: EditableModel, talk: Talk[T], *, undone: Mapping[str, Branch] | None = None) -> T:
    """Return what comes of one talk by itself, as of a `Round`; every rank has to call it."""
    alone = Round(model, undone=undone)
    promise = alone.take(talk)
    alone.answer()
    return promise.value


def _answers(model: EditableModel, asks: Sequence[Ask], undone: Mapping[str, Branch]) -> list[list[int]]:
    """Return the answer to each, in order; those that may be longest are made together."""
    places = sorted(range(len(asks)), key=lambda place: -asks[place].most)
    most = AT_ONCE * model.times_more
    found: dict[int, list[int]] = {}
    for start in range(0, len(places), most):
        part = places[start : start + most]
        found |= zip(part, _answered_at_once(model, [asks[place] for place in part], undone), strict=True)
    return [found[place] for place in range(len(asks))]


def _answered_at_once(model: EditableModel, asks: Sequence[Ask], undone: Mapping[str, Branch]) -> list[list[int]]:
    def is_done(place: int, tokens: Sequence[int]) -> bool:
        ask = asks[place]
        return len(tokens) >= ask.most or (ask.is_done is not None and ask.is_done(tokens))

    prompts = [ask.prompt_ids for ask in asks]
    before = [place for place, ask in enumerate(asks) if ask.is_before]
    most = max(ask.most for ask in asks)
    if not before:
        return model.greedy(prompts, max_new_tokens=most, is_done=is_done)
    return model.greedy_beside(prompts, before, undone, max_new_tokens=most, is_done=is_done)
