"""What can go wrong, and whether trying again can help.

    CorrigendaError
    ├── InvalidInput            somebody's request cannot be right as it is
    │   ├── InvalidMessage      bytes on the topic that can never be an edit
    │   ├── UnknownLineage
    │   ├── UnknownRecord       an id that names nothing
    │   └── IllegalTransition   a status that cannot follow another
    ├── Misconfigured           a setting, file or model that cannot work; a person must act
    │   ├── LoginRefused        a service does not take our user or password (retryable)
    │   ├── WrongBase           an editor, delta or lineage that belongs to another base model
    │   ├── StreamGap           the log no longer holds the offset the database needs next
    │   └── Unreadable          the log holds bytes there that cannot be read
    ├── Unavailable             an outside system does not answer (retryable)
    ├── LeaseLost               somebody else owns the lineage now (retryable)
    ├── EpochStale              somebody else owns the partition now
    ├── EngineFailed            the rank group died or answered wrongly (retryable)
    ├── EditorFailed            the numbers went wrong: NaN, empty delta, not positive definite
    └── IntegrityBroken         what is stored does not match its digest

Refused approvals and failed gates are values, not errors.
"""

from __future__ import annotations

from typing import ClassVar

MAX_CHARS = 1000
"""Most characters of an error that are recorded as the reason of something."""


class CorrigendaError(Exception):
    """Root of every error that Corrigenda raises on purpose.

    Args:
        message: one sentence: what was expected, what was got, which id.
        **ids: the records concerned, for logs.
    """

    retryable: ClassVar[bool] = False
    """Whether doing the same again later can succeed."""

    def __init__(self, message: str, **ids: str) -> None:
        super().__init__(message)
        self.ids = ids


class InvalidInput(CorrigendaError):
    """A request that cannot be right as it is."""


class InvalidMessage(InvalidInput):
    """Bytes on the topic that can never become an edit."""


class UnknownLineage(InvalidInput):
    """A lineage name that is not in the database."""


class UnknownRecord(InvalidInput):
    """An id or a version that names nothing."""


class IllegalTransition(InvalidInput):
    """A status change that the lifecycle table does not hold."""


class Misconfigured(CorrigendaError):
    """A setting, file or model that cannot work until a person changes it."""


class LoginRefused(Misconfigured):
    """A service that answers and does not take our user or our password.

    It says nothing about what was asked: the same can be done once a person has put the login right, so nothing is
    given up over it.
    """

    retryable = True


class WrongBase(Misconfigured):
    """An editor, delta or lineage made for another base model."""


class StreamGap(Misconfigured):
    """The log does not hold the offset the database needs next; skipping would lose edits."""


class Unreadable(Misconfigured):
    """The log holds bytes that cannot be read, such as a damaged batch; skipping them would lose edits."""


class Unavailable(CorrigendaError):
    """An outside system does not answer."""

    retryable = True


class LeaseLost(CorrigendaError):
    """The lease on a lineage has passed to somebody else; nothing was written."""

    retryable = True


class EpochStale(CorrigendaError):
    """A partition has been taken by a newer consumer; nothing was written."""


class EngineFailed(CorrigendaError):
    """The group of ranks died, timed out or disagreed; it must be rebuilt."""

    retryable = True


class EditorFailed(CorrigendaError):
    """The editor's numbers cannot be used: not finite, empty, or not positive definite."""


class IntegrityBroken(CorrigendaError):
    """Stored bytes do not have the digest that was recorded for them."""


def one_line(error: BaseException) -> str:
    """Return an error as a reason: its class and its words, on one line that databases, JSON and terminals take.

    What it says may come from a log or a library: control characters and halves of surrogate pairs become blanks.
    """
    said = "".join(char if char.isprintable() else " " for char in str(error)[: 2 * MAX_CHARS])
    return f"{type(error).__name__}: {' '.join(said.split()) or 'it says nothing'}"[:MAX_CHARS]


def named_by(line: str) -> CorrigendaError | None:
    """Return the error that `one_line` made a line of, without its ids; None if the line names none of ours."""
    name, _, sentence = line.partition(": ")
    found = globals().get(name)
    if sentence and isinstance(found, type) and issubclass(found, CorrigendaError):
        return found(sentence)
    return None
