"""Anchors of audit chains in a file that only grows: where each chain stood, and when.

Whoever rewrites the database has to rewrite this file too. Keep it where the database's administrators may not write: a
mounted share of others, or a bucket with retention.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline.domain.audit import Anchor, AnchorNote, parse_anchor
from pipeline.domain.errors import Misconfigured


class AnchorFile:
    """A file with a JSON object a line: `at`, `chain` and `anchor`."""

    where = "the anchor file"

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, notes: Iterable[AnchorNote]) -> None:
        """Add lines and wait until the disk has them.

        Raises:
            Misconfigured: if the file cannot be written.
        """
        lines = [json.dumps({"at": one.at, "chain": one.chain, "anchor": str(one.anchor)}) + "\n" for one in notes]
        try:
            # One write, at the end of the file as it is then: two processes do not mix their lines.
            with os.fdopen(os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640), "wb") as file:
                file.write("".join(lines).encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise Misconfigured(f"cannot write the anchor file {self._path}: {error.strerror}") from error

    def notes(self) -> Iterator[AnchorNote]:
        """Yield what was noted, oldest first.

        Raises:
            Misconfigured: if the file cannot be read, or a line of it is no note.
        """
        try:
            with self._path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    yield self._note(number, line)
        except OSError as error:
            raise Misconfigured(f"cannot read the anchor file {self._path}: {error.strerror}") from error

    def _note(self, number: int, line: bytes) -> AnchorNote:
        try:
            said: dict[str, Any] = json.loads(line)
            anchor = parse_anchor(said["anchor"])
            if isinstance(anchor, Anchor):
                return AnchorNote(at=str(said["at"]), chain=str(said["chain"]), anchor=anchor)
        except (ValueError, KeyError, TypeError):
            pass
        raise Misconfigured(f"expected an anchor in line {number} of {self._path}, got {line[:80]!r}")
