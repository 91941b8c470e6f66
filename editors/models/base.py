"""The interface of models of every family, for all that edits and measures them.

    model = families.editable("causal", module, tokenizer)
    batch = model.encode([("The capital of Peru is", "Lima")])
    logits_NV = model.target_logits(batch)

Everything goes through the module's own forward and through hooks, never through a weight, so that it works unchanged
on a module that DeepSpeed ZeRO-3 partitions. Each family decides what a target token is: a classifier's are its labels.

Legend: B sequences, L padded length, N target tokens in the batch, T edit rows, V vocabulary or labels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from editors.models.capacity import times_more
from editors.models.comm import ALONE, Comm, own_share
from editors.models.generation import Decoding, IsDone, Prompts, never_done
from editors.models.hooks import Branch, side_branch
from editors.models.inner_params import InnerParam, inner_params
from editors.models.left_context import Begun
from editors.models.positions import max_positions, require_positions, rotation_change
from editors.models.tokens import (
    Encoded,
    KeyTokens,
    TargetBatch,
    chunks,
    encode_named,
    encode_prompt,
    num_tokens,
    raw_tokens,
)
from pipeline.domain.errors import Misconfigured
from pipeline.domain.language.answers import first_line
from pipeline.domain.prompts import Prompt, asked_in_chat

Pair = tuple[Prompt, str]
"""A prompt, and the target that answers it."""

CHUNK_TOKENS = 2048
"""Most padded tokens of one forward on a CPU, unless told otherwise."""


class EditableModel(ABC):
    """A model, its tokenizer, and the weights that may be edited.

    Args:
        module: a Hugging Face model, or `engine.module` of DeepSpeed; put into eval mode, with gradients off.
        tokenizer: the tokenizer that belongs to it.
        inner_param_names: the weights to edit; the architecture's default when empty.
        comm: the ranks that hold the module together.

    Raises:
        Misconfigured: for an unknown architecture or a name that the model does not have.
    """

    loader: ClassVar[Any]
    """Class of transformers whose `from_pretrained` loads these models."""
    task: ClassVar[str]
    """Task as a lineage names it: `causal`, `seq2seq` or `classifier`."""
    drawdown_on: ClassVar[Literal["text", "suite"]]
    """What drawdown is measured on: plain text, or the targets of a suite of probes."""
    drawdown_by: ClassVar[Literal["perplexity", "accuracy"]] = "perplexity"
    """The figure that drawdown compares."""
    has_subject_keys: ClassVar[bool] = False
    """Whether an edit row may be its subject's last token, whose key no later word of the prompt changes."""

    def __init__(
        self, module: nn.Module, tokenizer: Any, inner_param_names: Sequence[str] = (), *, comm: Comm = ALONE
    ) -> None:
        self.module = module.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.comm = comm
        self.inner: tuple[InnerParam, ...] = inner_params(module, inner_param_names)

    @property
    def device(self) -> torch.device:
        """The device that the parameters are on."""
        return next(self.module.parameters()).device

    @property
    def times_more(self) -> int:
        """How many times the tokens or prompts that a CPU runs at once run here; see `capacity`.

        It is 1 where several ranks hold the model: they have to cut batches alike, whatever device each one has.
        """
        return times_more(self.module) if self.comm.num_ranks == 1 else 1

    @property
    def inner_param_names(self) -> tuple[str, ...]:
        """Names of the weights that may be edited, in the order in which they run."""
        return tuple(param.name for param in self.inner)

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Ids of the tokens that end an answer."""
        generation: Any = getattr(self.module, "generation_config", None)
        eos = getattr(generation, "eos_token_id", None)
        found = eos if isinstance(eos, list) else [eos, self.tokenizer.eos_token_id]
        return frozenset(int(token) for token in found if token is not None)

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer has a template for conversations, as `encode_chat` needs."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def encode(self, pairs: Sequence[Pair]) -> TargetBatch:
        """Return all pairs as one batch, a row each, in the order given."""
        return self.pack([self.encode_pair(prompt, target) for prompt, target in pairs])

    @cached_property
    def max_positions(self) -> int | None:
        """The most tokens that a sequence may have; None where there is no such number."""
        return max_positions(self.module)

    @cached_property
    def rotation_change(self) -> int | None:
        """The most tokens of a sequence that may be beside longer ones only if they are no more; None for any."""
        return rotation_change(self.module)

    def encode_prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """Return the token ids of a prompt, as `greedy` takes them.

        Raises:
            InvalidInput: if it is too long, or no plain text that the tokenizer knows.
        """
        ids = encode_prompt(self.tokenizer, prompt)
        require_positions(len(ids), self.max_positions)
        return ids

    def encode_raw(self, text: str) -> tuple[int, ...]:
        """Return the token ids of any text, also of one with special tokens in it, however long it is."""
        return raw_tokens(self.tokenizer, text)

    def encode_chat(self, prompt: str) -> tuple[int, ...]:
        """Return the token ids of a prompt as a user's turn, as `greedy` takes them; only where `has_chat_template`."""
        return self.encode_prompt(asked_in_chat(prompt))

    @abstractmethod
    def encode_pair(self, prompt: Prompt, target: str, subject: str | None = None) -> Encoded:
        """Encode a prompt, a target that answers it, and the place in the prompt where the subject ends.

        Raises:
            InvalidInput: if the model could never give this target, or cannot take this prompt.
        """

    def encode_named(self, text: str, subject: str) -> Encoded:
        """Encode a text of which only the key of a subject is read, for models with `has_subject_keys`.

        Raises:
            InvalidInput: if the model has no positions for so many tokens.
        """
        encoded = encode_named(self.tokenizer, text, subject)
        require_positions(len(encoded.prompt_ids), self.max_positions)
        return encoded

    @abstractmethod
    def encode_text(self, line: str, *, max_tokens: int) -> Encoded:
        """Encode the beginning of a plain text, so that every inner layer sees its tokens as keys."""

    @abstractmethod
    def pack(self, sequences: Sequence[Encoded]) -> TargetBatch:
        """Put encoded sequences into one padded batch on the model's device, in the order given."""

    def chunked(
        self, sequences: Sequence[Encoded], *, max_tokens: int | None = None
    ) -> Iterator[tuple[list[int], TargetBatch]]:
        """Yield this rank's share as batches of bounded size, each with the places of its rows in `sequences`.

        Here and in the next two methods `max_tokens` is what a CPU runs at once; the device may run more.
        Every rank gets the same number of batches, because a forward on partitioned weights waits for all ranks. A
        rank that has fewer gets fillers: batches without places, whose results are dropped.
        """
        by_length = sorted(range(len(sequences)), key=lambda place: num_tokens(sequences[place]))
        shares = [own_share(self.comm, by_length, rank) for rank in range(self.comm.num_ranks)]
        most = (max_tokens or CHUNK_TOKENS) * self.times_more
        parts = ([sequences[place] for place in share] for share in shares)
        plans = [list(chunks(part, max_tokens=most, change=self.rotation_change)) for part in parts]
        own, share = plans[self.comm.rank], shares[self.comm.rank]
        for chunk in own:
            places = [share[index] for index in chunk]
            yield places, self.pack([sequences[place] for place in places])
        for _ in range(max(map(len, plans)) - len(own)):
            yield [], self.pack([sequences[by_length[0]]])

    def chunked_alike(
        self, sequences: Sequence[Encoded], *, max_tokens: int
    ) -> Iterator[tuple[list[int], TargetBatch]]:
        """Yield as `chunked` does, but batches cut as for one rank and then shared out, so that they give its bits."""
        plan = list(chunks(sequences, max_tokens=max_tokens * self.times_more, change=self.rotation_change))
        own = own_share(self.comm, plan)
        for places in own:
            yield places, self.pack([sequences[place] for place in places])
        for _ in range(-(-len(plan) // self.comm.num_ranks) - len(own)):
            yield [], self.pack([sequences[plan[0][0]]])

    def chunked_whole(self, sequences: Sequence[Encoded], *, max_tokens: int = CHUNK_TOKENS) -> Iterator[TargetBatch]:
        """Yield all sequences as batches of bounded size, the same on every rank."""
        for places in chunks(sequences, max_tokens=max_tokens * self.times_more, change=self.rotation_change):
            yield self.pack([sequences[place] for place in places])

    def prefixed(self, batch: TargetBatch, params: Sequence[InnerParam] = ()) -> TargetBatch:
        """Return the batch with what spares later forwards the work that no edit changes; by default as it is.

        Args:
            batch: the sequences.
            params: the inner parameters that edits will change; all when empty.
        """
        return batch

    def begun(
        self, sequences: Sequence[Encoded], starts: Sequence[int], params: Sequence[InnerParam]
    ) -> Sequence[Begun | None]:
        """Read the beginnings of sequences that will be asked again and again; by default none of them.

        Every rank reads all of them.

        Args:
            sequences: what will be asked.
            starts: the place in each prompt before which it is read now, at the subject's last token or left of it.
            params: inner parameters to which something may be added from there on, and to no block before them.
        """
        return [None] * len(sequences)

    def pack_begun(
        self, sequences: Sequence[Encoded], begun: Sequence[Begun | None], params: Sequence[InnerParam]
    ) -> TargetBatch:
        """Pack sequences of which `begun` has read the beginnings; those of a model that reads none are whole."""
        return self.pack(sequences)

    @abstractmethod
    def key_positions(self, batch: TargetBatch, param: InnerParam, kind: KeyTokens) -> tuple[Tensor, Tensor]:
        """Return rows and positions, T each, of the tokens whose inputs to an inner layer are keys.

        Rows do not decrease. Positions count along the stack that the layer is in, so T differs between the layers of
        an encoder and those of a decoder.
        """

    @abstractmethod
    def keys_predict_target(self, param: InnerParam, kind: KeyTokens) -> bool:
        """Return whether the tokens of `key_positions` are those that predict the target's tokens, in their order."""

    @abstractmethod
    def target_logits(self, batch: TargetBatch) -> Tensor:
        """Run a batch and return the logits that predict its target tokens, N x V; gradients reach what hooks add."""

    @abstractmethod
    def run_to_last_inner(self, batch: TargetBatch, params: Sequence[InnerParam] = ()) -> None:
        """Run a batch only for what hooks see in some inner layers (in all if none are named).

        Layers after the last of them may be left out.
        """

    def generate(
        self, prompts: Sequence[str], *, chat: bool = False, max_new_tokens: int = 24, is_one_line: bool = False
    ) -> list[str]:
        """Return greedy answers as text, without the prompts.

        Args:
            prompts: asked as they are, they may hold a template that somebody wrote by hand.
            chat: whether to ask in the model's chat template.
            max_new_tokens: most tokens of an answer.
            is_one_line: whether an answer ends with its first line, and no token after that is made.

        Raises:
            Misconfigured: if the model has no chat template and one is asked for.
            InvalidInput: if a prompt is too long, or has special tokens in it and is asked in a chat.
        """
        if chat and not self.has_chat_template:
            raise Misconfigured("expected a model with a chat template to ask in a chat, got one without")
        encode = self.encode_chat if chat else self.encode_raw

        def has_line(_place: int, answer: Sequence[int]) -> bool:
            said = self.decode(answer)
            return first_line(said) != said

        is_done = has_line if is_one_line else never_done
        answers = self.greedy([encode(prompt) for prompt in prompts], max_new_tokens=max_new_tokens, is_done=is_done)
        said = [self.decode(answer) for answer in answers]
        return [first_line(text) for text in said] if is_one_line else said

    @abstractmethod
    def answered_together(self, prompts: Prompts, *, max_new_tokens: int) -> Iterator[tuple[list[int], int]]:
        """Yield the places of prompts that `decoding` may take at once, each time with the most tokens of an answer.

        Raises:
            InvalidInput: if a prompt is longer than the model has positions for.
        """

    @abstractmethod
    def decoding(self, prompts: Prompts) -> Decoding:
        """Return the answers to prompts in the making, for who chooses each token; where one rank holds the model."""

    @abstractmethod
    def greedy(self, prompts: Prompts, *, max_new_tokens: int, is_done: IsDone = never_done) -> list[list[int]]:
        """Return greedy answers as token ids, without the token that ends them; every rank has to call it.

        The arguments are those of `generation.greedy`.
        """

    def greedy_beside(
        self,
        prompts: Prompts,
        beside: Collection[int],
        branches: Mapping[str, Branch],
        *,
        max_new_tokens: int,
        is_done: IsDone = never_done,
    ) -> list[list[int]]:
        """Return what `greedy` does, some of it with branches beside the weights.

        Args:
            prompts: each of at least one token.
            beside: places of the prompts that are answered with the branches.
            branches: as of `hooks.side_branch`.
            max_new_tokens: most tokens of an answer.
            is_done: as of `greedy`.
        """

        def answers(places: Sequence[int]) -> zip[tuple[int, list[int]]]:
            chosen = [prompts[place] for place in places]
            found = self.greedy(
                chosen, max_new_tokens=max_new_tokens, is_done=lambda place, tokens: is_done(places[place], tokens)
            )
            return zip(places, found, strict=True)

        found = dict(answers([place for place in range(len(prompts)) if place not in beside]))
        with side_branch(self.module, branches):
            found |= answers(sorted(beside))
        return [found[place] for place in range(len(prompts))]

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of an answer, without special tokens."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))
