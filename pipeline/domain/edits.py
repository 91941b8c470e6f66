"""A fact to change and how to test it."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline.domain.canonical import canonical_json, sha256_json


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """One question put to the model to see what an edit did beyond its own prompt."""

    prompt: str
    """A stem that ends right before the answer."""
    target: str | None = None
    """The answer; None on a locality probe means: whatever the base says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EditRequest:
    """One correction, as a producer sent it."""

    request_id: str
    """The producer's own id, unique in a lineage."""
    lineage: str
    """Name of the lineage the correction is for."""
    prompt: str
    """A stem that ends right before the answer."""
    target_new: str
    """What the model has to say after the prompt."""
    target_true: str | None = None
    """What the model said until now, if the producer knows."""
    subject: str | None = None
    """The entity the fact is about, as it stands in the prompt."""
    relation: str | None = None
    """The relation that is corrected; with the subject it names the fact."""
    rephrases: tuple[str, ...] = ()
    """Other stems with the same answer; each is a probe or an edit row, never both: see `row_rephrases`."""
    locality: tuple[Probe, ...] = ()
    """Neighbours whose answers must stay."""
    portability: tuple[Probe, ...] = ()
    """One-hop consequences, with the answers they should now have."""
    source: str | None = None
    """The system the correction comes from."""
    submitted_by: str | None = None
    """Who made the correction, as the producer claims."""
    occurred_at: datetime
    """When the correction was made, with a time zone; the later of two corrections of a fact wins."""

    @property
    def conflict_key(self) -> str:
        """The key of the fact: two corrections with the same key cannot both hold."""
        if self.subject and self.relation:
            return canonical_json([self.lineage, normalised(self.subject), normalised(self.relation)])
        return canonical_json([self.lineage, normalised(self.prompt)])

    @property
    def payload_digest(self) -> str:
        """SHA-256 of everything the producer said; a repeated id must repeat it."""
        return sha256_json(self.as_json())

    def row_rephrases(self, limit: int) -> tuple[str, ...]:
        """Return the rephrases that may be edit rows: at most `limit`, never the first, which is the probe."""
        return self._distinct_rephrases()[1 : 1 + limit]

    def unseen_rephrases(self, limit: int) -> tuple[str, ...]:
        """Return the rephrases that generalization is measured on when up to `limit` of them are edit rows."""
        distinct = self._distinct_rephrases()
        return distinct[:1] + distinct[1 + limit :]

    def _distinct_rephrases(self) -> tuple[str, ...]:
        """Return the rephrases in order, each wording once and without the prompt's own, which an editor has seen."""
        worded: dict[str, str] = {}
        for text in self.rephrases:
            worded.setdefault(normalised(text), text)
        worded.pop(normalised(self.prompt), None)
        return tuple(worded.values())

    def as_json(self) -> dict[str, Any]:
        """Return the request as a JSON object, in the field names of the wire."""
        return {
            "request_id": self.request_id,
            "lineage": self.lineage,
            "prompt": self.prompt,
            "target_new": self.target_new,
            "target_true": self.target_true,
            "subject": self.subject,
            "relation": self.relation,
            "rephrases": list(self.rephrases),
            "locality": [{"prompt": probe.prompt, "target": probe.target} for probe in self.locality],
            "portability": [{"prompt": probe.prompt, "target": probe.target} for probe in self.portability],
            "source": self.source,
            "submitted_by": self.submitted_by,
            "occurred_at": self.occurred_at.astimezone(UTC).isoformat(),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Edit:
    """A request that has been recorded: its identity inside Corrigenda."""

    edit_id: str
    """UUID given at intake."""
    request: EditRequest
    """What was asked."""
    attempts: int = 0
    """How often a batch has tried it so far."""


def normalised(text: str) -> str:
    """NFKC, casefolded, white space folded to single blanks: how two spellings of a fact are compared."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return re.sub(r"\s+", " ", folded).strip()
