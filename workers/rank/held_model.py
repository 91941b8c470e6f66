"""What one rank holds, and what it does with it: load, try, keep, generate. Knows no socket and no other rank's part.

Between two commands the edited weights are exactly those of the snapshot that was loaded or kept last.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from editors.measure.reference import Reference
from editors.measure.scorer import Scorer
from editors.mend.checkpoint import TrainedEditor
from editors.methods.base import Editor, EditResult
from editors.methods.select import editor_for
from editors.models.comm import Comm, agreed, own_share
from editors.models.digest import base_digest
from editors.models.families import EditableModel, editable
from editors.models.inner_params import inner_params
from editors.solve.ledger import Ledger
from editors.weights.deltas import WeightDelta, load_accumulators, save_accumulators
from pipeline.domain.canonical import canonical_json, sha256_blocks
from pipeline.domain.errors import EngineFailed, UnknownRecord, WrongBase
from pipeline.domain.failpoints import failpoint
from pipeline.domain.rank_api import (
    Answer,
    BaseSpec,
    Candidate,
    CandidateOutcome,
    ExportedModel,
    FileRef,
    KeptFiles,
    LedgerPlan,
    Loaded,
    LoadPlan,
)
from workers.memory.memory_check import require_memory
from workers.rank.exporting import described, export_model, require_free
from workers.rank.sharded_model import ShardedModel, load_sharded
from workers.rank.sharded_weights import ShardedWeights
from workers.rank.validation import require_digest, require_encodable, require_finite, require_fit

GENERATED_TOGETHER = 64
"""Prompts continued in one batch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Editing:
    """What edits on a snapshot are made and measured with."""

    ledger: Ledger
    """Rows of its active edits."""
    scorer: Scorer
    """Measures against the snapshot."""
    editor: Editor
    """Makes candidates."""


@dataclass(kw_only=True, slots=True)
class Lineage:
    """A lineage on the base that is loaded."""

    plan: LoadPlan
    """What is held; its snapshot moves on with `held`."""
    model: EditableModel
    """The base's module with the lineage's inner parameters."""
    weights: ShardedWeights
    """They hold the snapshot."""
    editing: Editing | None
    """What edits are made with; None where the plan had no ledger."""
    tried: dict[str, EditResult]
    """Candidates since the snapshot was loaded, by candidate id."""
    last_candidate: str = ""
    """The one whose answers the scorer has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanFiles:
    """What the files of a plan hold."""

    shifts: dict[str, Tensor]
    """Accumulators by inner parameter; none for the base."""
    deltas: list[WeightDelta]
    """What comes on top of them."""
    editing: tuple[Ledger, Reference, Editor] | None
    """Rows of the active edits, what the base answers, and what the plan edits with; None without a ledger."""


class HeldModel:
    """The rank's part of a model, and everything that candidates are made from.

    Args:
        config_path: a DeepSpeed JSON; the shipped one if None.
        comm: the ranks of the group; rank 0 writes the files of a kept candidate.
    """

    def __init__(self, *, config_path: Path | None, comm: Comm) -> None:
        self._config_path, self._peers = config_path, comm
        self._sharded: ShardedModel | None = None
        self._lineage: Lineage | None = None
        self._is_whole = False

    @property
    def is_shared(self) -> bool:
        """Whether other ranks take part in every command."""
        return self._peers.num_ranks > 1

    @property
    def digest(self) -> str:
        """SHA-256 of this rank's part of the edited weights; empty before the first load."""
        return self._lineage.weights.digest() if self._lineage and self._is_whole else ""

    def evidence(self, candidate_id: str) -> str:
        """SHA-256 of a candidate's factors, which every rank must have found alike."""
        pairs = self._tried(candidate_id).delta.factors.values()
        return sha256_blocks(factor.numpy().tobytes() for pair in pairs for factor in pair)

    def warm(self, base: BaseSpec) -> None:
        """Load a base before a plan asks for it.

        Raises:
            WrongBase: if its digest is another; the next load tries again and says so.
        """
        agreed(self._peers, lambda: self._base(base))

    def load(self, plan: LoadPlan) -> Loaded:
        """Hold a snapshot: every file is read and checked before a weight is touched.

        Raises:
            WrongBase: if the base is not the one that the plan names, or the trained editor is for another.
            IntegrityBroken: if a file does not have its digest.
            Misconfigured: if the plan names an editor that there is not.
        """
        sharded = agreed(self._peers, lambda: self._base(plan.base, plan.editor.inner_params))
        files = agreed(self._peers, lambda: self._read(plan, sharded))
        self._is_whole = False
        self._lineage = self._opened(plan, sharded, files)
        self._lineage.weights.set_accumulators(files.shifts)
        for delta in files.deltas:
            self._lineage.weights.apply(delta)
        self._is_whole = True
        return Loaded(suite_keys=_suite_keys(self._lineage))

    def try_edits(self, candidate: Candidate) -> CandidateOutcome:
        """Edit, apply, measure, and go back to what was held, bit for bit, whatever happened.

        Raises:
            EditorFailed: if the model can never say what an edit asks for, or the numbers cannot be used.
            UnknownRecord: if an edit is to leave that has no rows.
        """
        held, editing = self._held(), self._editing()
        require_encodable(held.model, candidate.added)
        with _unchanged(held.weights):
            result = editing.editor.edit(
                held.model, held.weights, editing.ledger, candidate.added, candidate.removed_ids
            )
            clock = _Clock()
            editing.scorer.observe_parent(candidate.added, candidate.retained)
            observing = clock.lap()
            failpoint("rank:before_apply")
            held.weights.apply(result.delta)
            applying = clock.lap()
            measurements = editing.scorer.measure(
                added=candidate.added, retained=candidate.retained, gone_keys=candidate.gone_keys, delta=result.delta
            )
            seconds = {**result.seconds, "apply": applying, "measure": observing + clock.lap()}
        require_finite(measurements)
        held.tried[candidate.candidate_id], held.last_candidate = result, candidate.candidate_id
        return CandidateOutcome(
            measurements=measurements, num_passes=result.num_passes, num_rows=result.num_rows, seconds=seconds
        )

    def keep(self, candidate_id: str, *, folder: Path, with_accumulator: bool) -> KeptFiles | None:
        """Write a tried candidate's files (rank 0; None elsewhere) and hold it from now on.

        Raises:
            UnknownRecord: if no such candidate was made since the last load.
        """
        held, editing, result = self._held(), self._editing(), self._tried(candidate_id)
        held.weights.apply(result.delta)
        editing.ledger.commit(result.rows, result.removed_ids)
        if held.last_candidate == candidate_id:
            editing.scorer.keep()
        else:
            editing.scorer.reset()
        held.tried.clear()
        is_writer = self._peers.rank == 0
        shifts = self._whole_shifts(held, is_kept=is_writer) if with_accumulator else None
        failpoint("rank:before_files")
        if not is_writer:
            return None
        delta, rows, accumulator = (folder / f"{part}.safetensors" for part in ("delta", "rows", "accumulator"))
        return KeptFiles(
            delta=FileRef(path=str(delta), digest=result.delta.save(delta)),
            rows=FileRef(path=str(rows), digest=result.rows.save(rows)),
            accumulator=FileRef(path=str(accumulator), digest=save_accumulators(accumulator, shifts))
            if shifts is not None
            else None,
        )

    def _whole_shifts(self, held: Lineage, *, is_kept: bool) -> dict[str, Tensor]:
        """The accumulators of all ranks, gathered one at a time by every rank, for the one that keeps them."""
        shifts = {}
        for name in held.model.inner_param_names:
            whole = held.weights.shift(name)
            if is_kept:
                shifts[name] = whole.cpu()
        return shifts

    def held(self, snapshot_id: str, *, digest: str) -> None:
        """Take note of the snapshot that the kept candidate became."""
        held = self._held()
        held.plan = replace(held.plan, snapshot_id=snapshot_id, digest=digest)

    def generate(self, prompts: Sequence[str], *, max_new_tokens: int) -> tuple[Answer, ...]:
        """Greedy continuations of the prompts, as they are, by what is held."""
        model, answers = self._held().model, list[str]()
        for start in range(0, len(prompts), GENERATED_TOGETHER):
            together = prompts[start : start + GENERATED_TOGETHER]
            answers += model.generate(together, max_new_tokens=max_new_tokens)
        return tuple(Answer(prompt=prompt, text=text) for prompt, text in zip(prompts, answers, strict=True))

    def export(self, folder: Path) -> ExportedModel | None:
        """Write what is held as a model of its own (rank 0; None elsewhere).

        Raises:
            InvalidInput: if the folder is taken.
        """
        self._held()
        is_writer = self._peers.rank == 0
        agreed(self._peers, lambda: require_free(folder) if is_writer else None)
        assert self._sharded is not None
        export_model(self._sharded, folder, is_writer=is_writer)
        return described(folder) if is_writer else None

    def free(self) -> None:
        """Let go of the lineage: the base is held as it was loaded."""
        if self._lineage is not None:
            self._lineage.weights.set_accumulators({})
        self._lineage, self._is_whole = None, False

    def _base(self, base: BaseSpec, inner_param_names: Sequence[str] = ()) -> ShardedModel:
        """The base, loaded at the first call and once only; its digest is computed meanwhile."""
        if self._sharded is None:
            config, comm = self._config_path, self._peers
            agreed(comm, lambda: require_memory(base, inner_param_names, config_path=config, comm=comm))
            with ThreadPoolExecutor(1) as side:
                found = side.submit(base_digest, Path(base.ref))
                sharded = load_sharded(base, config_path=self._config_path)
            agreed(comm, lambda: require_digest(base, found.result()))
            self._sharded = sharded
        if self._sharded.base != base:
            raise WrongBase(f"expected a group that holds base {base.digest}, got one of {self._sharded.base.digest}")
        return self._sharded

    def _read(self, plan: LoadPlan, sharded: ShardedModel) -> PlanFiles:
        """Everything that the plan names, checked; of the ledger what this rank solves for."""
        params = inner_params(sharded.module, plan.editor.inner_params)
        names = own_share(self._peers, [param.name for param in params])
        deltas = [WeightDelta.load(Path(file.path), file.digest) for file in plan.deltas]
        for file, delta in zip(plan.deltas, deltas, strict=True):
            require_fit(params, delta, file.path)
        return PlanFiles(
            shifts=load_accumulators(Path(plan.accumulator.path), plan.accumulator.digest) if plan.accumulator else {},
            deltas=deltas,
            editing=self._read_ledger(plan, plan.ledger, sharded, names) if plan.ledger else None,
        )

    def _read_ledger(
        self, plan: LoadPlan, of: LedgerPlan, sharded: ShardedModel, names: Sequence[str]
    ) -> tuple[Ledger, Reference, Editor]:
        settings = plan.editor
        ledger = Ledger.from_files(
            of.prior, of.rows, strength=settings.prior_strength, ridge=settings.ridge, names=names
        )
        baseline = Reference.load(Path(of.baseline.path), of.baseline.digest)
        return ledger, baseline, self._editor(plan, of, sharded)

    def _editor(self, plan: LoadPlan, of: LedgerPlan, sharded: ShardedModel) -> Editor:
        """What the plan edits with; a trained editor is read once, as long as the plan names the same."""
        known = self._lineage
        if known is not None and known.editing and (known.plan.base, known.plan.editor) == (plan.base, plan.editor):
            return known.editing.editor
        if of.trained is None:
            return editor_for(plan.editor)
        trained = TrainedEditor.of_files(of.trained, plan.base.digest, plan.editor.transform)
        return editor_for(plan.editor, trained.transform.to(next(sharded.module.parameters()).device))

    def _opened(self, plan: LoadPlan, sharded: ShardedModel, files: PlanFiles) -> Lineage:
        """The lineage, with what is kept of it when only its snapshot changes."""
        known = self._lineage
        if known is not None and known.plan.editor == plan.editor:
            model, weights = known.model, known.weights
        else:
            self.free()  # the next store takes what is there now for the base
            known = None
            names = plan.editor.inner_params
            model = editable(plan.base.task, sharded.module, sharded.tokenizer, names, comm=self._peers)
            weights = ShardedWeights(sharded, model.inner)
        editing = None
        if plan.ledger is not None and files.editing is not None:
            ledger, baseline, editor = files.editing
            if known is not None and known.editing and known.plan.ledger:
                is_same = known.plan.ledger.baseline == plan.ledger.baseline
                scorer = known.editing.scorer if is_same else Scorer(model, weights, baseline)
                scorer.reset()
            else:
                scorer = Scorer(model, weights, baseline)
            editing = Editing(ledger=ledger, scorer=scorer, editor=editor)
        return Lineage(plan=plan, model=model, weights=weights, editing=editing, tried={})

    def _held(self) -> Lineage:
        if self._lineage is None or not self._is_whole:
            raise EngineFailed("expected a loaded snapshot, got a rank that holds none")
        return self._lineage

    def _editing(self) -> Editing:
        editing = self._held().editing
        if editing is None:
            raise EngineFailed("expected a snapshot that was loaded with its ledger, got one that only answers")
        return editing

    def _tried(self, candidate_id: str) -> EditResult:
        result = self._held().tried.get(candidate_id)
        if result is None:
            raise UnknownRecord(
                f"expected a candidate of the snapshot that is held, got {candidate_id}", candidate_id=candidate_id
            )
        return result


def _suite_keys(lineage: Lineage) -> tuple[str, ...]:
    """Conflict keys of the facts that the lineage's suite asks for."""
    if lineage.editing is None:
        return ()
    facts = lineage.editing.scorer.suite_facts
    return tuple(sorted(canonical_json([lineage.plan.lineage, *json.loads(fact)]) for fact in facts))


class _Clock:
    """Laps of wall time."""

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
