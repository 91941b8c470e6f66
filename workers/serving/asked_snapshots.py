"""The snapshots that the process behind `corrigenda ask` answers with."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch

from editors.weights.serving import BATCH_SIZE
from editors.weights.swapping import EditedWeights, SwappableBase
from pipeline.domain.rank_api import LoadPlan
from workers.serving.bases import Bases

MOST_SNAPSHOTS = 8


class AskedSnapshots:
    """The snapshots that were asked last, on one base in memory."""

    def __init__(self) -> None:
        self._bases = Bases(most=1)
        self._turn = threading.Lock()
        self._edited: dict[tuple[int, str], EditedWeights] = {}

    def answers(
        self,
        plan: LoadPlan,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        chat: bool = False,
        is_one_line: bool = False,
    ) -> list[dict[str, str]]:
        """Return an answer to each prompt: {"prompt", "text"}.

        Args:
            plan: what the snapshot is loaded from.
            prompts: stems, or questions.
            max_new_tokens: most tokens of an answer.
            chat: whether each is asked in the model's chat template.
            is_one_line: whether an answer ends with its first line.

        Raises:
            CorrigendaError: if the snapshot cannot be loaded or the model does not take a prompt.
        """
        how: dict[str, Any] = {"max_new_tokens": max_new_tokens, "chat": chat, "is_one_line": is_one_line}
        with self._turn:
            base, edited = self._loaded(plan)
            base.use(edited)
            texts: list[str] = []
            with torch.no_grad():
                for start in range(0, len(prompts), BATCH_SIZE):
                    texts += base.model.generate(list(prompts[start : start + BATCH_SIZE]), **how)
        return [{"prompt": prompt, "text": text} for prompt, text in zip(prompts, texts, strict=True)]

    def _loaded(self, plan: LoadPlan) -> tuple[SwappableBase, EditedWeights]:
        base = self._bases.get(plan.base, plan.editor.inner_params)
        key = (id(base), plan.digest)
        # Files that were loaded once are not read again: what they have to be is in the key.
        found = self._edited.pop(key, None)
        if found is None:
            found = base.edited(
                digest=plan.digest,
                inner_param_names=plan.editor.inner_params,
                accumulator=plan.accumulator,
                deltas=plan.deltas,
            )
        self._edited = {one: kept for one, kept in self._edited.items() if one[0] == id(base)}
        while len(self._edited) >= MOST_SNAPSHOTS:
            del self._edited[next(iter(self._edited))]
        self._edited[key] = found
        return base, found
