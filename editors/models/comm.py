"""Knows how the ranks that hold one model together divide what is asked of it. Knows no transport and no model.

Sequences are divided for forwards, inner parameters for solves. A rank whose weights are partitioned gathers them from
all others while it runs: every rank has to make the same number of forwards, or all of them wait for ever. So a rank
with fewer batches runs fillers, whose results are nobody's; and what fails on one rank fails on all (`agreed`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from pipeline.domain.errors import CorrigendaError

Item = TypeVar("Item")
Value = TypeVar("Value")


class Comm(Protocol):
    """The ranks, as one of them sees them."""

    @property
    def rank(self) -> int:
        """Of this process, from 0."""
        ...

    @property
    def num_ranks(self) -> int:
        """How many hold the model."""
        ...

    def gathered(self, own: Value) -> list[Value]:
        """What every rank gives, by rank; every rank has to ask. Tensors are on the CPU."""
        ...


class SingleProcess:
    """A process that holds its model whole."""

    rank = 0
    num_ranks = 1

    def gathered(self, own: Value) -> list[Value]:
        """See `Comm`."""
        return [own]


ALONE = SingleProcess()


def own_share(comm: Comm, items: Sequence[Item], rank: int | None = None) -> list[Item]:
    """The part of a list that is a rank's, this one's if none is named: every n-th, so that neighbours part."""
    return list(items[comm.rank if rank is None else rank :: comm.num_ranks])


def merged(comm: Comm, own: Mapping[int, Value]) -> list[Value]:
    """What all ranks found together, by place, in order."""
    found = {place: value for part in comm.gathered(dict(own)) for place, value in part.items()}
    return [found[place] for place in range(len(found))]


def agreed(comm: Comm, find: Callable[[], Value]) -> Value:
    """What `find` gives here, once it has succeeded on every rank.

    Raises:
        CorrigendaError: what the first of the ranks raised that failed.
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
    """What all ranks found, by name, in the order of the ranks.

    Raises:
        CorrigendaError: what the first of the ranks raised that failed.
    """
    own = agreed(comm, find)
    return {name: value for part in comm.gathered(own) for name, value in part.items()}
