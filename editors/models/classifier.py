"""Encoders with a head over labels, such as BERT as a fact checker.

The vocabulary of a classifier is its labels: the target of a claim is the name of one of them, and the answer to a
claim is the most probable one.

Legend: B claims, L padded length, N target labels in the batch (as many as claims), T edit rows, V labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from editors.models.base import EditableModel
from editors.models.comm import merged
from editors.models.encoder_tokens import encode_any, encode_whole, encoder_keys, padded
from editors.models.generation import IsDone, Prompts, never_done
from editors.models.inner_params import InnerParam
from editors.models.positions import require_positions
from editors.models.text_tokens import subject_end
from editors.models.tokens import Encoded, KeyTokens, TargetBatch, rendered, subject_ends
from pipeline.domain.errors import InvalidInput
from pipeline.domain.prompts import Prompt


class ClassifierModel(EditableModel):
    """An encoder that answers a claim with one of its labels."""

    task = "classifier"
    loader = AutoModelForSequenceClassification
    drawdown_on = "suite"
    drawdown_by = "accuracy"
    stop_ids = frozenset()

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels, in the order of their ids."""
        config: Any = self.module.config
        return tuple(str(config.id2label[place]) for place in range(config.num_labels))

    @property
    def has_chat_template(self) -> bool:
        """Always false: a classifier holds no conversations."""
        return False

    def encode_prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """Return the token ids of a claim with the special tokens around it.

        Raises:
            InvalidInput: if the encoder cannot take so many tokens, or the claim is no plain text that is known.
        """
        return encode_whole(self.tokenizer, prompt, max_tokens=self.max_positions)

    def encode_raw(self, text: str) -> tuple[int, ...]:
        """Return the token ids of any text with the special tokens around it, however long it is."""
        return encode_any(self.tokenizer, text)

    def encode_pair(self, prompt: Prompt, target: str, subject: str | None = None) -> Encoded:
        """Encode a claim, with the id of the label that the target names as its one target token.

        Raises:
            InvalidInput: if there is no such label, or the prompt is too long.
        """
        if target not in self.labels:
            raise InvalidInput(f"expected one of the labels {', '.join(self.labels)} as target, got {target!r:.80}")
        return Encoded(
            prompt_ids=self.encode_prompt(prompt),
            target_ids=(self.labels.index(target),),
            subject_end=subject_end(self.tokenizer, rendered(self.tokenizer, prompt), subject),
        )

    def encode_text(self, line: str, *, max_tokens: int) -> Encoded:
        """Encode the beginning of a text; its label is made up and never used."""
        most = min(max_tokens, self.max_positions or max_tokens)
        ids = self.tokenizer(line, truncation=True, max_length=most)["input_ids"]
        return Encoded(prompt_ids=tuple(ids), target_ids=(0,))

    def pack(self, sequences: Sequence[Encoded]) -> TargetBatch:
        """Pad claims on the right; a label is predicted at the first token, which is the one that the head reads."""
        input_ids_BL, mask_BL = padded([item.prompt_ids for item in sequences], self.tokenizer, self.device)
        row_N = torch.arange(len(sequences), device=self.device)
        return TargetBatch(
            input_ids_BL=input_ids_BL,
            mask_BL=mask_BL,
            row_N=row_N,
            position_N=torch.zeros_like(row_N),
            target_N=torch.tensor([item.target_ids[0] for item in sequences], device=self.device),
            subject_B=subject_ends(sequences, self.device),
        )

    def key_positions(self, batch: TargetBatch, param: InnerParam, kind: KeyTokens) -> tuple[Tensor, Tensor]:
        """Return rows and positions of the subject's last token, or of all tokens where no subject is known."""
        return encoder_keys(batch)

    def keys_predict_target(self, param: InnerParam, kind: KeyTokens) -> bool:
        """Return that they do not: the head reads the first token alone, whatever the keys are."""
        return False

    def target_logits(self, batch: TargetBatch) -> Tensor:
        """Run a batch and return the logits over the labels, a row for each claim."""
        logits_BV: Tensor = self.module(input_ids=batch.input_ids_BL, attention_mask=batch.mask_BL).logits
        return logits_BV[batch.row_N]

    def run_to_last_inner(self, batch: TargetBatch, params: Sequence[InnerParam] = ()) -> None:
        """Run the whole model: only the head comes after the last block."""
        self.target_logits(batch)

    @torch.no_grad()
    def greedy(self, prompts: Prompts, *, max_new_tokens: int, is_done: IsDone = never_done) -> list[list[int]]:
        """Return the id of the most probable label of each prompt, as an answer of one token.

        Raises:
            InvalidInput: if a prompt is longer than the model has positions for.
        """
        for prompt in prompts:
            require_positions(len(prompt), self.max_positions)
        if not prompts or max_new_tokens < 1:
            return [[] for _ in prompts]
        answers: dict[int, list[int]] = {}
        for places, batch in self.chunked([Encoded(prompt_ids=tuple(prompt), target_ids=(0,)) for prompt in prompts]):
            labels = self.target_logits(batch).argmax(dim=1).tolist()
            answers |= {place: [label] for place, label in zip(places, labels, strict=False)}
        return merged(self.comm, answers)

    def answered_together(self, prompts: Prompts, *, max_new_tokens: int) -> Iterator[tuple[list[int], int]]:
        """Yield all places at once, each with one token, its label."""
        for prompt in prompts:
            require_positions(len(prompt), self.max_positions)
        yield list(range(len(prompts))), min(max_new_tokens, 1)

    def decoding(self, prompts: Prompts) -> _Labels:
        """Return the logits of labels as those of a first and only token."""
        return _Labels(self, prompts)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the names of the labels with these ids."""
        return " ".join(self.labels[token] for token in tokens)


class _Labels:
    """Labels of claims as answers of one token; a `generation.Decoding`."""

    def __init__(self, model: ClassifierModel, claims: Prompts) -> None:
        self._model, self._claims = model, claims

    def begin(self) -> Tensor:
        """Run the claims and return the logits of their labels, B x V."""
        claims = [Encoded(prompt_ids=tuple(claim), target_ids=(0,)) for claim in self._claims]
        return self._model.target_logits(self._model.pack(claims))

    def advance(self, tokens_B: Tensor, rows_B: Tensor | None) -> Tensor:
        """Never asked for: an answer has no second token."""
        raise AssertionError("expected an answer of one label, got asked for more")
