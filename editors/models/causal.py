"""Decoder-only language models: prompt and target are one sequence.

Edits change weights from some block on. What enters that block is the same after every edit, so it is computed once
for a batch, and only the later blocks run again (`CausalModel.prefixed`).

Legend: B sequences, L padded length, N target tokens in the batch, T edit rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AutoModelForCausalLM

from editors.models.base import EditableModel
from editors.models.comm import ALONE, Comm
from editors.models.frozen_prefix import compute_prefix, ending_before, gathered_head, starting_at
from editors.models.generation import (
    FORWARD_TOKENS,
    Beginning,
    CausalDecoding,
    IsDone,
    Prompts,
    beginnings,
    greedy,
    never_done,
    shared_length,
)
from editors.models.hooks import Branch
from editors.models.inner_params import InnerParam
from editors.models.left_context import Begun, Left, read_left
from editors.models.positions import answered_together, require_positions
from editors.models.tokens import (
    Encoded,
    KeyTokens,
    Prefix,
    TargetBatch,
    chunks,
    cut,
    encode_pair,
    num_tokens,
    pack,
    pad_id,
)
from pipeline.domain.errors import Misconfigured
from pipeline.domain.prompts import Prompt

LEFT_TOKENS = 1024
"""Most padded tokens of beginnings that are read one after the other, as all that their blocks keep is there at once;
and of one forward up to the first edited block over what follows them."""


class CausalModel(EditableModel):
    """A decoder-only language model; the weights that may be edited are all in one list of blocks.

    Raises:
        Misconfigured: for an unknown architecture, or inner parameters that are not of one list of blocks.
    """

    task = "causal"
    loader = AutoModelForCausalLM
    drawdown_on = "text"
    has_subject_keys = True

    def __init__(
        self, module: nn.Module, tokenizer: Any, inner_param_names: Sequence[str] = (), *, comm: Comm = ALONE
    ) -> None:
        super().__init__(module, tokenizer, inner_param_names, comm=comm)
        if len({param.blocks_name for param in self.inner}) != 1:
            names = ", ".join(self.inner_param_names)
            raise Misconfigured(f"expected inner parameters of one list of blocks, got {names}")

    def encode_pair(self, prompt: Prompt, target: str, subject: str | None = None) -> Encoded:
        """Encode a prompt and a target that continues it.

        Raises:
            InvalidInput: if the model has no positions for so many tokens, or as `tokens.encode_pair` says.
        """
        encoded = encode_pair(self.tokenizer, prompt, target, subject)
        require_positions(len(encoded.prompt_ids), self.max_positions)
        require_positions(num_tokens(encoded), self.max_positions, "a prompt and a target")
        return encoded

    def encode_text(self, line: str, *, max_tokens: int) -> Encoded:
        """Encode a text as one token of prompt and the others as target; the last target is made up and never used."""
        ids = self.encode_raw(line)[: min(max_tokens, self.max_positions or max_tokens)]
        return Encoded(prompt_ids=ids[:1], target_ids=(*ids[1:], ids[0]))

    def pack(self, sequences: Sequence[Encoded]) -> TargetBatch:
        """Put prompt and target of each sequence into one row, padded on the right."""
        return pack(sequences, device=self.device)

    def prefixed(self, batch: TargetBatch, params: Sequence[InnerParam] = ()) -> TargetBatch:
        """Return the batch with what enters the first edited block, so that only the blocks from there on run.

        It stays right for every model that is edited from the one that is loaded, in these inner parameters only.
        """
        first = min(param.block for param in params or self.inner)
        if first == 0 or batch.prefix is not None:
            return batch
        return replace(batch, prefix=compute_prefix(self.module, self._blocks, first, self._inputs(batch)))

    def begun(
        self, sequences: Sequence[Encoded], starts: Sequence[int], params: Sequence[InnerParam]
    ) -> Sequence[Begun | None]:
        """Read the beginnings of sequences, and what enters the first edited block of what follows.

        See `EditableModel.begun`. Models that rotate a batch by its longest sequence read none.
        """
        if self.rotation_change is not None:
            return super().begun(sequences, starts, params)
        first = min(param.block for param in params)
        parts = [sequence.prompt_ids[:start] for sequence, start in zip(sequences, starts, strict=True)]
        rests = [cut(sequence, start) for sequence, start in zip(sequences, starts, strict=True)]
        made_up = [Encoded(prompt_ids=ids, target_ids=(0,)) for ids in parts]
        found: dict[int, Begun] = {}
        head: nn.Module = self.module.get_output_embeddings()  # type: ignore[operator]
        one_place = torch.zeros(1, dtype=torch.long, device=self.device)
        for places in chunks(made_up, max_tokens=LEFT_TOKENS * self.times_more):
            with gathered_head(head, one_place, one_place):
                kept = read_left(
                    self.module,
                    [parts[place] for place in places],
                    pad_id=pad_id(self.tokenizer),
                    forward_tokens=FORWARD_TOKENS * self.times_more,
                )
            read = [Begun(kept=one, hidden_LW=None, returns_tuple=False) for one in kept]
            for part in chunks([rests[place] for place in places], max_tokens=LEFT_TOKENS * self.times_more):
                chosen, left = [places[row] for row in part], [read[row] for row in part]
                batch = self._packed([rests[place] for place in chosen], left, first=0)
                prefix = self.prefixed(batch, params).prefix
                for row, (place, one) in enumerate(zip(chosen, left, strict=True)):
                    found[place] = replace(one, kept=one.kept[first:])
                    if prefix is not None:
                        hidden_LW = prefix.hidden_BLH[row, : num_tokens(rests[place])].clone()
                        found[place] = replace(found[place], hidden_LW=hidden_LW, returns_tuple=prefix.returns_tuple)
        return [found[place] for place in range(len(sequences))]

    def pack_begun(
        self, sequences: Sequence[Encoded], begun: Sequence[Begun | None], params: Sequence[InnerParam]
    ) -> TargetBatch:
        """Return what follows the beginnings of sequences as a batch, with what was read of these."""
        read = [one for one in begun if one is not None]
        if len(read) < len(begun):
            return self.pack(sequences)
        first = min(param.block for param in params)
        rests = [cut(sequence, one.kept[0][0].shape[1]) for sequence, one in zip(sequences, read, strict=True)]
        batch = self._packed(rests, read, first=first)
        hidden = [one.hidden_LW for one in read if one.hidden_LW is not None]
        if not hidden:
            return batch
        width = batch.input_ids_BL.shape[1]
        hidden_BLH = torch.stack([pad(one_LW, (0, 0, 0, width - len(one_LW))) for one_LW in hidden])
        return replace(batch, prefix=Prefix(hidden_BLH=hidden_BLH, returns_tuple=read[0].returns_tuple, block=first))

    def _packed(self, rests: Sequence[Encoded], begun: Sequence[Begun], *, first: int) -> TargetBatch:
        left = Left.of(begun, [num_tokens(rest) for rest in rests], first=first)
        return replace(self.pack(rests), left=left)

    def key_positions(self, batch: TargetBatch, param: InnerParam, kind: KeyTokens) -> tuple[Tensor, Tensor]:
        """Return the rows and positions of keys, T each: the same for every inner parameter."""
        return batch.keys(kind)

    def keys_predict_target(self, param: InnerParam, kind: KeyTokens) -> bool:
        """Return whether the keys are answer tokens: those are the tokens that predict the target's."""
        return kind == "answer"

    def target_logits(self, batch: TargetBatch) -> Tensor:
        """Run a batch, from its prefix if it has one, and return the logits of its target tokens, N x V."""
        head: nn.Module = self.module.get_output_embeddings()  # type: ignore[operator]
        with self._started(batch), gathered_head(head, batch.row_N, batch.position_N):
            logits_1NV: Tensor = self.module(**self._inputs(batch)).logits
        return logits_1NV[0]

    def run_to_last_inner(self, batch: TargetBatch, params: Sequence[InnerParam] = ()) -> None:
        """Run a batch up to the last inner layer; later blocks and all logits but one are left out."""
        head: nn.Module = self.module.get_output_embeddings()  # type: ignore[operator]
        last = max(param.block for param in params or self.inner)
        with (
            self._started(batch),
            ending_before(self._blocks, last + 1),
            gathered_head(head, batch.row_N[:1], batch.position_N[:1]),
        ):
            self.module(**self._inputs(batch))

    def greedy(self, prompts: Prompts, *, max_new_tokens: int, is_done: IsDone = never_done) -> list[list[int]]:
        """Return greedy continuations as token ids; see `EditableModel.greedy`.

        Raises:
            InvalidInput: if a prompt is longer than the model has positions for; answers stop where they end.
        """
        return CausalModel.greedy_beside(self, prompts, (), {}, max_new_tokens=max_new_tokens, is_done=is_done)

    def greedy_beside(
        self,
        prompts: Prompts,
        beside: Collection[int],
        branches: Mapping[str, Branch],
        *,
        max_new_tokens: int,
        is_done: IsDone = never_done,
    ) -> list[list[int]]:
        """Return greedy continuations, some of them with branches beside the weights, all in one batch."""
        answers: dict[int, list[int]] = {}
        for places, most in self.answered_together(prompts, max_new_tokens=max_new_tokens):
            found = self._greedy(
                [prompts[place] for place in places],
                {i for i, place in enumerate(places) if place in beside},
                branches,
                max_new_tokens=most,
                is_done=lambda place, tokens, places=places: is_done(places[place], tokens),  # type: ignore[misc]
            )
            answers |= zip(places, found, strict=True)
        return [answers[place] for place in range(len(prompts))]

    def answered_together(self, prompts: Prompts, *, max_new_tokens: int) -> Iterator[tuple[list[int], int]]:
        """Yield the places of prompts that are answered in one batch, as `positions.answered_together` has them."""
        change = self.rotation_change
        return answered_together(prompts, max_new_tokens=max_new_tokens, most=self.max_positions, change=change)

    def decoding(self, prompts: Prompts) -> CausalDecoding:
        """Return continuations in the making; see `EditableModel.decoding`."""
        shared = shared_length(prompts) if self._can_share(prompts) else 0
        return self._decoding([Beginning(prompts=prompts, shared=shared)])

    def _decoding(self, begun: Sequence[Beginning], branches: Mapping[str, Branch] | None = None) -> CausalDecoding:
        return CausalDecoding(self.module, begun, pad_id=pad_id(self.tokenizer), branches=branches)

    def _can_share(self, prompts: Prompts) -> bool:
        """Return whether a beginning may be read by itself: beside a long prompt it would be rotated in another way."""
        return self.rotation_change is None or max(map(len, prompts)) <= self.rotation_change

    def _greedy(
        self,
        prompts: Prompts,
        beside: Collection[int],
        branches: Mapping[str, Branch],
        *,
        max_new_tokens: int,
        is_done: IsDone,
    ) -> list[list[int]]:
        plan: list[list[int]] = []
        for places in ([i for i in range(len(prompts)) if i not in beside], sorted(beside)):
            chosen = [prompts[place] for place in places]
            groups = beginnings(chosen, forward_tokens=FORWARD_TOKENS * self.times_more)
            plan += [[places[i] for i in group] for group in groups]
        return greedy(
            partial(self._decoding, branches=branches),
            prompts,
            comm=self.comm,
            max_new_tokens=max_new_tokens,
            stop_ids=self.stop_ids,
            is_done=is_done,
            plan=plan,
            can_share=self._can_share(prompts),
            beside=beside,
        )

    def _inputs(self, batch: TargetBatch) -> dict[str, Any]:
        """Return what the module's forward takes of a batch."""
        if batch.left is None:
            return {"input_ids": batch.input_ids_BL, "use_cache": False}
        return {
            "input_ids": batch.input_ids_BL,
            **batch.left.inputs(self.module, batch.input_ids_BL.shape[1]),
        }

    @property
    def _blocks(self) -> nn.ModuleList:
        blocks = self.module.get_submodule(self.inner[0].blocks_name)
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    @contextmanager
    def _started(self, batch: TargetBatch) -> Iterator[None]:
        if batch.prefix is None:
            yield
            return
        with starting_at(self._blocks, batch.prefix):
            yield
