"""Encoders with a decoder, such as T5 and BART.

A target is what the tokenizer makes of it as a label, with the token that ends it: an answer that runs on is no
success. Where labels begin with a special token (BART's `<s>`), the decoder is given that token and it is not scored.

Legend: B sequences, L padded length of the prompts, M of what the decoder is given, N target tokens, T edit rows,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM
from transformers.modeling_outputs import BaseModelOutput

from editors.models.base import EditableModel
from editors.models.comm import ALONE, Comm
from editors.models.encoder_tokens import encode_any, encode_whole, encoder_keys, padded
from editors.models.frozen_prefix import gathered_head
from editors.models.generation import IsDone, Prompts, greedy, never_done
from editors.models.inner_params import InnerParam
from editors.models.positions import require_positions
from editors.models.text_tokens import require_plain, require_same, subject_end, tokens_of
from editors.models.tokens import Encoded, KeyTokens, TargetBatch, rendered, subject_ends
from pipeline.domain.errors import InvalidInput, Misconfigured
from pipeline.domain.prompts import Prompt


class Seq2SeqModel(EditableModel):
    """An encoder with a decoder; weights of both may be edited.

    Raises:
        Misconfigured: for an unknown architecture, a name that the model does not have, or a model that does not say
            what its decoder starts or ends with.
    """

    task = "seq2seq"
    loader = AutoModelForSeq2SeqLM
    drawdown_on = "suite"

    def __init__(
        self, module: nn.Module, tokenizer: Any, inner_param_names: Sequence[str] = (), *, comm: Comm = ALONE
    ) -> None:
        super().__init__(module, tokenizer, inner_param_names, comm=comm)
        encoder: nn.Module = module.get_encoder()  # type: ignore[operator]
        in_encoder = {id(part) for part in encoder.modules()}
        self._of_encoder = {
            param.name for param in self.inner if id(module.get_submodule(param.module_name)) in in_encoder
        }
        around = tokens_of(tokenizer, "", is_target=True)
        self._end = around.behind[0] if around.behind else tokenizer.eos_token_id
        self._start_ids = (self._start_id(), *around.before)

    def encode_prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """Return the token ids of a prompt with the special tokens around it.

        Raises:
            InvalidInput: if the encoder cannot take so many tokens, or the prompt is no plain text that is known.
        """
        return encode_whole(self.tokenizer, prompt, max_tokens=self.max_positions)

    def encode_raw(self, text: str) -> tuple[int, ...]:
        """Return the token ids of any text with the special tokens around it, however long it is."""
        return encode_any(self.tokenizer, text)

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Ids of the tokens that end an answer, with the one that a target ends with."""
        return super().stop_ids | {self._end}

    def encode_pair(self, prompt: Prompt, target: str, subject: str | None = None) -> Encoded:
        """Encode a prompt for the encoder, and a target for the decoder with the token that ends it.

        Raises:
            InvalidInput: if the target has no token or does not come back from its tokens, if prompt or target is too
                long, or one of the tokenizer's own tokens is in them.
        """
        require_plain(self.tokenizer, target)
        words = tokens_of(self.tokenizer, target, is_target=True).own
        if not words:
            raise InvalidInput(f"expected a target of at least one token, got {target!r:.80}")
        require_same(self.tokenizer, target, words)
        if self.max_positions is not None:
            require_positions(len(words), self.max_positions - len(self._start_ids), "a target")
        return Encoded(
            prompt_ids=self.encode_prompt(prompt),
            target_ids=(*words, self._end),
            subject_end=subject_end(self.tokenizer, rendered(self.tokenizer, prompt), subject),
        )

    def encode_text(self, line: str, *, max_tokens: int) -> Encoded:
        """Encode a text as a prompt, the first half of its words, and the target that goes on from there."""
        words = line.split()
        middle = (len(words) + 1) // 2
        prompt_ids = self.encode_raw(" ".join(words[:middle]))
        target = tokens_of(self.tokenizer, " ".join(words[middle:]) or line, is_target=True)
        half = (min(max_tokens, self.max_positions or max_tokens) + 1) // 2
        return Encoded(prompt_ids=prompt_ids[:half], target_ids=(*target.own, self._end)[:half])

    def pack(self, sequences: Sequence[Encoded]) -> TargetBatch:
        """Pad prompts for the encoder, and for the decoder its start and all tokens of the target but the last."""
        device = self.device
        input_ids_BL, mask_BL = padded([item.prompt_ids for item in sequences], self.tokenizer, device)
        given = [(*self._start_ids, *item.target_ids[:-1]) for item in sequences]
        decoder_ids_BM, _ = padded(given, self.tokenizer, device)
        places = [
            (row, len(self._start_ids) - 1 + offset, token)
            for row, item in enumerate(sequences)
            for offset, token in enumerate(item.target_ids)
        ]
        row_N, position_N, target_N = torch.tensor(places, device=device).unbind(dim=1)
        return TargetBatch(
            input_ids_BL=input_ids_BL,
            mask_BL=mask_BL,
            decoder_ids_BM=decoder_ids_BM,
            row_N=row_N,
            position_N=position_N,
            target_N=target_N,
            subject_B=subject_ends(sequences, device),
        )

    def key_positions(self, batch: TargetBatch, param: InnerParam, kind: KeyTokens) -> tuple[Tensor, Tensor]:
        """Return rows and positions of keys: subjects in the encoder, targets in the decoder.

        An encoder has no answer tokens and a decoder no subject, so `kind` makes no difference here.
        """
        if param.name in self._of_encoder:
            return encoder_keys(batch)
        return batch.row_N, batch.position_N

    def keys_predict_target(self, param: InnerParam, kind: KeyTokens) -> bool:
        """Return whether the layer is in the decoder; an encoder's keys are tokens of the prompt."""
        return param.name not in self._of_encoder

    def target_logits(self, batch: TargetBatch) -> Tensor:
        """Run both stacks and return the logits of the target tokens, N x V."""
        return self._logits(batch, batch.row_N, batch.position_N)

    def run_to_last_inner(self, batch: TargetBatch, params: Sequence[InnerParam] = ()) -> None:
        """Run both stacks; only the logits are left out, all but one."""
        self._logits(batch, batch.row_N[:1], batch.position_N[:1])

    def greedy(self, prompts: Prompts, *, max_new_tokens: int, is_done: IsDone = never_done) -> list[list[int]]:
        """Return greedy answers as token ids; see `EditableModel.greedy`.

        Raises:
            InvalidInput: if a prompt is longer than the model has positions for; answers stop where they end.
        """
        ((_, most),) = self.answered_together(prompts, max_new_tokens=max_new_tokens)
        return greedy(
            lambda begun: self.decoding([prompt for one in begun for prompt in one.prompts]),
            prompts,
            comm=self.comm,
            max_new_tokens=most,
            stop_ids=self.stop_ids,
            is_done=is_done,
        )

    def answered_together(self, prompts: Prompts, *, max_new_tokens: int) -> Iterator[tuple[list[int], int]]:
        """Yield all places at once: an encoder masks its padding."""
        for prompt in prompts:
            require_positions(len(prompt), self.max_positions)
        # The last token of an answer is not run.
        room = max_new_tokens if self.max_positions is None else self.max_positions - len(self._start_ids) + 1
        yield list(range(len(prompts))), min(max_new_tokens, room)

    def decoding(self, prompts: Prompts) -> _Decoding:
        """Return answers of the decoder in the making; see `EditableModel.decoding`."""
        return _Decoding(self.module, self.tokenizer, prompts, start_ids=self._start_ids)

    def _logits(self, batch: TargetBatch, row_N: Tensor, position_N: Tensor) -> Tensor:
        head: nn.Module = self.module.get_output_embeddings()  # type: ignore[operator]
        with gathered_head(head, row_N, position_N):
            logits_1NV: Tensor = self.module(
                input_ids=batch.input_ids_BL,
                attention_mask=batch.mask_BL,
                decoder_input_ids=batch.decoder_ids_BM,
                use_cache=False,
            ).logits
        return logits_1NV[0]

    def _start_id(self) -> int:
        config: Any = self.module.config
        start = getattr(config, "decoder_start_token_id", None)
        if start is None or self._end is None:
            raise Misconfigured(f"expected a decoder_start_token_id and an end token, got {start} and {self._end}")
        return int(start)


class _Decoding:
    """Answers in the making: prompts are encoded once, the decoder keeps a cache; a `generation.Decoding`."""

    def __init__(self, module: nn.Module, tokenizer: Any, prompts: Prompts, *, start_ids: Sequence[int]) -> None:
        self._module, self._tokenizer, self._prompts, self._start_ids = module, tokenizer, prompts, start_ids
        self._cache: Any = None

    def begin(self) -> Tensor:
        """Encode the prompts and return the logits after what the decoder starts with, B x V."""
        device = next(self._module.parameters()).device
        input_ids_BL, self._mask_BL = padded(self._prompts, self._tokenizer, device)
        output = self._module(
            input_ids=input_ids_BL,
            attention_mask=self._mask_BL,
            decoder_input_ids=torch.tensor([list(self._start_ids)] * len(self._prompts), device=device),
            use_cache=True,
        )
        self._encoded_BLH: Tensor = output.encoder_last_hidden_state
        return self._kept(output)

    def advance(self, tokens_B: Tensor, rows_B: Tensor | None) -> Tensor:
        """Run one more token of the rows that stay; logits, B x V."""
        if rows_B is not None:
            self._cache.batch_select_indices(rows_B)
            self._mask_BL, self._encoded_BLH = self._mask_BL[rows_B], self._encoded_BLH[rows_B]
        output = self._module(
            encoder_outputs=BaseModelOutput(last_hidden_state=self._encoded_BLH),
            attention_mask=self._mask_BL,
            decoder_input_ids=tokens_B[:, None],
            past_key_values=self._cache,
            use_cache=True,
        )
        return self._kept(output)

    def _kept(self, output: Any) -> Tensor:
        self._cache = output.past_key_values
        logits_BV: Tensor = output.logits[:, -1]
        return logits_BV
