"""What one rank holds: the base, loaded once in its life, and on it one snapshot of one lineage at a time."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from editors.measure.reference import Reference
from editors.measure.scorer import Scorer
from editors.mend.checkpoint import TrainedEditor
from editors.methods.base import Editor
from editors.methods.guards import Guards
from editors.methods.other_subjects import OtherSubjectChoice
from editors.methods.select import editor_for
from editors.models.comm import Comm, agreed, own_share
from editors.models.digest import BaseDigest, base_digest, config_to_record, require_base
from editors.models.families import editable
from editors.models.inner_params import InnerParam, inner_params
from editors.solve.ledger import Ledger
from editors.solve.rows import EditRows, load_batches
from editors.weights.deltas import WeightDelta, load_accumulators
from pipeline.domain.errors import EngineFailed, WrongBase
from pipeline.domain.rank_api import BaseSpec, ExportedModel, KeptFiles, LedgerPlan, LedgerRows, Loaded, LoadPlan
from workers.memory.memory_check import require_memory, solve_device
from workers.rank.exporting import described, export_model, require_free
from workers.rank.held_snapshot import Editing, HeldSnapshot
from workers.rank.sharded_model import ShardedModel, load_sharded
from workers.rank.sharded_weights import ShardedWeights
from workers.rank.validation import require_fit


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerFiles:
    """What the files of a plan say of edits that are to come."""

    ledger: Ledger
    """Rows of the active edits that this rank solves for."""
    reference: Reference
    """What the base answers."""
    editor: Editor
    """What the plan edits with."""


class HeldModel:
    """This rank's part of a base, and the snapshot that its edited weights hold.

    Args:
        config_path: a DeepSpeed JSON; the shipped one if None.
        comm: the ranks of the group; rank 0 writes files.
    """

    def __init__(self, *, config_path: Path | None, comm: Comm) -> None:
        self._config_path, self._comm = config_path, comm
        self._sharded: ShardedModel | None = None
        self._digest = BaseDigest()
        self._snapshot: HeldSnapshot | None = None
        self._is_whole = False  # a load that failed half way leaves weights of no snapshot

    @property
    def is_shared(self) -> bool:
        """Whether other ranks take part in every command."""
        return self._comm.num_ranks > 1

    @property
    def digest(self) -> str:
        """SHA-256 of this rank's part of the edited weights; empty before the first load."""
        return self._snapshot.weights.digest() if self._snapshot and self._is_whole else ""

    @property
    def snapshot(self) -> HeldSnapshot:
        """The snapshot that is held.

        Raises:
            EngineFailed: if there is none.
        """
        if self._snapshot is None or not self._is_whole:
            raise EngineFailed("expected a loaded snapshot, got a rank that holds none")
        return self._snapshot

    def warm(self, base: BaseSpec) -> None:
        """Load a base before a plan asks for it.

        Raises:
            WrongBase: if its digest is another; the next load tries again and says so.
        """
        agreed(self._comm, lambda: self._base(base))

    def load(self, plan: LoadPlan) -> Loaded:
        """Hold a snapshot: every file is read and checked before a weight is touched.

        Raises:
            WrongBase: if the base is not the one that the plan names, or the trained editor is for another.
            IntegrityBroken: if a file does not have its digest.
            Misconfigured: if the plan names an editor that there is not.
        """
        num_edits = sum(len(rows.edit_ids) for rows in plan.ledger.rows) if plan.ledger else 0
        sharded = agreed(self._comm, lambda: self._base(plan.base, plan.editor.inner_params, num_edits))
        own = own_share(self._comm, inner_params(sharded.module, plan.editor.inner_params))
        # Ranks ask each other here, and so not where one of them may fail alone.
        device = solve_device(own, next(sharded.module.parameters()).device, self._comm)
        shifts, deltas, of_ledger = agreed(self._comm, lambda: self._read(plan, sharded, own, device))
        self._is_whole = False
        held = self._snapshot = self._opened(plan, sharded, of_ledger)
        held.weights.set_accumulators(shifts)
        for delta in deltas:
            held.weights.apply(delta)
        self._is_whole = True
        config_digest = config_to_record(plan.base, self._digest)
        return Loaded(suite_keys=held.suite_keys, guard_names=held.guard_names, config_digest=config_digest)

    def keep(self, candidate_id: str, *, folder: Path, with_accumulator: bool) -> KeptFiles | None:
        """Hold a tried candidate from now on; rank 0 writes its files."""
        return self.snapshot.keep(
            candidate_id, folder=folder, with_accumulator=with_accumulator, is_writer=self._comm.rank == 0
        )

    def export(self, folder: Path) -> ExportedModel | None:
        """Write what is held as a model of its own (rank 0; None elsewhere).

        Raises:
            InvalidInput: if the folder is taken.
        """
        if self._sharded is None or not self._is_whole:
            raise EngineFailed("expected a loaded snapshot, got a rank that holds none")
        is_writer = self._comm.rank == 0
        agreed(self._comm, lambda: require_free(folder) if is_writer else None)
        export_model(self._sharded, folder, is_writer=is_writer)
        return described(folder) if is_writer else None

    def free(self) -> None:
        """Let go of the lineage: the base is held as it was loaded."""
        if self._snapshot is not None:
            self._snapshot.weights.set_accumulators({})
        self._snapshot, self._is_whole = None, False

    def _base(self, base: BaseSpec, names: Sequence[str] = (), num_edits: int = 0) -> ShardedModel:
        """Return the base, loaded at the first call and once only; its digest is computed meanwhile."""
        if self._sharded is None:
            config, comm = self._config_path, self._comm
            agreed(comm, lambda: require_memory(base, names, config_path=config, comm=comm, num_edits=num_edits))
            with ThreadPoolExecutor(1) as side:
                found = side.submit(base_digest, Path(base.ref))
                sharded = load_sharded(base, config_path=self._config_path)
            agreed(comm, lambda: require_base(base, found.result()))
            self._sharded, self._digest = sharded, found.result()
        require_base(base, self._digest)
        if self._sharded.base != base:
            raise WrongBase(f"expected a group that holds base {base.digest}, got one of {self._sharded.base.digest}")
        return self._sharded

    def _read(
        self, plan: LoadPlan, sharded: ShardedModel, own: Sequence[InnerParam], device: torch.device
    ) -> tuple[dict[str, Tensor], list[WeightDelta], LedgerFiles | None]:
        """Read everything that the plan names, and check it: accumulators (I x O), the deltas on top, the ledger.

        Of the ledger it is only what this rank solves for, its `own` inner parameters, on a device.
        """
        params = inner_params(sharded.module, plan.editor.inner_params)
        deltas = [WeightDelta.load(Path(file.path), file.digest) for file in plan.deltas]
        for file, delta in zip(plan.deltas, deltas, strict=True):
            require_fit(params, delta, file.path)
        shifts = load_accumulators(Path(plan.accumulator.path), plan.accumulator.digest) if plan.accumulator else {}
        if (wanted := plan.ledger) is None:
            return shifts, deltas, None
        ledger = Ledger.from_files(
            wanted.prior,
            wanted.rows,
            strength=plan.editor.prior_strength if wanted.prior_strength is None else wanted.prior_strength,
            ridge=plan.editor.ridge,
            names=[param.name for param in own],
            device=device,
        )
        reference = Reference.load(Path(wanted.reference.path), wanted.reference.digest)
        editor = self._editor(plan, wanted, sharded)
        return shifts, deltas, LedgerFiles(ledger=ledger, reference=reference, editor=editor)

    def _editor(self, plan: LoadPlan, wanted: LedgerPlan, sharded: ShardedModel) -> Editor:
        """Return what the plan edits with; a trained editor is read once, as long as plans name the same."""
        known = self._snapshot
        if known is not None and known.editing and (known.plan.base, known.plan.editor) == (plan.base, plan.editor):
            return known.editing.editor
        if wanted.trained is None:
            return editor_for(plan.editor)
        trained = TrainedEditor.of_files(wanted.trained, self._digest, plan.editor.transform)
        return editor_for(plan.editor, trained.transform.to(next(sharded.module.parameters()).device))

    def _opened(self, plan: LoadPlan, sharded: ShardedModel, files: LedgerFiles | None) -> HeldSnapshot:
        """Return the snapshot, before its weights are set, with what stays of another one of the same editor."""
        known = self._snapshot
        if known is not None and known.plan.editor == plan.editor:
            model, weights = known.model, known.weights
        else:
            self.free()  # the next store takes what is there now for the base
            known = None
            names = plan.editor.inner_params
            model = editable(plan.base.task, sharded.module, sharded.tokenizer, names, comm=self._comm)
            weights = ShardedWeights(sharded, model.inner)
        editing = None
        if plan.ledger is not None and files is not None:
            scorer = known.scorer_for(plan.ledger) if known else None
            scorer = scorer or Scorer(model, weights, files.reference, rephrase_rows=plan.editor.rephrase_rows)
            guards = known.guards_for(plan.ledger) if known else None
            guards = guards or Guards(model, plan.editor, kept=files.reference.texts)
            others = known.others_for(plan.ledger) if known else None
            suite = [answer.probe for answer in files.reference.suite]
            others = others or OtherSubjectChoice(model, plan.editor, suite=suite)
            editing = Editing(ledger=files.ledger, scorer=scorer, editor=files.editor, guards=guards, others=others)
        rows = plan.ledger.rows if plan.ledger and self._comm.rank == 0 else ()
        recent = agreed(self._comm, lambda: _recent_batches(rows, len(plan.deltas)))
        return HeldSnapshot(plan=plan, model=model, weights=weights, editing=editing, recent=recent)


def _recent_batches(rows: Sequence[LedgerRows], num_snapshots: int) -> list[EditRows]:
    """Return the active rows of the batches since the last stored accumulators, as far as they have their own files.

    Args:
        rows: files of rows, oldest first.
        num_snapshots: how many snapshots there are since; each has brought at most one file.
    """
    newest = [(file, list(items)) for file, items in groupby(rows, lambda item: item.file)][-num_snapshots:]
    recent: list[EditRows] = []
    for file, items in reversed(newest if num_snapshots else []):
        batches = load_batches(Path(file.path))
        if len(batches) > 1:
            break
        recent.append(batches[0].only({edit_id for item in items for edit_id in item.edit_ids}))
    return recent[::-1]
