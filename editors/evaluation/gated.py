"""Edits that are looked up instead of written into weights: NeuralDB (arXiv 2507.18028), for comparison.

GRACE and WISE look up likewise. At inference the input of each inner layer is compared, at every token, with the keys
of all edits. Where the nearest one's cosine reaches the gate, that edit's shift is added to the output; elsewhere the
base is untouched. So nothing is lost by what the gate keeps shut, and no solve makes edits share the weights. But it is
no model that can be exported: who serves it needs these hooks, and each token pays for every edit that was ever made.

Keys and shifts are those that the passes of the ledger find (`editors.methods.passes`): frames, guards and gradients
are alike, and only what becomes of them differs. An edit's guards are keys without a shift: they win against the edit.
A key that plain text is full of, such as that of a first token, is left out: the gate would open everywhere.

Legend: R rows of the edits, I in_features.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from editors.evaluation.in_context import no_change
from editors.evaluation.lookup import GatedMemory, Lookup, UsualKeys, merged
from editors.methods.base import EditJob, EditResult
from editors.methods.batch_update import BatchUpdate
from editors.methods.frames import frames_of
from editors.methods.passes import passes_over
from editors.models.causal import CausalModel
from editors.models.comm import ALONE, Comm
from editors.models.generation import IsDone, Prompts, never_done
from editors.models.hooks import side_branch
from editors.models.inner_params import InnerParam
from editors.models.tokens import TargetBatch
from editors.solve.natural_gradient import NaturalGradient
from editors.solve.rows import EditRows
from pipeline.domain.errors import Misconfigured
from pipeline.domain.rank_api import EditorSettings

GATED = "gated"
"""The method's name on a command line."""


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
            edit.edit_id: frames_of(model, edit, self._settings, job.guards.get(edit.edit_id, ())) for edit in job.added
        }
        usual = UsualKeys(job.ledger, self._settings.prior_strength)

        def asked(update: BatchUpdate) -> dict[str, Lookup]:
            names = [name for name, keys_RI in update.keys.items() if len(keys_RI)]
            return {name: Lookup.of(update, name, usual.rows(update, name), memory.gate) for name in names}

        update = passes_over(
            # The model itself looks earlier edits up, which the candidate does already.
            CausalModel(model.module, model.tokenizer, model.inner_param_names),
            frames,
            settings=self._settings,
            trained=None,
            natural=self._natural,
            factor=lambda _name, keys_TI, spread_TH, _: spread_TH.new_zeros(keys_TI.shape[1], spread_TH.shape[1]),
            start={},
            device=model.device,
            candidate=lambda update: merged([earlier, asked(update)]),
        )
        began = time.perf_counter()
        kept_bytes = memory.take(asked(update), update.ranges, fact_of)
        return EditResult(
            delta=no_change(model),
            rows=EditRows(keys={}, targets={}, ranges={}),
            removed_ids=(),
            num_passes=update.num_passes,
            seconds={**update.seconds, "solve": update.seconds["solve"] + time.perf_counter() - began},
            jitter={},
            kept_bytes=kept_bytes,
        )
