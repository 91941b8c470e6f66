"""Knows the two ways an editor is measured: a stream of batches, and one edit at a time from the unedited base.

Knows no file and no screen; the model holds the base again when either is done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from editors.evaluation.edit_metrics import averaged, mean
from editors.evaluation.probes import EditProbes
from editors.evaluation.stream import CostMeter, Stream, model_bytes
from editors.evaluation.stream_metrics import SampleSizes, stream_figures
from editors.methods.base import Editor
from editors.models.families import EditableModel
from editors.solve.ledger import Ledger
from editors.solve.prior import Prior
from pipeline.domain.batches import stratified_sample
from pipeline.domain.edits import Edit
from pipeline.domain.rank_api import EditorSettings

Tell = Callable[[str, int, dict[str, Any] | None], None]
"""(what is done, edits so far, figures if some were measured)."""

NUM_TEXT_SAMPLE = 32
"""Single edits after each of which the perplexity of plain text is measured."""
FEWER_ON_THE_WAY = 4
"""How many times fewer edits are asked freely, or have their targets compared, on the way than at the end."""


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
        preferring, free = (-(-size // FEWER_ON_THE_WAY) for size in (self.sample, self.free_sample))
        return SampleSizes(forced=self.sample, preferring=preferring, free=free)


@dataclass(frozen=True, kw_only=True, slots=True)
class Course:
    """What every editor of an evaluation is put through."""

    model: EditableModel
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
        return checkpoints[-1] | {"editing": stream.bill.editing(), "checkpoints": checkpoints}

    def _checkpoint(self, stream: Stream, applied: int) -> dict[str, Any]:
        active = list(stream.active.values())
        sizes, seed = self.protocol.sizes(is_end=applied == len(self.edits)), f"{self.protocol.seed} {applied}"
        figures = stream_figures(self.probes, stream.history, active, sizes=sizes, seed=seed)
        return {"edits": applied, "active": len(active)} | figures | {"cost": stream.bill.cost()}

    def _single(self, editor: Editor, settings: EditorSettings) -> dict[str, Any]:
        """Each edit by itself from the base, which is restored after it: figures averaged over the edits."""
        free, read = self._sampled("free", self.protocol.free_sample), self._sampled("text", NUM_TEXT_SAMPLE)
        bill, figures, drawdowns, texts = CostMeter(model_bytes(self.model)), [], [], []
        untouched = Ledger(self.prior, strength=settings.prior_strength, ridge=settings.ridge)
        for place, edit in enumerate(self.edits, start=1):
            # A copy without edits shares what has been factored already.
            stream = Stream(self.model, editor, self.prior, settings, bill, untouched.without(()))
            with stream.restoring():
                stream.take([edit])
                figures += self.probes.ask([edit], preferring={edit.edit_id}, free=free)
                drawdowns += [self.probes.drawdown()] if edit.edit_id in read else []
                texts += [self.probes.fluency_of([edit])] if edit in self.probes.continued else []
            self.tell("edited and measured", place, None)
        found = averaged(figures) | {"drawdown": mean(drawdowns), "fluency": mean(texts)}
        found["measured"] |= {"drawdown": len(drawdowns), "fluency": len(texts)}
        cost = {"cost": bill.cost(), "editing": bill.editing()}
        return {"edits": len(self.edits)} | found | cost

    def _sampled(self, use: str, size: int) -> set[str]:
        chosen = stratified_sample(self.edits, seed=f"{self.protocol.seed} {use}", size=size)
        return {edit.edit_id for edit in chosen}
