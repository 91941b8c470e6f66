"""Decoder-only language models: prompt and target are one sequence.

Edits change weights from some block on. What enters that block is the same after every edit, so it is computed once
for a batch, and only the later blocks run again (`CausalModel.prefixed`).

Legend: B sequences, L padded length, N target tokens in the batch, T edit rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
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
from editors.models.inner_params import InnerParam
from editors.models.positions import answered_together, require_positions
from editors.models.tokens import Encoded, KeyTokens, TargetBatch, encode_pair, num_tokens, pack, pad_id
from pipeline.domain.errors import Misconfigured
from pipeline.domain.prompts import Prompt


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
        return replace(batch, prefix=compute_prefix(self.module, self._blocks, first, batch.input_ids_BL))

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
            logits_1NV: Tensor = self.module(input_ids=batch.input_ids_BL, use_cache=False).logits
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
            self.module(input_ids=batch.input_ids_BL, use_cache=False)

    def greedy(self, prompts: Prompts, *, max_new_tokens: int, is_done: IsDone = never_done) -> list[list[int]]:
        """Return greedy continuations as token ids; see `EditableModel.greedy`.

        Raises:
            InvalidInput: if a prompt is longer than the model has positions for; answers stop where they end.
        """
        answers: dict[int, list[int]] = {}
        for places, most in self.answered_together(prompts, max_new_tokens=max_new_tokens):
            found = self._greedy(
                [prompts[place] for place in places],
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

    def _decoding(self, begun: Sequence[Beginning]) -> CausalDecoding:
        return CausalDecoding(self.module, begun, pad_id=pad_id(self.tokenizer))

    def _can_share(self, prompts: Prompts) -> bool:
        """Return whether a beginning may be read by itself: beside a long prompt it would be rotated in another way."""
        return self.rotation_change is None or max(map(len, prompts)) <= self.rotation_change

    def _greedy(self, prompts: Prompts, *, max_new_tokens: int, is_done: IsDone) -> list[list[int]]:
        return greedy(
            self._decoding,
            prompts,
            comm=self.comm,
            max_new_tokens=max_new_tokens,
            stop_ids=self.stop_ids,
            is_done=is_done,
            plan=beginnings(prompts, forward_tokens=FORWARD_TOKENS * self.times_more),
            can_share=self._can_share(prompts),
        )

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
