"""The two ways an editor is measured: a stream of batches, and one edit at a time from the unedited base.

The model holds the base's weights again when either is done. A stream that has become long is measured on a sample of
its active edits, one from each of as many equal ages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from editors.evaluation.metrics import averaged, known, replies, retention
from editors.evaluation.place import plain_weights
from editors.evaluation.probes import EditProbes
from editors.evaluation.stream import CostMeter, Stream, model_bytes
from editors.measure.questions import EditMeasurement
from editors.methods.base import Editor
from editors.methods.folding import FoldEditor
from editors.methods.guards import Guards, probed_texts
from editors.models.families import EditableModel
from editors.solve.ledger import Ledger
from editors.solve.prior import Prior
from editors.weights.deltas import WeightStore
from pipeline.domain.batches import stratified_sample
from pipeline.domain.edits import Edit
from pipeline.domain.measurements import mean
from pipeline.domain.rank_api import EditorSettings, tell

OnProgress = Callable[[str, int, dict[str, Any] | None], None]
"""Called with what was done, the edits so far, and the figures if some were measured."""

NUM_TEXT_SAMPLE = 32
"""Single edits after each of which the perplexity of plain text is measured."""
FOLDED = "folded"
"""Key of the figures once the edits of a stream are folded."""
FEWER_ON_THE_WAY = 4
"""How many times fewer edits are asked freely, or have their targets compared, on the way than at the end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """How edits are applied and when they are measured."""

    kind: Literal["stream", "single"] = "stream"
    """Batches on top of each other, or each edit by itself."""
    batch: int = 32
    """Edits in a batch."""
    checkpoint_every: int | None = None
    """Edits between checkpoints; 0 for none on the way, None for about every power of two."""
    sample: int = 512
    """Active edits asked at a checkpoint on the way; at the end all are."""
    free_sample: int = 256
    """Edits asked freely at the end."""
    seed: int = 0
    """Seed of every sample."""

    def is_checkpoint(self, before: int, after: int, total: int) -> bool:
        """Whether to measure after the batch that led from `before` to `after` edits."""
        if after == total:
            return True
        if self.checkpoint_every is None:
            return after.bit_length() > before.bit_length()
        return self.checkpoint_every > 0 and after // self.checkpoint_every > before // self.checkpoint_every

    def chosen(self, active: Sequence[Edit], *, seed: str, is_end: bool) -> tuple[tuple[Edit, ...], set[str], set[str]]:
        """Return the active edits that a checkpoint asks, oldest first; each further sample is part of the one before.

        Returns:
            The edits to ask teacher-forced; of these, the ids of those whose targets are compared with the true ones,
            and of those the ids of the ones to ask by free generation.
        """
        fewer = 1 if is_end else FEWER_ON_THE_WAY
        asked = tuple(active) if is_end else stratified_sample(active, seed=seed, size=self.sample)
        compared = stratified_sample(asked, seed=f"{seed} preferring", size=-(-self.sample // fewer))
        free = stratified_sample(compared, seed=f"{seed} free", size=-(-self.free_sample // fewer))
        return asked, {edit.edit_id for edit in compared}, {edit.edit_id for edit in free}


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What every editor of the same weights is measured on."""

    model: EditableModel
    """Holds the base's weights, also afterwards."""
    prior: Prior
    """The prior of the base."""
    probes: EditProbes
    """What is asked of the edits, with the base's answers."""
    edits: Sequence[Edit]
    """The edits, in the order of their arrival."""
    protocol: Protocol
    """How they are applied."""
    weights_of: Callable[[EditableModel], WeightStore] = plain_weights
    """Returns the model's edited weights."""
    fold: FoldEditor | None = None
    """Folds the edits of a stream at its end; None if they stay as they are."""

    def run(self, editor: Editor, settings: EditorSettings, on_progress: OnProgress) -> dict[str, Any]:
        """Return the figures of an editor; errors of the model leave it with the base's weights."""
        run = self._single if self.protocol.kind == "single" else self._stream
        return run(editor, settings, on_progress)

    def known(self) -> dict[str, Any]:
        """Return what the base, whose weights the model holds, makes of the edits that are asked freely at the end."""
        if self.protocol.kind == "single":
            ids = self._sampled("free", self.protocol.free_sample)
        else:
            _, _, ids = self.protocol.chosen(self.edits, seed=f"{self.protocol.seed} {len(self.edits)}", is_end=True)
        found = self.probes.ask([edit for edit in self.edits if edit.edit_id in ids], in_chat=ids)
        return known(found) | {"asked": len(found), "replies": replies(found)}

    def _stream(self, editor: Editor, settings: EditorSettings, on_progress: OnProgress) -> dict[str, Any]:
        """Apply batches on top of each other: the figures at the end, at checkpoints on the way, and once folded."""
        guards, weights_of = self._guards(settings), self.weights_of
        stream = Stream(self.model, editor, self.prior, settings, guards=guards, weights_of=weights_of)
        total, checkpoints = len(self.edits), []
        found: list[EditMeasurement] = []
        with stream.restoring():
            for start in range(0, total, self.protocol.batch):
                batch = self.edits[start : start + self.protocol.batch]
                stream.take(batch)
                applied = start + len(batch)
                on_progress("edited", applied, None)
                if self.protocol.is_checkpoint(start, applied, total):
                    tell("asking about the edits")
                    figures, found = self._checkpoint(stream, applied)
                    checkpoints.append(figures)
                    on_progress("measured", applied, checkpoints[-1])
            editing = {"editing": stream.cost.editing(), "checkpoints": checkpoints}
            whole = checkpoints[-1] | editing | {"replies": replies(found)}
            if self.fold is not None:
                stream.fold(self.fold)
                tell("asking about the edits")
                figures, found = self._checkpoint(stream, total)
                whole[FOLDED] = figures | {"editing": stream.cost.editing(), "replies": replies(found)}
        return whole

    def _checkpoint(self, stream: Stream, applied: int) -> tuple[dict[str, Any], list[EditMeasurement]]:
        """Return the figures now, and what was measured of each edit that was asked."""
        active = list(stream.active.values())
        seed, is_end = f"{self.protocol.seed} {applied}", applied == len(self.edits)
        asked, preferring, free = self.protocol.chosen(active, seed=seed, is_end=is_end)
        found = self.probes.ask(asked, preferring=preferring, free=free)
        # The first batch is asked whole: what is forgotten first is what editing on top of it destroys.
        left_out = {edit.edit_id for edit in stream.history[0]} - {edit.edit_id for edit in asked}
        first = self.probes.ask([edit for edit in active if edit.edit_id in left_out])
        figures = averaged(found) | retention(found, first, stream.history)
        text = {"drawdown": self.probes.drawdown(), "fluency": self.probes.fluency_of(self.probes.continued)}
        counts, cost = {"edits": applied, "active": len(active)}, {"cost": stream.cost.resources()}
        return counts | figures | text | cost, found

    def _single(self, editor: Editor, settings: EditorSettings, on_progress: OnProgress) -> dict[str, Any]:
        """Apply each edit by itself to the base, which is restored after it: figures averaged over the edits."""
        free, read = self._sampled("free", self.protocol.free_sample), self._sampled("text", NUM_TEXT_SAMPLE)
        cost, found, drawdowns, texts = CostMeter(model_bytes(self.model)), [], [], []
        strength, ridge = settings.prior_strength, settings.ridge
        untouched = Ledger(self.prior, strength=strength, ridge=ridge, device=self.model.device)
        guards = self._guards(settings)
        for place, edit in enumerate(self.edits, start=1):
            # All of them stand on one ledger without edits, which stays as it is: A is factored once.
            stream = Stream(self.model, editor, self.prior, settings, cost, untouched, guards, self.weights_of)
            with stream.restoring():
                stream.take([edit])
                found += self.probes.ask([edit], preferring={edit.edit_id}, free=free)
                drawdowns += [self.probes.drawdown()] if edit.edit_id in read else []
                texts += [self.probes.fluency_of([edit])] if edit in self.probes.continued else []
            on_progress("edited and measured", place, None)
        figures = averaged(found) | {"drawdown": mean(drawdowns), "fluency": mean(texts)}
        figures["measured"] |= {"drawdown": len(drawdowns), "fluency": len(texts)}
        figures |= {"cost": cost.resources(), "editing": cost.editing(), "replies": replies(found)}
        return {"edits": len(self.edits)} | figures

    def _guards(self, settings: EditorSettings) -> Guards:
        """Return what chooses guards: none that any edit's probes name, as probes are asked long after their edit."""
        return Guards(self.model, settings, kept=probed_texts(self.edits))

    def _sampled(self, use: str, size: int) -> set[str]:
        chosen = stratified_sample(self.edits, seed=f"{self.protocol.seed} {use}", size=size)
        return {edit.edit_id for edit in chosen}
