"""Running only the blocks from the first edited one on.

The hidden states that enter the first edited block are the same for the base and for every model edited from it. They
are computed once for a batch (`compute_prefix`) and put in later (`starting_at`), while pass-throughs stand in for the
blocks before. So the model's own forward still runs, with its embeddings, masks and positions: this works for every
architecture whose blocks are a `ModuleList`, without a line about any of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from editors.models.tokens import Prefix


class PassThrough(nn.Module):
    """A stand-in for a block: returns the hidden states that it gets, and shows the block's attributes."""

    def __init__(self, block: nn.Module, kind: OutputKind) -> None:
        super().__init__()
        self._stood_for = (block,)  # in a tuple, so that the block is not registered as a child
        self._kind = kind

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_stood_for"][0], name)

    def forward(self, hidden_states: Tensor, *arguments: Any, **keywords: Any) -> Any:
        """Return the hidden states, in the form in which the architecture's blocks return them."""
        return (hidden_states, None) if self._kind.returns_tuple else hidden_states


class OutputKind:
    """Whether the blocks of a model return a tuple, as the first block that really runs shows."""

    def __init__(self, *, returns_tuple: bool = False) -> None:
        self.returns_tuple = returns_tuple

    def learn(self, _block: nn.Module, _arguments: Any, output: Any) -> None:
        """Note the form of a block's output; a forward hook."""
        self.returns_tuple = isinstance(output, tuple)


@contextmanager
def replaced(blocks: nn.ModuleList, places: range, kind: OutputKind) -> Iterator[None]:
    """Put pass-throughs in some places of a list of blocks; the blocks are put back on exit, whatever happened."""
    originals = {index: blocks[index] for index in places}
    try:
        for index, block in originals.items():
            blocks[index] = PassThrough(block, kind)
        yield
    finally:
        for index, block in originals.items():
            blocks[index] = block


@contextmanager
def entering(block: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the hidden states that enter a block, B x L x H for each forward, without gradient."""
    seen: list[Tensor] = []

    def keep(_block: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        seen.append((arguments[0] if arguments else keywords["hidden_states"]).detach())

    handle = block.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def starting_at(blocks: nn.ModuleList, prefix: Prefix) -> Iterator[None]:
    """Let the model's forward run from the prefix's block on, with the prefix's hidden states entering there."""

    def substitute(_block: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        if arguments:
            return (prefix.hidden_BLH, *arguments[1:]), keywords
        return arguments, {**keywords, "hidden_states": prefix.hidden_BLH}

    with replaced(blocks, range(prefix.block), OutputKind(returns_tuple=prefix.returns_tuple)):
        handle = blocks[prefix.block].register_forward_pre_hook(substitute, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


@contextmanager
def gathered_head(head: nn.Module, row_N: Tensor, position_N: Tensor) -> Iterator[None]:
    """Let the output embeddings see only the chosen positions, so that logits come out as 1 x N x V.

    At B x L x V they would be the largest tensor of a forward by far.
    """

    def gather(_head: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (arguments[0][row_N, position_N].unsqueeze(0),)

    handle = head.register_forward_pre_hook(gather)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def ending_before(blocks: nn.ModuleList, end: int) -> Iterator[OutputKind]:
    """Let the model's forward run only the blocks before `end`; the logits mean nothing then."""
    kind = OutputKind()
    learning = blocks[0].register_forward_hook(kind.learn)
    try:
        with replaced(blocks, range(end, len(blocks)), kind):
            yield kind
    finally:
        learning.remove()


def compute_prefix(module: nn.Module, blocks: nn.ModuleList, first: int, inputs: Mapping[str, Any]) -> Prefix:
    """Run the blocks before `first` on what the model's forward takes, and return the hidden states that enter it."""
    head: nn.Module = module.get_output_embeddings()  # type: ignore[operator]
    one = torch.zeros(1, dtype=torch.long, device=inputs["input_ids"].device)
    with (
        torch.no_grad(),
        ending_before(blocks, first) as kind,
        gathered_head(head, one, one),
        entering(blocks[first]) as seen,
    ):
        module(**inputs)
    return Prefix(hidden_BLH=seen[0], returns_tuple=kind.returns_tuple, block=first)
