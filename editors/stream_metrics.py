"""Knows the figures of a stream of edits: what `corrigenda evaluate` reports. Knows no ledger and no solver.

`edit_success` and `generalization` (rephrases, none of which is an edit row) are over all active edits, teacher-forced,
and under `greedy` the same by free generation. `locality_unchanged` is the share of the edits' own neighbours whose
every argmax along the base's continuation is the base's; `locality_kl` the mean KL from the base there, nats.
`retention_first_batch` is the success of the first batch's edits that are still active; `drawdown` is the perplexity of
plain text over the base's, minus 1.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from editors.baseline import build_baseline, own_answers, text_perplexity
from editors.families import CausalModel
from editors.free_answers import free_answers
from editors.metrics import score_pairs
from editors.prompts import Encoded
from editors.scoring import Prepared, Reading, compared, readings
from pipeline.domain.edits import Edit
from pipeline.domain.measurements import share

NUM_WINDOWS = 24
"""Windows of plain text (128 tokens each) that drawdown is measured on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamProbes:
    """What is asked at every checkpoint, with the base's answers."""

    neighbours: dict[str, tuple[tuple[Encoded, Reading], ...]]
    """Edit id -> its locality probes along the base's continuations, and the base's readings."""
    text: Prepared
    """Windows of plain text."""
    perplexity: float
    """Of the base."""
    num_rephrases: int
    """Rephrases of each edit that are measured."""

    @classmethod
    def of_base(cls, model: CausalModel, edits: Sequence[Edit], text: str, *, num_rephrases: int) -> Self:
        """Ask the base, whose weights are loaded now."""
        baseline = build_baseline(model, (), text, num_windows=NUM_WINDOWS)
        sequences = own_answers(model, [probe for edit in edits for probe in edit.request.locality])
        pairs = iter(zip(sequences, readings(model, list(model.chunked(sequences))), strict=True))
        return cls(
            neighbours={edit.edit_id: tuple(next(pairs) for _ in edit.request.locality) for edit in edits},
            text=baseline.prepared_text(model),
            perplexity=baseline.perplexity,
            num_rephrases=num_rephrases,
        )

    @property
    def base_figures(self) -> dict[str, Any]:
        """What the base itself says."""
        return {"perplexity": self.perplexity}

    def measure(self, model: CausalModel, active: Sequence[Edit], first_ids: Sequence[str]) -> dict[str, Any]:
        """The figures of the model as it is now.

        Args:
            model: edited.
            active: the edits that should hold.
            first_ids: the edits of the first batch.
        """
        rephrased = [_asking(edit, text) for edit in active for text in edit.request.rephrases[: self.num_rephrases]]
        forced, free = _forced(model, active), _free(model, active)
        first = {place for place, edit in enumerate(active) if edit.edit_id in set(first_ids)}
        perplexity = text_perplexity(model, self.text)
        return {
            "edit_success": share(forced),
            "generalization": share(_forced(model, rephrased)),
            **self._locality(model, active),
            "retention_first_batch": share(flag for place, flag in enumerate(forced) if place in first),
            "drawdown": perplexity / self.perplexity - 1,
            "peak_rss_bytes": _peak_rss_bytes(),
            "active": len(active),
            "greedy": {
                "edit_success": share(free),
                "generalization": share(_free(model, rephrased)),
                "retention_first_batch": share(flag for place, flag in enumerate(free) if place in first),
            },
        }

    def _locality(self, model: CausalModel, active: Sequence[Edit]) -> dict[str, float | None]:
        asked = [pair for edit in active for pair in self.neighbours[edit.edit_id]]
        prepared = list(model.chunked([sequence for sequence, _ in asked]))
        _, [changes] = compared(model, prepared, [[reading for _, reading in asked]])
        return {
            "locality_unchanged": share(change.is_unchanged for change in changes),
            "locality_kl": sum(change.kl for change in changes) / len(changes) if changes else None,
        }


def _asking(edit: Edit, prompt: str) -> Edit:
    return replace(edit, request=replace(edit.request, prompt=prompt))


def _forced(model: CausalModel, edits: Sequence[Edit]) -> list[bool]:
    pairs = [(edit.request.prompt, edit.request.target_new) for edit in edits]
    return [score.is_hit for score in score_pairs(model, pairs)]


def _free(model: CausalModel, edits: Sequence[Edit], *, batch: int = 64) -> list[bool]:
    parts = [edits[start : start + batch] for start in range(0, len(edits), batch)]
    return [is_confirmed for part in parts for _, is_confirmed, _ in free_answers(model, part, num_chat=0)]


def _peak_rss_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
