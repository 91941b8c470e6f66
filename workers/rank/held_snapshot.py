"""One snapshot in the weights of a rank: the candidates that are tried on it, the one that is kept, and its answers.

Between two calls the edited weights are exactly those of the snapshot that was loaded or kept last.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from editors.measure.scorer import Scorer
from editors.methods.base import EditJob, Editor, EditResult
from editors.methods.guards import Guards
from editors.methods.leaving_out import can_leave_out, without
from editors.methods.nearest import bare_name
from editors.methods.other_subjects import OtherSubjectChoice
from editors.methods.rekeying import RekeyJob, resolve
from editors.models.comm import agreed
from editors.models.families import EditableModel
from editors.solve.ledger import Ledger, batches_of
from editors.solve.rows import EditRows, load_batches, save_batches
from editors.weights.deltas import save_accumulators
from pipeline.domain.errors import EngineFailed, UnknownRecord
from pipeline.domain.failpoints import failpoint
from pipeline.domain.formats.canonical import canonical_json, sha256_blocks
from pipeline.domain.measurements import Measurements
from pipeline.domain.rank_api import Answer, Candidate, CandidateOutcome, FileRef, KeptFiles, LedgerPlan, LoadPlan, tell
from workers.rank.sharded_weights import ShardedWeights
from workers.rank.validation import askable, encodable, require_encodable, require_finite

GENERATED_TOGETHER = 64
"""Prompts continued in one batch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Editing:
    """What candidates are made and measured with."""

    ledger: Ledger
    """Rows of the active edits that this rank solves for."""
    scorer: Scorer
    """Measures candidates against the snapshot."""
    editor: Editor
    """The method that makes candidates."""
    guards: Guards
    """Chooses the other subjects that an edit holds."""
    others: OtherSubjectChoice
    """Chooses the other subjects that an edit's own prompt is asked about."""


@dataclass(kw_only=True, slots=True)
class HeldSnapshot:
    """A snapshot of a lineage on the base that is loaded."""

    plan: LoadPlan
    """What it was put together from; its id and digest move on with `committed`."""
    model: EditableModel
    """The base's module with the lineage's inner parameters."""
    weights: ShardedWeights
    """This rank's part of the edited weights."""
    editing: Editing | None
    """What candidates are made with; None where the plan had no ledger."""
    recent: list[EditRows] = field(default_factory=list)
    """On the rank that writes: rows of the batches that have a file of their own, oldest first."""
    tried: dict[str, EditResult] = field(default_factory=dict)
    """Candidates of the snapshot that is being made, by candidate id."""
    tried_for: str = ""
    """The id that this snapshot will have; each try at another one begins with an id of its own."""
    last_candidate: str = ""
    """The candidate whose answers the scorer has."""

    @property
    def suite_keys(self) -> tuple[str, ...]:
        """Conflict keys of the facts that the lineage's suite asks for, sorted; none without a ledger."""
        facts = self.editing.scorer.suite_facts if self.editing else ()
        return tuple(sorted(canonical_json([self.plan.lineage, *json.loads(fact)]) for fact in facts))

    @property
    def guard_names(self) -> tuple[str, ...]:
        """Names that may be guards of edits, or that gates may ask about, in lower case; none without a ledger."""
        return (*self.editing.guards.names, *self.editing.others.names) if self.editing else ()

    def scorer_for(self, wanted: LedgerPlan) -> Scorer | None:
        """Return the scorer for another snapshot of the lineage, if that is measured by the same suite and text."""
        if self.editing is None or not self._is_measured_by(wanted):
            return None
        self.editing.scorer.reset()
        return self.editing.scorer

    def guards_for(self, wanted: LedgerPlan) -> Guards | None:
        """Return what chooses guards for another snapshot of the lineage, if that is measured by the same suite."""
        return self.editing.guards if self.editing is not None and self._is_measured_by(wanted) else None

    def others_for(self, wanted: LedgerPlan) -> OtherSubjectChoice | None:
        """Return what chooses other subjects for another snapshot of the lineage, if that is measured alike."""
        return self.editing.others if self.editing is not None and self._is_measured_by(wanted) else None

    def _is_measured_by(self, wanted: LedgerPlan) -> bool:
        return self.plan.ledger is not None and self.plan.ledger.reference == wanted.reference

    def evidence(self, candidate_id: str) -> str:
        """Return the SHA-256 of a candidate's factors, which every rank must have found alike."""
        pairs = self._tried(candidate_id).delta.factors.values()
        return sha256_blocks(factor.numpy().tobytes() for pair in pairs for factor in pair)

    def try_edits(self, candidate: Candidate) -> CandidateOutcome:
        """Edit, apply, measure, and go back to the snapshot, bit for bit, whatever happened.

        Raises:
            EditorFailed: if the model can never say what an edit asks for, or the numbers cannot be used.
            UnknownRecord: if an edit is to leave that has no rows, or the candidate is a part of an unknown one.
        """
        editing = self._editing()
        scorer = editing.scorer
        require_encodable(self.model, candidate.added)
        candidate = replace(
            candidate,
            remade=encodable(self.model, candidate.remade),
            retained=askable(self.model, candidate.retained),
        )
        if candidate.snapshot_id != self.tried_for:  # what refused batches leave would pile up
            self.tried.clear()
            editing.ledger.forget_trials()
            self.tried_for = candidate.snapshot_id
        tell("reading the edits")
        edited = {bare_name(name) for name in candidate.edited_names}
        with _unchanged(self.weights):
            guards = editing.guards.of((*candidate.remade, *candidate.added), edited)
            result = self._changed(editing, candidate, guards, edited)
            tell("measuring the model before")
            clock = _Clock()
            others = editing.others.of(
                candidate.added, edited=edited, related=candidate.related_subjects, guards=guards
            )
            scorer.observe_parent(candidate.added, candidate.retained, others)
            observing = clock.lap()
            failpoint("rank:before_apply")
            self.weights.apply(result.delta)
            applying = clock.lap()
            self.last_candidate = ""  # what the scorer has from here on is of this one, also if its figures are refused
            measurements = scorer.measure(
                added=candidate.added,
                retained=candidate.retained,
                remade=candidate.remade,
                gone_keys=candidate.gone_keys,
                delta=result.delta,
                others=others,
            )
            seconds = {**result.seconds, "apply": applying, "measure": observing + clock.lap()}
        measurements = self._with_ledger(measurements, editing, result)
        measurements = replace(measurements, remade=tuple(edit.edit_id for edit in candidate.remade))
        require_finite(measurements)
        self.tried[candidate.candidate_id], self.last_candidate = result, candidate.candidate_id
        return CandidateOutcome(
            measurements=measurements,
            num_passes=result.num_passes,
            num_rows=result.num_rows,
            seconds=seconds,
        )

    def _with_ledger(self, found: Measurements, editing: Editing, result: EditResult) -> Measurements:
        """Return figures with the state of the ledger, where that is not as it was made."""
        strength = (result.ledger or editing.ledger).strength
        is_told = result.ledger is not None or strength != self.plan.editor.prior_strength
        return replace(
            found,
            prior_strength=strength if is_told else None,
            solved_anew=result.distance,
            scaled_back=result.scaled_back,
        )

    def _changed(
        self,
        editing: Editing,
        candidate: Candidate,
        guards: Mapping[str, tuple[str, ...]],
        edited: Collection[str],
    ) -> EditResult:
        """Return the change of a candidate: edits that come and go, or the whole ledger solved anew."""
        if (anew := candidate.rekeying) is None:
            job = EditJob(
                model=self.model,
                weights=self.weights,
                ledger=editing.ledger,
                added=(*candidate.remade, *candidate.added),
                removed_ids=(*candidate.removed_ids, *(edit.edit_id for edit in candidate.remade)),
                guards=guards,
            )
            whole = self._tried(candidate.part_of) if candidate.part_of else None
            if whole is not None and editing.editor.keeps_ledger and can_leave_out(whole):
                return without(job, whole)
            return editing.editor.edit(job)
        return resolve(
            RekeyJob(
                model=self.model,
                weights=self.weights,
                ledger=editing.ledger,
                settings=self.plan.editor,
                strength=anew.prior_strength,
                edits=anew.edits,
                # Each rank reads the files, and one that cannot must not leave the others in a solve.
                batches=agreed(self.model.comm, lambda: tuple(batches_of(anew.rows))),
                guards_of=lambda edits: editing.guards.of(edits, edited),
            )
        )

    def keep(self, candidate_id: str, *, folder: Path, with_accumulator: bool, is_writer: bool) -> KeptFiles | None:
        """Hold a tried candidate from now on, and write its files on the rank that writes (None elsewhere).

        With the accumulators, the rows of the batches since the last ones are written again, into one file with the
        candidate's: so a ledger of many edits is read from few files.

        Raises:
            UnknownRecord: if no such candidate was tried for the snapshot that is being made.
        """
        editing, result = self._editing(), self._tried(candidate_id)
        self.weights.apply(result.delta)
        if result.ledger is not None:
            self.editing = replace(editing, ledger=result.ledger)
        else:
            editing.ledger.commit(result.rows, result.removed_ids)
        if self.last_candidate == candidate_id:
            editing.scorer.keep()
        else:
            editing.scorer.reset()
        self.tried.clear()
        shifts = self._whole_shifts(is_kept=is_writer) if with_accumulator else None
        failpoint("rank:before_files")
        if not is_writer:
            return None
        delta, rows, accumulator = (folder / f"{part}.safetensors" for part in ("delta", "rows", "accumulator"))
        self.recent = [batch.only(set(batch.edit_ids) - set(result.removed_ids)) for batch in self.recent]
        rewritten = [batch for batch in self.recent if batch.edit_ids] if with_accumulator else []
        if result.batches:  # keys were read again: every active edit has other rows
            rewritten = list(result.batches)
        files = KeptFiles(
            delta=FileRef(path=str(delta), digest=result.delta.save(delta)),
            rows=FileRef(path=str(rows), digest=save_batches(rows, [*rewritten, result.rows])),
            accumulator=FileRef(path=str(accumulator), digest=save_accumulators(accumulator, shifts))
            if shifts is not None
            else None,
            rewritten_ids=tuple(edit_id for batch in rewritten for edit_id in batch.edit_ids),
        )
        # What was written is mapped: rows of up to 31 batches need not stay in memory.
        self.recent = [] if with_accumulator else [*self.recent, *load_batches(rows)]
        return files

    def committed(self, snapshot_id: str, *, digest: str) -> None:
        """Take note of the snapshot that the kept candidate became."""
        self.plan = replace(self.plan, snapshot_id=snapshot_id, digest=digest)

    def generate(self, prompts: Sequence[str], *, max_new_tokens: int, chat: bool = False) -> tuple[Answer, ...]:
        """Return greedy continuations of the prompts as they are, or answers to them in the chat template."""
        answers: list[str] = []
        for start in range(0, len(prompts), GENERATED_TOGETHER):
            together = prompts[start : start + GENERATED_TOGETHER]
            answers += self.model.generate(together, chat=chat, max_new_tokens=max_new_tokens)
        return tuple(Answer(prompt=prompt, text=text) for prompt, text in zip(prompts, answers, strict=True))

    def _whole_shifts(self, *, is_kept: bool) -> dict[str, Tensor]:
        """Gather the accumulators of all ranks, one at a time on every rank, and return them where they are kept."""
        shifts = {}
        for name in self.model.inner_param_names:
            whole = self.weights.shift(name)
            if is_kept:
                shifts[name] = whole.cpu()
        return shifts

    def _editing(self) -> Editing:
        if self.editing is None:
            raise EngineFailed("expected a snapshot that was loaded with its ledger, got one that only answers")
        return self.editing

    def _tried(self, candidate_id: str) -> EditResult:
        result = self.tried.get(candidate_id)
        if result is None:
            raise UnknownRecord(
                f"expected a candidate of the snapshot that is held, got {candidate_id}", candidate_id=candidate_id
            )
        return result


class _Clock:
    """Wall time between one `lap` and the next."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    def lap(self) -> float:
        began, self._began = self._began, time.perf_counter()
        return self._began - began


@contextmanager
def _unchanged(weights: ShardedWeights) -> Iterator[None]:
    """Put the weights back to what they were on entry, and make sure of it."""
    saved, before = weights.save(), weights.digest()
    try:
        yield
    finally:
        weights.restore(saved)
        if weights.digest() != before:
            raise EngineFailed(f"expected the weights to be restored to {before}, got {weights.digest()}")
