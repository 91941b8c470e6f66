"""Knows the two ways an editor is measured: a stream of batches, and one edit at a time from the unedited base.

In a stream batches are applied one after the other as a lineage would, a later correction of a fact taking the earlier
one out. Knows no file and no screen; the model holds the base again when either is done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any, Literal

from editors.base import Editor, EditResult
from editors.datasets import latest_of_each_fact
from editors.deltas import PlainWeights, WeightDelta
from editors.edit_figures import averaged
from editors.edit_probes import EditProbes
from editors.families import CausalModel
from editors.ledger import Ledger
from editors.prior import Prior
from editors.stream_metrics import SampleSizes, stream_figures
from pipeline.domain.batches import stratified_sample
from pipeline.domain.edits import Edit
from pipeline.domain.errors import EditorFailed
from pipeline.domain.trials import EditorSettings

Tell = Callable[[str, int, dict[str, Any] | None], None]
"""(what is done, edits so far, figures if some were measured)."""

NUM_TEXT_SAMPLE = 32
"""Single edits after each of which the perplexity of plain text is measured."""
FEWER_ON_THE_WAY = 4
"""How many times fewer edits are asked freely at a checkpoint on the way than at the end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """How edits are applied and when they are measured."""

    kind: Literal["stream", "single"] = "stream"
    """Batches on top of each other, or each edit by itself."""
    batch: int = 32
    """Edits a batch."""
    checkpoint_every: int | None = None
    """Edits between checkpoints; 0 for none on the way, None for about every power of two."""
    sample: int = 512
    """Active edits asked at a checkpoint on the way; at the end all are."""
    free_sample: int = 256
    """Edits asked freely at the end."""
    seed: int = 0
    """Of every sample."""

    def is_checkpoint(self, before: int, after: int, total: int) -> bool:
        """Whether to measure after the batch that led from `before` to `after` edits."""
        if after == total:
            return True
        if self.checkpoint_every is None:
            return after.bit_length() > before.bit_length()
        return self.checkpoint_every > 0 and after // self.checkpoint_every > before // self.checkpoint_every

    def sizes(self, *, is_end: bool) -> SampleSizes:
        """How many edits a checkpoint asks."""
        if is_end:
            return SampleSizes(forced=None, preferring=self.sample, free=self.free_sample)
        fewer = -(-self.free_sample // FEWER_ON_THE_WAY)
        return SampleSizes(forced=self.sample, preferring=self.sample, free=fewer)


class Stream:
    """A base that takes batches of edits, who is active in it, and what that cost.

    Args:
        model: holds the base's weights.
        editor: makes the edits.
        prior: of the base.
        settings: of the editor.
        bill: where the cost is written; a new one if left out.
    """

    def __init__(
        self,
        model: CausalModel,
        editor: Editor,
        prior: Prior,
        settings: EditorSettings,
        bill: Bill | None = None,
    ) -> None:
        self._model, self._editor = model, editor
        self._removes = settings.solver == "recursive"
        self.ledger = Ledger(prior, strength=settings.prior_strength)
        self.weights = PlainWeights(model.module, model.inner)
        self.active: dict[str, Edit] = {}
        self.history: list[list[Edit]] = []
        self.bill = bill or Bill()

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """Give the model back its weights at the end, whatever happened."""
        untouched = self.weights.save()
        try:
            yield
        finally:
            self.weights.restore(untouched)

    def take(self, batch: Sequence[Edit]) -> None:
        """Edit, apply and remember a batch. One whose numbers cannot be used is counted, and its edits do not hold."""
        latest = latest_of_each_fact(list(batch))
        held = {edit.request.conflict_key: edit.edit_id for edit in self.active.values()}
        gone = [held[edit.request.conflict_key] for edit in latest if edit.request.conflict_key in held]
        began = time.perf_counter()
        try:
            removed = [edit_id for edit_id in gone if edit_id in self.ledger.edit_ids] if self._removes else []
            result = self._editor.edit(self._model, self.weights, self.ledger, latest, removed)
            applying = time.perf_counter()
            self.weights.apply(result.delta)
            self.ledger.commit(result.rows, result.removed_ids)
            ended = time.perf_counter()
            self.bill.add(result, len(latest), apply=ended - applying, total=ended - began)
        except EditorFailed as error:
            self.bill.failures.append(f"{type(error).__name__}: {error}")
        self.active = {i: edit for i, edit in self.active.items() if i not in gone}
        self.active |= {edit.edit_id: edit for edit in latest}
        self.history.append(latest)


class Bill:
    """What editing cost, batch by batch."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.seconds: list[dict[str, float]] = []
        self.passes: list[int] = []
        self.delta_bytes: list[int] = []
        self.jitter: list[dict[str, float]] = []
        self.failures: list[str] = []

    def add(self, result: EditResult, num_edits: int, *, apply: float, total: float) -> None:
        """One batch that was made."""
        self.sizes.append(num_edits)
        self.seconds.append({**result.seconds, "apply": apply, "total": total})
        self.passes.append(result.num_passes)
        self.delta_bytes.append(num_bytes(result.delta))
        self.jitter.append(result.jitter)

    def editing(self, model_bytes: int) -> dict[str, Any]:
        """What is the same whenever the same edits are made."""
        largest = max(self.delta_bytes, default=0)
        return {
            "batches": len(self.sizes),
            "passes": fmean(self.passes) if self.passes else None,
            "failed_batches": len(self.failures),
            "first_failure": self.failures[0] if self.failures else None,
            "jitter_batches": sum(bool(jitter) for jitter in self.jitter),
            "delta_bytes": largest,
            "delta_share_of_model": largest / model_bytes,
        }

    def cost(self) -> dict[str, Any]:
        """Wall times: an edit by phase, and a batch."""
        made = sum(self.sizes)
        if not made:
            return {"seconds_per_edit": None}
        phases = {name: sum(seconds[name] for seconds in self.seconds) / made for name in self.seconds[0]}
        totals = [seconds["total"] for seconds in self.seconds]
        batches = {"first": totals[0], "median": median(totals), "last": totals[-1]}
        return {"seconds_per_edit": phases.pop("total"), "phases_per_edit": phases, "seconds_per_batch": batches}


@dataclass(frozen=True, kw_only=True, slots=True)
class Course:
    """What every editor of an evaluation is put through."""

    model: CausalModel
    """Holds the base's weights, also afterwards."""
    prior: Prior
    """Of the base."""
    probes: EditProbes
    """Of the edits."""
    edits: Sequence[Edit]
    """In the order of their arrival."""
    protocol: Protocol
    """How they are applied."""
    tell: Tell
    """Told of progress."""

    def run(self, editor: Editor, settings: EditorSettings) -> dict[str, Any]:
        """The figures of an editor."""
        return self._single(editor, settings) if self.protocol.kind == "single" else self._stream(editor, settings)

    def _stream(self, editor: Editor, settings: EditorSettings) -> dict[str, Any]:
        """Batches on top of each other: the figures at the end, and at checkpoints on the way."""
        stream = Stream(self.model, editor, self.prior, settings)
        total, checkpoints = len(self.edits), []
        with stream.restoring():
            for start in range(0, total, self.protocol.batch):
                batch = self.edits[start : start + self.protocol.batch]
                stream.take(batch)
                applied = start + len(batch)
                self.tell("edited", applied, None)
                if self.protocol.is_checkpoint(start, applied, total):
                    checkpoints.append(self._checkpoint(stream, applied))
                    self.tell("measured", applied, checkpoints[-1])
        return checkpoints[-1] | {"editing": stream.bill.editing(model_bytes(self.model)), "checkpoints": checkpoints}

    def _checkpoint(self, stream: Stream, applied: int) -> dict[str, Any]:
        active = list(stream.active.values())
        sizes, seed = self.protocol.sizes(is_end=applied == len(self.edits)), f"{self.protocol.seed} {applied}"
        figures = stream_figures(self.probes, stream.history, active, sizes=sizes, seed=seed)
        return {"edits": applied, "active": len(active)} | figures | {"cost": stream.bill.cost()}

    def _single(self, editor: Editor, settings: EditorSettings) -> dict[str, Any]:
        """Each edit by itself from the base, which is restored after it: figures averaged over the edits."""
        free, read = self._sampled("free", self.protocol.free_sample), self._sampled("text", NUM_TEXT_SAMPLE)
        bill, figures, drawdowns = Bill(), [], []
        for place, edit in enumerate(self.edits, start=1):
            stream = Stream(self.model, editor, self.prior, settings, bill)
            with stream.restoring():
                stream.take([edit])
                figures += self.probes.ask([edit], preferring={edit.edit_id}, free=free)
                drawdowns += [self.probes.drawdown()] if edit.edit_id in read else []
            self.tell("edited and measured", place, None)
        found = averaged(figures) | {"drawdown": fmean(drawdowns)}
        found["measured"]["drawdown"] = len(drawdowns)
        cost = {"cost": bill.cost(), "editing": bill.editing(model_bytes(self.model))}
        return {"edits": len(self.edits)} | found | cost

    def _sampled(self, use: str, size: int) -> set[str]:
        chosen = stratified_sample(self.edits, seed=f"{self.protocol.seed} {use}", size=size)
        return {edit.edit_id for edit in chosen}


def num_bytes(delta: WeightDelta) -> int:
    """Of the factors, as they are stored."""
    return sum(factor.numel() * factor.element_size() for pair in delta.factors.values() for factor in pair)


def model_bytes(model: CausalModel) -> int:
    """Of the model's parameters, each once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.module.parameters())
