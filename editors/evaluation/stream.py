"""A base that takes batches of edits as a lineage would, and what editing it cost in time and memory.

A later correction of a fact takes the earlier one out.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean, median
from typing import Any

from editors.data.datasets import latest_of_each_fact
from editors.evaluation.place import plain_weights
from editors.measure.memory import WatchedMemory
from editors.methods.base import EditJob, Editor, EditResult
from editors.methods.folding import FoldEditor
from editors.methods.guards import Guards
from editors.methods.nearest import bare_name
from editors.models.families import EditableModel
from editors.solve.ledger import Ledger
from editors.solve.prior import Prior
from editors.weights.deltas import WeightDelta, WeightStore
from pipeline.domain.batches import SIBLINGS
from pipeline.domain.edits import Edit
from pipeline.domain.errors import EditorFailed
from pipeline.domain.rank_api import EditorSettings


class Stream:
    """A base that takes batches of edits.

    Args:
        model: holds the base's weights.
        editor: what makes the edits.
        prior: the prior of the base.
        settings: the editor's settings.
        cost: where the cost is added up; a new meter if left out.
        ledger: a ledger of the base without rows, which gets none, for a stream of one batch; a new one if left out.
        guards: chooses the subjects that edits hold; one that keeps nothing back for probes if left out.
        weights_of: returns the edited weights of the model.

    Attributes:
        weights: the edited weights.
        ledger: the rows of the edits that hold.
        active: the edits that should hold by id, oldest first.
        history: the batches that were applied, in order, each with the latest edit of each fact.
        cost: what editing took, or a fold after it.
    """

    def __init__(
        self,
        model: EditableModel,
        editor: Editor,
        prior: Prior,
        settings: EditorSettings,
        cost: CostMeter | None = None,
        ledger: Ledger | None = None,
        guards: Guards | None = None,
        weights_of: Callable[[EditableModel], WeightStore] = plain_weights,
    ) -> None:
        self._model, self._editor = model, editor
        self._guards = guards or Guards(model, settings)
        self._removes, self._remakes = settings.solver == "recursive", settings.remakes_siblings
        self._most = settings.batch_size
        self._keeps_ledger = editor.keeps_ledger and ledger is None
        self._memory = WatchedMemory(model.device)
        with self._memory.watching():
            strength, ridge = settings.prior_strength, settings.ridge
            self.ledger = ledger or Ledger(prior, strength=strength, ridge=ridge, device=model.device)
            self.weights = weights_of(model)
        self.active: dict[str, Edit] = {}
        self._holding: dict[str, str] = {}  # conflict key -> the edit that holds, also when a later one failed
        self._edited: set[str] = set()  # subjects, as guards are compared with them
        self.history: list[list[Edit]] = []
        self.cost = cost or CostMeter(model_bytes(model))

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """Give the model its present weights back at the end, whatever happened."""
        self._untouched = self.weights.save()
        try:
            yield
        finally:
            self.weights.restore(self._untouched)

    def take(self, batch: Sequence[Edit]) -> None:
        """Edit, apply and remember a batch; one whose numbers cannot be used is counted, and its edits do not hold."""
        latest = latest_of_each_fact(list(batch))
        with self._memory.watching():
            self._make(latest)
        self.cost.peak_bytes = max(self.cost.peak_bytes, self._memory.peak_bytes or 0)
        corrected = {edit.request.conflict_key for edit in latest}
        self.active = {i: edit for i, edit in self.active.items() if edit.request.conflict_key not in corrected}
        self.active |= {edit.edit_id: edit for edit in latest}
        self.history.append(latest)

    def fold(self, editor: FoldEditor) -> None:
        """Give the model weights that learnt the active edits from the base; inside `restoring` a base, only once.

        The ledger stays as it is: it tells where to begin.
        """
        self.weights.restore(self._untouched)
        edits = list(self.active.values())
        job = EditJob(
            model=self._model, weights=self.weights, ledger=self.ledger, added=edits, guards=self._guards.of(edits)
        )
        self.cost = CostMeter(model_bytes(self._model))
        with self._memory.watching():
            began = time.perf_counter()
            result = editor.edit(job)
            self.weights.apply(result.delta)
        self.cost.peak_bytes = max(self.cost.peak_bytes, self._memory.peak_bytes or 0)
        self.cost.add(result, len(edits), apply=0.0, total=time.perf_counter() - began)

    def _make(self, added: Sequence[Edit]) -> None:
        keys = [edit.request.conflict_key for edit in added]
        removed_ids = [self._holding[key] for key in keys if key in self._holding] if self._removes else []
        remade = self._siblings(added, removed_ids) if self._remakes and self._keeps_ledger else []
        began = time.perf_counter()
        try:
            result = self._editor.edit(
                EditJob(
                    model=self._model,
                    weights=self.weights,
                    ledger=self.ledger,
                    added=[*remade, *added],
                    removed_ids=[*removed_ids, *(edit.edit_id for edit in remade)],
                    guards=self._guards.of([*remade, *added], self._edited),
                )
            )
        except EditorFailed as error:
            self.cost.failures.append(str(error))
            return
        edited = time.perf_counter()
        self.weights.apply(result.delta)
        if self._keeps_ledger:
            self.ledger.commit(result.rows, result.removed_ids)
        self._holding |= {edit.request.conflict_key: edit.edit_id for edit in added}
        self._edited |= {bare_name(edit.request.subject) for edit in added if edit.request.subject}
        ended = time.perf_counter()
        self.cost.add(result, len(added), apply=ended - edited, total=ended - began)

    def _siblings(self, added: Sequence[Edit], removed_ids: Collection[str]) -> list[Edit]:
        """Return what a lineage would make again beside some edits: the newest active edits about their subjects."""
        about = {edit.request.subject_key for edit in added} - {""}
        of_subject: Counter[str] = Counter()
        found: list[Edit] = []
        for edit_id in reversed(self.ledger.edit_ids):
            subject = self.active[edit_id].request.subject_key if edit_id in self.active else ""
            if subject in about and edit_id not in removed_ids and of_subject[subject] < SIBLINGS:
                of_subject[subject] += 1
                found.append(self.active[edit_id])
        return found[: self._most][::-1]


class CostMeter:
    """Adds up what editing cost, batch by batch.

    Args:
        model_bytes: size of the model, with which memory and files are compared.

    Attributes:
        peak_bytes: most memory that was held above the loaded model; 0 if unknown.
        failures: what was wrong with each batch that could not be used.
        kept_bytes: size of what has to be kept of all batches: of deltas, or of what is there in their place.
    """

    def __init__(self, model_bytes: int) -> None:
        self._model_bytes = model_bytes
        self.peak_bytes = 0
        self.sizes: list[int] = []
        self.seconds: list[dict[str, float]] = []
        self.passes: list[int] = []
        self.delta_bytes: list[int] = []
        self.kept_bytes = 0
        self.jitter: list[dict[str, float]] = []
        self.failures: list[str] = []

    def add(self, result: EditResult, num_edits: int, *, apply: float, total: float) -> None:
        """Add a batch that was made.

        Args:
            result: what the editor returned.
            num_edits: edits of the batch.
            apply: seconds it took to write the weights and the ledger.
            total: seconds of the whole batch.
        """
        self.sizes.append(num_edits)
        self.seconds.append({**result.seconds, "apply": apply, "total": total})
        self.passes.append(result.num_passes)
        self.delta_bytes.append(num_bytes(result.delta))
        self.kept_bytes += self.delta_bytes[-1] if result.kept_bytes is None else result.kept_bytes
        self.jitter.append(result.jitter)

    def editing(self) -> dict[str, Any]:
        """Return passes, failures and sizes, which are the same whenever the same edits are made."""
        largest = max(self.delta_bytes, default=0)
        return {
            "batches": len(self.sizes),
            "passes": fmean(self.passes) if self.passes else None,
            "failed_batches": len(self.failures),
            "first_failure": self.failures[0] if self.failures else None,
            "jitter_batches": sum(bool(jitter) for jitter in self.jitter),
            "delta_bytes": largest,
            "delta_share_of_model": largest / self._model_bytes,
            "bytes_per_edit": self.kept_bytes / sum(self.sizes) if self.sizes else None,
        }

    def resources(self) -> dict[str, Any]:
        """Return seconds an edit, by phase, and a batch, and the most memory above the loaded model, bytes."""
        made = sum(self.sizes)
        peak = self.peak_bytes or None
        memory = {"peak_bytes_above_model": peak, "peak_share_of_model": peak / self._model_bytes if peak else None}
        if not made:
            return {"seconds_per_edit": None} | memory
        phases = {name: sum(seconds[name] for seconds in self.seconds) / made for name in self.seconds[0]}
        totals = [seconds["total"] for seconds in self.seconds]
        batches = {"first": totals[0], "median": median(totals), "last": totals[-1]}
        total = phases.pop("total")
        return {"seconds_per_edit": total, "phases_per_edit": phases, "seconds_per_batch": batches} | memory


def num_bytes(delta: WeightDelta) -> int:
    """Return the size of a delta's factors as they are stored."""
    return sum(factor.numel() * factor.element_size() for pair in delta.factors.values() for factor in pair)


def model_bytes(model: EditableModel) -> int:
    """Return the size of the model's parameters, each counted once, also of those that ranks hold parts of."""
    # DeepSpeed leaves of a partitioned parameter its whole size.
    return sum(getattr(one, "ds_numel", one.numel()) * one.element_size() for one in model.module.parameters())
