"""Edits that are looked up instead of written into weights: NeuralDB (arXiv 2507.18028), for comparison.

GRACE and WISE look up likewise. At inference the input of each inner layer is compared, at every token, with the keys
of all edits. Where the nearest one's cosine reaches the gate, that edit's shift is added to the output; elsewhere the
base is untouched. So nothing is lost by what the gate keeps shut, and no solve makes edits share the weights. But it is
no model that can be exported: who serves it needs these hooks, and each token pays for every edit that was ever made.

Keys and shifts are those that the passes of the ledger find (`editors.methods.passes`): frames, guards and gradients
are alike, and only what becomes of them differs. An edit's guards are keys without a shift: they win against the edit.

Legend: B sequences, L padded length, R rows of the edits, I in_features, O out_features.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from editors.evaluation.in_context import no_change
from editors.methods.base import EditJob, EditResult
from editors.methods.batch_update import BatchUpdate
from editors.methods.frames import EditFrames, frames_of
from editors.methods.passes import passes_over
from editors.models.causal import CausalModel
from editors.models.comm import ALONE, Comm
from editors.models.generation import IsDone, Prompts, never_done
from editors.models.hooks import side_branch
from editors.models.inner_params import InnerParam
from editors.models.tokens import Encoded, TargetBatch
from editors.solve.natural_gradient import NaturalGradient
from editors.solve.rows import EditRows
from pipeline.domain.errors import Misconfigured
from pipeline.domain.rank_api import EditorSettings

GATED = "gated"
"""The method's name on a command line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lookup:
    """Keys of an inner layer and what is added to its output where the input is like one of them."""

    unit_RI: Tensor
    """Keys at length 1, fp32; zeros for one that was not read yet, which no input is like."""
    shift_RO: Tensor
    """What each adds, fp32; zeros for a guard."""
    gate: float
    """Least cosine from which something is added; above 0."""

    @classmethod
    def of(cls, update: BatchUpdate, name: str, gate: float) -> Lookup:
        """Return what a batch asks of an inner parameter."""
        # The update's spread is the root of each row's weight in a solve; here a row adds the whole shift.
        asks_RH = (update.spread[name] > 0).to(update.asked[name].dtype)
        unit_RI = torch.nn.functional.normalize(update.keys[name].float(), dim=1)
        return cls(unit_RI=unit_RI, shift_RO=(asks_RH @ update.asked[name]).float(), gate=gate)

    def __call__(self, x_BLI: Tensor) -> Tensor:
        """Return what is added to the output for an input, B x L x O."""
        with torch.no_grad():
            cosine_BLR = torch.nn.functional.normalize(x_BLI, dim=-1) @ self.unit_RI.T
            nearest_BL, row_BL = cosine_BLR.max(dim=-1)
        return self.shift_RO[row_BL] * (nearest_BL >= self.gate)[..., None]

    def of_rows(self, first: int, end: int) -> Lookup:
        """Return a lookup in some of the rows."""
        return replace(self, unit_RI=self.unit_RI[first:end], shift_RO=self.shift_RO[first:end])

    @property
    def num_bytes(self) -> int:
        """Size of the keys and the shifts."""
        return sum(part.numel() * part.element_size() for part in (self.unit_RI, self.shift_RO))


class GatedMemory:
    """The rows of all edits that hold, by inner parameter.

    Args:
        gate: as of `Lookup`.
        keeps_one: whether a new batch of edits takes the place of the one before, as where edits are single.

    Attributes:
        lookups: inner parameter -> the lookup in the rows of all edits.
    """

    def __init__(self, gate: float, *, keeps_one: bool = False) -> None:
        self.gate, self._keeps_one = gate, keeps_one
        self.lookups: dict[str, Lookup] = {}
        self._of_fact: dict[str, dict[str, Lookup]] = {}

    def without(self, facts: Sequence[str]) -> dict[str, Lookup]:
        """Return the lookups without some facts, which are corrected again."""
        gone = self._of_fact.keys() if self._keeps_one else set(facts)
        if not gone & self._of_fact.keys():
            return dict(self.lookups)
        return _all_of([rows for fact, rows in self._of_fact.items() if fact not in gone])

    def take(self, update: BatchUpdate, fact_of: Mapping[str, str]) -> int:
        """Remember a batch, and return its size.

        Args:
            update: what it asks.
            fact_of: edit id -> the fact that it corrects, of each of its edits.
        """
        gone = set(self._of_fact) if self._keeps_one else set(fact_of.values())
        self._of_fact = {fact: rows for fact, rows in self._of_fact.items() if fact not in gone}
        for name, ranges in update.ranges.items():
            whole = Lookup.of(update, name, self.gate)
            for edit_id, first, end in ranges:
                self._of_fact.setdefault(fact_of[edit_id], {})[name] = whole.of_rows(first, end)
        self.lookups = _all_of(list(self._of_fact.values()))
        return sum(rows.num_bytes for fact in set(fact_of.values()) for rows in self._of_fact.get(fact, {}).values())


class GatedModel(CausalModel):
    """A decoder that looks up edits as it runs; without edits it is the model itself.

    Args:
        module: the base, whose weights stay as they are.
        tokenizer: its tokenizer.
        inner_param_names: as of `CausalModel`.
        comm: as of `CausalModel`.
        memory: the edits; an empty one if left out.
    """

    def __init__(
        self,
        module: nn.Module,
        tokenizer: Any,
        inner_param_names: Sequence[str],
        *,
        comm: Comm = ALONE,
        memory: GatedMemory | None = None,
    ) -> None:
        super().__init__(module, tokenizer, inner_param_names, comm=comm)
        self.memory = memory or GatedMemory(1.0)

    def target_logits(self, batch: TargetBatch) -> Tensor:
        """Return the logits of a batch's target tokens, with what is looked up."""
        with side_branch(self.module, self.memory.lookups):
            return super().target_logits(batch)

    def run_to_last_inner(self, batch: TargetBatch, params: Sequence[InnerParam] = ()) -> None:
        """Run a batch up to the last inner layer, with what is looked up."""
        with side_branch(self.module, self.memory.lookups):
            super().run_to_last_inner(batch, params)

    def greedy(self, prompts: Prompts, *, max_new_tokens: int, is_done: IsDone = never_done) -> list[list[int]]:
        """Return greedy continuations, with what is looked up at each of their tokens."""
        with side_branch(self.module, self.memory.lookups):
            return super().greedy(prompts, max_new_tokens=max_new_tokens, is_done=is_done)


class GatedEditor:
    """An editor that remembers keys and shifts and changes no weight; its model has to be a `GatedModel`.

    Args:
        settings: of the passes that find the shifts.
    """

    keeps_ledger: ClassVar[bool] = False

    def __init__(self, settings: EditorSettings) -> None:
        self._settings = settings
        self._natural: NaturalGradient | None = None

    def edit(self, job: EditJob) -> EditResult:
        """Find the shifts of a batch, each added where it will be looked up, and remember them; an `Editor`.

        Raises:
            Misconfigured: for a model that looks nothing up.
        """
        job.require_additions(GATED)
        model = job.model
        if not isinstance(model, GatedModel):
            raise Misconfigured("expected a model that looks edits up, got one that does not")
        if self._natural is None or self._natural.prior is not job.ledger.prior:
            self._natural = NaturalGradient(job.ledger.prior, self._settings.damping)
        memory, fact_of = model.memory, {edit.edit_id: edit.request.conflict_key for edit in job.added}
        earlier = memory.without(list(fact_of.values()))
        frames = {
            edit.edit_id: _without_first(frames_of(model, edit, self._settings, job.guards.get(edit.edit_id, ())))
            for edit in job.added
        }

        def candidate(update: BatchUpdate) -> dict[str, Lookup]:
            asked = {name: Lookup.of(update, name, memory.gate) for name in update.keys if len(update.keys[name])}
            return _all_of([earlier, asked])

        update = passes_over(
            # The model itself looks earlier edits up, which the candidate does already.
            CausalModel(model.module, model.tokenizer, model.inner_param_names),
            frames,
            settings=self._settings,
            trained=None,
            natural=self._natural,
            factor=lambda name, keys_TI: keys_TI.new_zeros(keys_TI.shape[1], keys_TI.shape[0]),
            start={},
            device=model.device,
            candidate=candidate,
        )
        began = time.perf_counter()
        kept_bytes = memory.take(update, fact_of)
        return EditResult(
            delta=no_change(model),
            rows=EditRows(keys={}, targets={}, ranges={}),
            removed_ids=(),
            num_passes=update.num_passes,
            seconds={**update.seconds, "solve": update.seconds["solve"] + time.perf_counter() - began},
            jitter={},
            kept_bytes=kept_bytes,
        )


def _all_of(parts: Sequence[Mapping[str, Lookup]]) -> dict[str, Lookup]:
    """Return one lookup by inner parameter in the rows of all parts."""
    found: dict[str, list[Lookup]] = {}
    for part in parts:
        for name, lookup in part.items():
            found.setdefault(name, []).append(lookup)
    return {
        name: replace(
            lookups[0],
            unit_RI=torch.cat([lookup.unit_RI for lookup in lookups]),
            shift_RO=torch.cat([lookup.shift_RO for lookup in lookups]),
        )
        for name, lookups in found.items()
    }


def _without_first(frames: EditFrames) -> EditFrames:
    """Return frames without rows at the first token of a text, whose key is the same whatever the token is."""

    def elsewhere(encoded: Encoded) -> Encoded:
        return replace(encoded, subject_end=encoded.subject_end or None)

    return replace(
        frames,
        asked=tuple(map(elsewhere, frames.asked)),
        keyed=tuple(map(elsewhere, frames.keyed)),
        guards=tuple(map(elsewhere, frames.guards)),
    )
