"""Taking away what nobody needs any more: done side effects, bytes of old dead letters, artifacts without a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

from pipeline.domain.errors import InvalidInput

LEAST_AGE, GREATEST_AGE = timedelta(hours=1), timedelta(days=36_500)
GRACE = timedelta(hours=1)
"""Added to the age of a file: clocks differ, and a worker stores a file some time before it commits the row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredFile:
    """A file in the artifact store."""

    uri: str
    """Its name there."""
    num_bytes: int
    """Its size in bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pruned:
    """What was taken away, or would be."""

    before: datetime
    """Everything older than this moment of the database's clock was looked at."""
    num_outbox: int
    """Done side effects."""
    num_dead_letters: int
    """Dead letters that lost their bytes; their rows and reasons stay."""
    num_submissions: int
    """Notes of the HTTP API about corrections that are edits or dead letters, or were never sent."""
    num_artifacts: int
    """Files that no row names."""
    num_bytes: int
    """Their sizes together."""
    is_dry_run: bool
    """Whether nothing was touched."""


class PruneStore(Protocol):
    """The rows that pruning reads and takes away."""

    def now(self) -> datetime:
        """Return the database's time."""

    def artifact_uris(self) -> frozenset[str]:
        """Return the URI of every artifact that any row names."""

    def prune(
        self, before: datetime, *, actor: str, artifacts: Mapping[str, Any], is_dry_run: bool
    ) -> Mapping[str, int]:
        """Take away what is old, with an audit line; return how much, by the names of `Pruned`."""


class PrunableFiles(Protocol):
    """The artifact store as far as pruning needs it."""

    def older_than(self, moment: datetime) -> Sequence[StoredFile]:
        """Return the files that nobody has stored, for the first time or again, since a moment."""

    def remove(self, file: StoredFile, *, older_than: datetime) -> bool:
        """Remove a file unless somebody has stored it again meanwhile; return whether it is gone."""


class Pruner:
    """The use case behind `corrigenda prune`; safe beside running workers."""

    def __init__(self, *, store: PruneStore, files: PrunableFiles) -> None:
        self._store = store
        self._files = files

    def prune(self, older_than: timedelta, *, actor: str, is_dry_run: bool = False) -> Pruned:
        """Take away what is older than an age and needed by nothing.

        Raises:
            InvalidInput: for an age under an hour or over a hundred years.
            Unavailable: if the database or the store does not answer; what is left goes the next time.
        """
        if not LEAST_AGE <= older_than <= GREATEST_AGE:
            raise InvalidInput(f"expected an age from an hour to a hundred years, got {older_than}")
        before = self._store.now() - older_than
        # Files first, rows after: a row that is committed in between is seen, and its file was never listed as free.
        old = self._files.older_than(before - GRACE)
        named = self._store.artifact_uris()
        free = [file for file in old if file.uri not in named]
        sizes = {"num_artifacts": len(free), "num_bytes": sum(file.num_bytes for file in free)}
        counts = self._store.prune(before, actor=actor, artifacts=sizes, is_dry_run=is_dry_run)
        if not is_dry_run:
            # After the audit line: a kill in between leaves a line that says too much, never too little.
            gone = [file for file in free if self._files.remove(file, older_than=before - GRACE)]
            sizes = {"num_artifacts": len(gone), "num_bytes": sum(file.num_bytes for file in gone)}
        return Pruned(before=before, is_dry_run=is_dry_run, **counts, **sizes)
