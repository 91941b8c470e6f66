"""How the ranks that hold one model together divide the work on it.

Forwards are divided by sequences, solves by inner parameters. Where weights are partitioned, a forward gathers them
from all ranks: every rank has to make the same number of forwards, or all of them wait for ever. So a rank with fewer
batches runs fillers, whose results are dropped, and what fails on one rank fails on all (`agreed`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from pipeline.domain.errors import CorrigendaError

Item = TypeVar("Item")
Value = TypeVar("Value")


class Comm(Protocol):
    """The ranks that hold a model together, as one of them sees them."""

    @property
    def rank(self) -> int:
        """The number of this rank, from 0."""
        ...

    @property
    def num_ranks(self) -> int:
        """How many ranks hold the model together."""
        ...

    def gathered(self, own: Value) -> list[Value]:
        """Return what each rank gave, in their order; every rank has to call it. Tensors have to be on the CPU."""
        ...


class SingleProcess:
    """The only rank of a model that one process holds whole."""

    rank = 0
    num_ranks = 1

    def gathered(self, own: Value) -> list[Value]:
        """Return what this rank gave, as there is no other."""
        return [own]


ALONE = SingleProcess()


def own_share(comm: Comm, items: Sequence[Item], rank: int | None = None) -> list[Item]:
    """Return the items that are a rank's, or this one's if none is named: every n-th, so that neighbours part."""
    return list(items[comm.rank if rank is None else rank :: comm.num_ranks])


def merged(comm: Comm, own: Mapping[int, Value]) -> list[Value]:
    """Return what all ranks found for the places 0, 1, 2 and so on, in their order; every rank has to call it."""
    found = {place: value for part in comm.gathered(dict(own)) for place, value in part.items()}
    return [found[place] for place in range(len(found))]


def agreed(comm: Comm, find: Callable[[], Value]) -> Value:
    """Return what `find` gives here, once it has succeeded on every rank; every rank has to call it.

    Raises:
        CorrigendaError: what the first rank that failed raised.
    """
    if comm.num_ranks == 1:
        return find()
    found: list[Value] = []
    problem: CorrigendaError | None = None
    try:
        found.append(find())
    except CorrigendaError as error:
        problem = error
    for one in comm.gathered(problem):
        if one is not None:
            raise one
    return found[0]


def together(comm: Comm, find: Callable[[], Mapping[str, Value]]) -> dict[str, Value]:
    """Return what all ranks found, by name, in the order of the ranks; every rank has to call it.

    Raises:
        CorrigendaError: what the first rank that failed raised.
    """
    own = agreed(comm, find)
    return {name: value for part in comm.gathered(own) for name, value in part.items()}
