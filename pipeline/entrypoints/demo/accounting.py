"""The figures of the demo's last line, and whether they add up."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Accounts:
    """What the demo saw, as its last line prints it."""

    produced: int
    """Messages that the broker acknowledged."""
    accepted: int
    """Edit requests recorded."""
    duplicates: int
    """Messages that repeated one."""
    dead_letters: int
    """Messages that can never be an edit."""
    superseded: int
    """Edits that a later correction displaced."""
    applied: int
    """Edits in the active set of the head."""
    rejected: int
    """Edits that failed a gate."""
    snapshots: int
    """Snapshots that were made."""
    champion: int
    """Seq of the snapshot that is live."""
    edit_success: float | None
    """Share of active edits that hold, as last measured."""
    locality: float | None
    """Share of the suite that answers as the base does, on the head."""
    generalization_other_context: float | None
    """Share of the corrections in the first champion that it also answers in another wording, which no edit saw."""
    num_generalization_other_context: int
    """How many corrections were asked in another wording."""
    chat: float | None
    """Share of the corrections in the first champion that it also answers as a question in a chat."""
    num_chat: int
    """How many corrections were asked in a chat."""
    reverted: int
    """Edits that a person took out."""
    audit_ok: bool
    """Whether every audit chain verifies."""
    seconds: float
    """Wall time of the demo."""
    seconds_by_phase: Mapping[str, float]
    """Wall time of each part of it, in the order they were reached."""

    def imbalance(self) -> str | None:
        """Return the first sum that does not add up, in one sentence; None if all do."""
        read = self.accepted + self.duplicates + self.dead_letters
        if self.produced != read:
            return f"produced {self.produced} but accounted for {read} (accepted + duplicates + dead letters)"
        settled = self.applied + self.superseded + self.rejected + self.reverted
        if self.accepted != settled:
            return f"accepted {self.accepted} but settled {settled} (in the head + superseded + rejected + reverted)"
        if not self.audit_ok:
            return "an audit chain does not verify"
        return None

    def as_json(self) -> dict[str, object]:
        """Return the fields in the order of the last line."""
        return {key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(self).items()}


class Stopwatch:
    """The wall time of the demo and of its parts, which follow each other."""

    def __init__(self) -> None:
        self.started_at = self._since = time.monotonic()
        self.by_phase: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        """Note that a part of this name has just ended."""
        now = time.monotonic()
        self.by_phase[phase] = round(self.by_phase.get(phase, 0.0) + now - self._since, 2)
        self._since = now

    @property
    def seconds(self) -> float:
        """Return the seconds since the beginning."""
        return time.monotonic() - self.started_at
