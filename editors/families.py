"""Knows how a model of each family is fed and read; one class a family, the same face. Knows no edit and no solve.

Only the causal family so far. Everything goes through the module's own forward and through hooks, never through a
weight, so that it works unchanged on a module that DeepSpeed ZeRO-3 partitions.

Legend: B sequences, L padded length, N target tokens in the batch, V vocabulary, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from editors.frozen_prefix import compute_prefix, ending_before, gathered_head, starting_at
from editors.generation import IsDone, greedy
from editors.inner_params import InnerParam, default_inner_params, inner_params, true_shape
from editors.prompts import Encoded, TargetBatch, chunks, encode_chat, encode_pair, encode_prompt, pack, pad_id

__all__ = ["CausalModel", "InnerParam", "TargetBatch", "default_inner_params", "inner_params", "true_shape"]

Pair = tuple[str, str]
"""A prompt and the target that continues it."""

CHUNK_TOKENS = 2048
"""Most padded tokens of one forward while measuring."""


class CausalModel:
    """A decoder-only language model with the weights that may be edited.

    Args:
        module: a Hugging Face causal model, or `engine.module` of DeepSpeed; put into eval mode, gradients off.
        tokenizer: its tokenizer.
        inner_param_names: weights to edit; the measured default of the architecture when empty.

    Raises:
        Misconfigured: for an unknown architecture or a name that the model does not have.
    """

    def __init__(self, module: nn.Module, tokenizer: Any, inner_param_names: Sequence[str] = ()) -> None:
        self.module = module.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.inner = inner_params(module, inner_param_names)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.module.parameters()).device

    @property
    def inner_param_names(self) -> tuple[str, ...]:
        """Names of the edited weights, in block order."""
        return tuple(param.name for param in self.inner)

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        generation: Any = getattr(self.module, "generation_config", None)
        eos = getattr(generation, "eos_token_id", None)
        found = eos if isinstance(eos, list) else [eos, self.tokenizer.eos_token_id]
        return frozenset(int(token) for token in found if token is not None)

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer knows how a conversation is written."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def encode(self, pairs: Sequence[Pair]) -> TargetBatch:
        """All pairs as one batch, row by row in order."""
        return self.pack([encode_pair(self.tokenizer, prompt, target) for prompt, target in pairs])

    def pack(self, sequences: Sequence[Encoded]) -> TargetBatch:
        """Encoded sequences as one batch on the model's device."""
        return pack(sequences, device=self.device)

    def chunked(
        self, sequences: Sequence[Encoded], *, max_tokens: int | None = None
    ) -> Iterator[tuple[list[int], TargetBatch]]:
        """Batches of bounded size, each with the places of its rows in `sequences`."""
        for places in chunks(sequences, max_tokens=max_tokens or CHUNK_TOKENS):
            yield places, self.pack([sequences[place] for place in places])

    def prefixed(self, batch: TargetBatch) -> TargetBatch:
        """The batch with what enters the first edited block, so that only later blocks are run from now on.

        Stays right for every model edited from the same base in the same inner parameters.
        """
        if self._first_block == 0 or batch.prefix is not None:
            return batch
        prefix = compute_prefix(self.module, self._blocks, self._first_block, batch.input_ids_BL)
        return replace(batch, prefix=prefix)

    def target_logits(self, batch: TargetBatch) -> Tensor:
        """Logits that predict the target tokens, N x V; gradients flow where hooks ask for them."""
        head: nn.Module = self.module.get_output_embeddings()  # type: ignore[operator]
        with self._started(batch), gathered_head(head, batch.row_N, batch.position_N):
            logits_1NV: Tensor = self.module(input_ids=batch.input_ids_BL, use_cache=False).logits
        return logits_1NV[0]

    def run_to_last_inner(self, batch: TargetBatch) -> None:
        """Run a batch for what hooks see in the inner layers; later blocks and the logits are left out."""
        head: nn.Module = self.module.get_output_embeddings()  # type: ignore[operator]
        with (
            ending_before(self._blocks, self.inner[-1].block + 1),
            gathered_head(head, batch.row_N[:1], batch.position_N[:1]),
        ):
            self.module(input_ids=batch.input_ids_BL, use_cache=False)

    def generate(self, prompts: Sequence[str], *, chat: bool = False, max_new_tokens: int = 24) -> list[str]:
        """Greedy continuations as text, without the prompt; `chat` asks in the model's chat template."""
        encode = encode_chat if chat else encode_prompt
        tokens = self.greedy([encode(self.tokenizer, prompt) for prompt in prompts], max_new_tokens=max_new_tokens)
        return [self.decode(answer) for answer in tokens]

    def greedy(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        is_done: IsDone = lambda _place, _tokens: False,
    ) -> list[list[int]]:
        """Greedy continuations as token ids; see `generation.greedy`."""
        return greedy(
            self.module,
            prompts,
            max_new_tokens=max_new_tokens,
            stop_ids=self.stop_ids,
            pad_id=pad_id(self.tokenizer),
            is_done=is_done,
        )

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of an answer, without special tokens."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    @property
    def _blocks(self) -> nn.ModuleList:
        blocks = self.module.get_submodule(self.inner[0].blocks_name)
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    @property
    def _first_block(self) -> int:
        return self.inner[0].block

    @contextmanager
    def _started(self, batch: TargetBatch) -> Iterator[None]:
        if batch.prefix is None:
            yield
            return
        with starting_at(self._blocks, self._first_block, batch.prefix):
            yield
