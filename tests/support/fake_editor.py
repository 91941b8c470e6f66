"""Ranks without a model: their weights are the facts they were told, their files say what changed.

A target decides how its edit comes out (see the constants). What is rebuilt from files is held against what the
pipeline says of them, so that an edit that is applied twice, or to the wrong weights, does not go unnoticed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.domain.errors import EditorFailed, EngineFailed
from pipeline.domain.formats.canonical import canonical_json, sha256_file
from pipeline.domain.measurements import EditScore, Measurements
from pipeline.domain.rank_api import (
    Answer,
    Candidate,
    CandidateOutcome,
    EditorSettings,
    FileRef,
    KeptFiles,
    Loaded,
    LoadPlan,
)
from tests.support.factories import make_measurements, make_score

FAILS = "does not hold"
"""An edit to this target fails its gate."""
BREAKS = "not a number"
"""An edit to this target makes the editor fail."""
SATURATES = "one too many"
"""With an edit to this target, nothing else of the model stays as it was."""
NEEDED = "needed"
"""Without an edit to this target, nothing else of the model stays as it was."""

Facts = dict[str, str]


class FakeEditorGroup:
    """Implements `EditorGroup`.

    Args:
        before_trial: called before each candidate; may wait, or raise as ranks that died do.
    """

    def __init__(self, before_trial: Callable[[], None] = lambda: None) -> None:
        self._before_trial = before_trial
        self._tried: dict[str, tuple[Facts, Candidate]] = {}
        self._kept: Candidate | None = None
        self._held: tuple[str, str | None] = ("", None)
        self.facts: Facts = {}
        self.digest: str | None = None

    def resume(self, lineage: str, *, snapshot_id: str | None, editor: EditorSettings, epoch: int) -> Loaded | None:
        """What was loaded or committed last is held."""
        return Loaded() if self.digest is not None and self._held == (lineage, snapshot_id) else None

    def load(self, plan: LoadPlan, *, epoch: int) -> Loaded:
        """Rebuild from files, unless it is held; the ledger must tell the same edits as the deltas."""
        self._held = (plan.lineage, plan.snapshot_id)
        if self.digest == plan.digest:
            return Loaded()
        assert plan.ledger is not None
        below = json.loads(Path(plan.accumulator.path).read_text()) if plan.accumulator else {}
        self.facts = rebuilt([Path(delta.path) for delta in plan.deltas], below)
        ledger = sorted(edit_id for rows in plan.ledger.rows for edit_id in rows.edit_ids)
        assert ledger == sorted(self.facts), f"ledger rows of {ledger}, deltas of {sorted(self.facts)}"
        for rows in plan.ledger.rows:
            written = json.loads(Path(rows.file.path).read_text())["edits"]
            assert set(rows.edit_ids) <= set(written), f"rows of {rows.edit_ids} in a file of {written}"
        self.digest = plan.digest
        return Loaded()

    def try_edits(self, candidate: Candidate) -> CandidateOutcome:
        """Measure by the rules above."""
        self._before_trial()
        targets = {edit.edit_id: edit.request.target_new for edit in candidate.added}
        if BREAKS in targets.values():
            raise EditorFailed("expected finite numbers, got NaN")
        gone = {self.facts[edit_id] for edit_id in candidate.removed_ids}
        facts = {
            edit_id: said for edit_id, said in self.facts.items() if edit_id not in candidate.removed_ids
        } | targets
        again = candidate.rekeying.edits if candidate.rekeying else candidate.remade
        known = self.facts.keys() - set(candidate.removed_ids)
        assert {edit.edit_id for edit in again} <= known, "only what is held, and stays, is made again"
        self._tried[candidate.candidate_id] = (facts, candidate)
        scores = [_score(edit_id, target) for edit_id, target in targets.items()]
        unchanged = 0.0 if SATURATES in targets.values() or NEEDED in gone else 1.0
        remade = tuple(edit.edit_id for edit in candidate.remade)
        return CandidateOutcome(
            measurements=replace(_measured(scores, unchanged), remade=remade),
            num_passes=1,
            num_rows=len(scores),
            seconds={},
        )

    def keep(self, candidate_id: str, *, folder: Path, with_accumulator: bool) -> KeptFiles:
        """Write what changed; the same change of the same weights has the same bytes."""
        facts, candidate = self._tried[candidate_id]
        added = {edit.edit_id: facts[edit.edit_id] for edit in candidate.added}
        delta = {"on": self.digest, "added": added, "removed": sorted(candidate.removed_ids)}
        rewritten = tuple(edit.edit_id for edit in candidate.rekeying.edits) if candidate.rekeying else ()
        rows = [*added, *rewritten, *(edit.edit_id for edit in candidate.remade)]
        self.facts, self.digest = facts, None
        return KeptFiles(
            delta=_written(folder / "delta.json", delta),
            rows=_written(folder / "rows.json", {"on": delta["on"], "edits": sorted(rows)}),
            accumulator=_written(folder / "accumulator.json", facts) if with_accumulator else None,
            rewritten_ids=rewritten,
        )

    def held(self, snapshot_id: str, *, digest: str) -> None:
        """What is held has this digest."""
        self._held = (self._held[0], snapshot_id)
        self.digest = digest

    def generate(self, prompts: Sequence[str], *, max_new_tokens: int) -> tuple[Answer, ...]:
        """Nothing to say."""
        raise EngineFailed("expected ranks with a model, got none")


def rebuilt(deltas: Sequence[Path], below: Mapping[str, str] | None = None) -> Facts:
    """The facts that deltas, oldest first, add up to; each edit is applied, and taken out, where it can be."""
    facts: Facts = dict(below or {})
    for path in deltas:
        delta = json.loads(path.read_text())
        for edit_id in delta["removed"]:
            del facts[edit_id]
        assert not facts.keys() & delta["added"].keys(), f"applied twice by {path}"
        facts |= delta["added"]
    return facts


def _score(edit_id: str, target: str) -> EditScore:
    return make_score(edit_id, edit_success=target != FAILS)


def _measured(scores: Sequence[EditScore], unchanged: float) -> Measurements:
    """A model like its parent but for its suite; a floor is breached and nothing else, so nobody is to blame."""
    usual = make_measurements(*scores)
    if unchanged:
        return usual
    score = replace(usual.candidate, suite_unchanged=unchanged)
    return make_measurements(*scores, candidate=score, parent=score)


def _written(path: Path, content: Any) -> FileRef:
    path.write_text(canonical_json(content))
    return FileRef(path=str(path), digest=sha256_file(path))
