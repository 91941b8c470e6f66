"""Facts that are put before the prompt instead of into the weights: what editing has to be compared with.

`context` is the oracle: every question about an edit is asked behind that edit's own fact. `bm25` looks the fact up:
the edit whose wording is most like the prompt by Okapi BM25 (Robertson et al., 1994) is put before it, whatever was
asked.
No weight changes, so nothing is lost elsewhere but by a fact that stands where it does not belong. In a chat the fact
opens the user's turn.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import nn

from editors.methods.base import EditJob, EditResult
from editors.models.causal import CausalModel
from editors.models.families import EditableModel, InnerParam
from editors.models.generation import IsDone, Prompts, never_done
from editors.models.text_tokens import own_tokens, tokens_of
from editors.models.tokens import Encoded, TargetBatch, rendered
from editors.solve.rows import EditRows
from editors.weights.deltas import WeightDelta
from pipeline.domain.edits import Edit
from pipeline.domain.errors import Misconfigured
from pipeline.domain.language.joining import joined
from pipeline.domain.language.spelling import normalised
from pipeline.domain.prompts import asked_in_chat

ORACLE, RETRIEVAL = "context", "bm25"
IN_CONTEXT = (ORACLE, RETRIEVAL)
"""Methods that leave the weights alone."""
MARK = "\ue000"
"""Stands for a question where it is looked up what a chat template puts before one."""
K1, B = 1.5, 0.75
"""BM25's usual constants: how fast repeated words count less, and how much the length of a wording counts."""


class Memory:
    """The facts that may be put before a prompt.

    Args:
        kind: `context` or `bm25`.
        keeps_one: whether a new batch of edits takes the place of the one before, as where edits are single.
    """

    def __init__(self, kind: str, *, keeps_one: bool = False) -> None:
        self._kind, self._keeps_one = kind, keeps_one
        self._facts: dict[str, str] = {}
        self._asked: dict[str, str] = {}
        self._words: dict[str, Counter[str]] = {}
        self._num_with: Counter[str] = Counter()

    def add(self, edits: Sequence[Edit]) -> int:
        """Remember some edits, and return the size of their facts; the later of two corrections of a fact counts."""
        if self._keeps_one:
            self._facts, self._asked, self._words, self._num_with = {}, {}, {}, Counter()
        for edit in edits:
            request, key = edit.request, edit.request.conflict_key
            self._num_with.subtract(self._words.get(key, Counter()).keys())
            self._facts[key] = joined(request.prompt, request.target_new) + "."
            self._words[key] = Counter(_words(self._facts[key]))
            self._num_with.update(self._words[key].keys())
            probes = (*request.locality, *request.portability)
            texts = (request.prompt, request.question, *request.rephrases, *(probe.prompt for probe in probes))
            self._asked |= {normalised(text): key for text in texts if text}
        return sum(len(self._facts[key].encode()) for key in {edit.request.conflict_key for edit in edits})

    def fact_for(self, prompt: str) -> str | None:
        """Return the fact to put before a prompt; None for none."""
        key = self._oracle(prompt) if self._kind == ORACLE else self._likest(prompt)
        return None if key is None else self._facts[key]

    def _oracle(self, prompt: str) -> str | None:
        asked = normalised(prompt)
        if asked in self._asked:
            return self._asked[asked]
        known = [text for text in self._asked if text in asked]  # in a chat's template
        return self._asked[max(known, key=len)] if known else None

    def _likest(self, prompt: str) -> str | None:
        """Return the fact with the highest score of BM25; None where no word is shared."""
        mean = sum(words.total() for words in self._words.values()) / max(len(self._words), 1)
        asked = set(_words(prompt))
        scores = {key: self._score(words, asked, mean) for key, words in self._words.items()}
        best = max(scores, key=lambda key: scores[key], default=None)
        return best if best is not None and scores[best] > 0 else None

    def _score(self, words: Mapping[str, int], asked: set[str], mean: float) -> float:
        length, num = sum(words.values()), len(self._words)
        score = 0.0
        for word in asked & words.keys():
            rare = math.log(1 + (num - self._num_with[word] + 0.5) / (self._num_with[word] + 0.5))
            often = words[word]
            score += rare * often * (K1 + 1) / (often + K1 * (1 - B + B * length / mean))
        return score


class InContextModel(CausalModel):
    """A decoder that reads a remembered fact before each prompt; without facts it is the model itself.

    Args:
        module: the base, whose weights stay as they are.
        tokenizer: its tokenizer.
        inner_param_names: as of `CausalModel`.
        memory: the facts.
    """

    def __init__(self, module: nn.Module, tokenizer: object, inner_param_names: Sequence[str], memory: Memory) -> None:
        super().__init__(module, tokenizer, inner_param_names)
        self.memory = memory
        self._before = len(tokens_of(tokenizer, ".").before)

    def pack(self, sequences: Sequence[Encoded]) -> TargetBatch:
        """Put sequences into one batch, each behind its fact."""
        return super().pack([self._behind_fact(sequence) for sequence in sequences])

    def prefixed(self, batch: TargetBatch, params: Sequence[InnerParam] = ()) -> TargetBatch:
        """Return the batch as it is: what enters a block depends on the facts, and is not kept."""
        return batch

    def greedy(self, prompts: Prompts, *, max_new_tokens: int, is_done: IsDone = never_done) -> list[list[int]]:
        """Return greedy continuations of prompts behind their facts."""
        behind = [self._with_fact(tuple(prompt), room=max_new_tokens) for prompt in prompts]
        return super().greedy(behind, max_new_tokens=max_new_tokens, is_done=is_done)

    def _behind_fact(self, sequence: Encoded) -> Encoded:
        prompt, end = self._with_fact(sequence.prompt_ids, room=len(sequence.target_ids)), sequence.subject_end
        if end is not None and end >= self._place(sequence.prompt_ids):
            end += len(prompt) - len(sequence.prompt_ids)
        return replace(sequence, prompt_ids=prompt, subject_end=end)

    def _with_fact(self, prompt: tuple[int, ...], *, room: int) -> tuple[int, ...]:
        """Return a prompt with its fact; as it is where there is no room."""
        fact = self.memory.fact_for(self.decode(prompt))
        if fact is None:
            return prompt
        place = self._place(prompt)
        longer = (*prompt[:place], *own_tokens(self.tokenizer, f"{fact}\n"), *prompt[place:])
        fits = self.max_positions is None or len(longer) + room <= self.max_positions
        return longer if fits else prompt

    def _place(self, prompt: tuple[int, ...]) -> int:
        """Return where a fact goes: to the beginning of a chat's last turn, else behind the tokens that open a text."""
        turn = self._turn
        ends = (end for end in range(len(prompt), len(turn) - 1, -1) if prompt[end - len(turn) : end] == turn)
        return next(ends, self._before) if turn else self._before

    @cached_property
    def _turn(self) -> tuple[int, ...]:
        """What opens a user's turn in the chat template, from its last special token on; nothing without a template."""
        if not self.has_chat_template:
            return ()
        before, _, _ = rendered(self.tokenizer, asked_in_chat(MARK)).partition(MARK)
        ids = own_tokens(self.tokenizer, before.rstrip(" "))
        special = set(self.tokenizer.all_special_ids)
        return tuple(ids[max((place for place, token in enumerate(ids) if token in special), default=0) :])


class InContextEditor:
    """An editor that remembers facts and changes nothing; its model has to be an `InContextModel`."""

    keeps_ledger: ClassVar[bool] = False

    def edit(self, job: EditJob) -> EditResult:
        """Remember the edits; an `Editor`.

        Raises:
            Misconfigured: for a model that reads no facts.
        """
        job.require_additions("context")
        if not isinstance(job.model, InContextModel):
            raise Misconfigured("expected a model that reads facts before prompts, got one that does not")
        return EditResult(
            delta=no_change(job.model),
            rows=EditRows(keys={}, targets={}, ranges={}),
            removed_ids=(),
            num_passes=0,
            seconds={"capture": 0.0, "solve": 0.0},
            jitter={},
            kept_bytes=job.model.memory.add(job.added),
        )


def no_change(model: EditableModel) -> WeightDelta:
    """Return a delta of zeros, for what changes no weight."""
    nothing = {p.name: (torch.zeros(p.in_features, 1), torch.zeros(1, p.out_features)) for p in model.inner}
    return WeightDelta.of(nothing)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", normalised(text))
