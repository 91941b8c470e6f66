"""How many tokens a model has positions for, and which prompts may be answered together.

A position beyond a model's table is an index error at best; a rotation that was never trained says nothing. So what is
too long is refused, and answers stop where the positions end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from pipeline.domain.errors import InvalidInput


def max_positions(module: nn.Module) -> int | None:
    """Return the most tokens that a sequence may have; None where positions are relative and have no end."""
    config: Any = module.config
    names = ("max_position_embeddings", "max_seq_len")
    most = next((found for name in names if (found := getattr(config, name, None)) is not None), None)
    if most is None:
        return None
    # RoBERTa's kind counts positions from behind that of padding, in a table that is no longer for it.
    tables = (part for name, part in module.named_modules() if name.endswith("position_embeddings"))
    skipped = [part.padding_idx + 1 for part in tables if isinstance(part, nn.Embedding) and part.padding_idx]
    return int(most) - max(skipped, default=0)


def rotation_change(module: nn.Module) -> int | None:
    """Return the most tokens of a sequence that a model rotates in its short way; None where it has one way only.

    Phi-3's kind (LongRoPE) rotates all of a batch by its longest sequence, so what is shorter must not be beside it.
    """
    config: Any = module.config
    found = getattr(config, "rope_parameters", None) or {}
    ways = [found, *(way for way in found.values() if isinstance(way, dict))]
    lengths = [way["original_max_position_embeddings"] for way in ways if way.get("rope_type") == "longrope"]
    return min(lengths, default=None)


def require_positions(num_tokens: int, most: int | None, what: str = "a prompt") -> None:
    """Refuse a text with more tokens than there are positions.

    Raises:
        InvalidInput: with both numbers.
    """
    if most is not None and num_tokens > most:
        raise InvalidInput(f"expected {what} of at most {most} tokens, got {num_tokens}")


def answered_together(
    prompts: Sequence[Sequence[int]], *, max_new_tokens: int, most: int | None, change: int | None = None
) -> Iterator[tuple[list[int], int]]:
    """Yield the places of prompts that may be answered in one batch, each time with the most new tokens.

    Usually that is one batch of all. A prompt whose answer may come to the end of the positions is answered with those
    of its own length: its answer is shorter, and padding counts too in tables that go by columns. So is one whose
    answer comes to the `change` of rotation.

    Raises:
        InvalidInput: if a prompt is too long itself.
    """
    for prompt in prompts:
        require_positions(len(prompt), most)
    # The last token of an answer is not run.
    groups: dict[tuple[int, int], list[int]] = {}
    for place, prompt in enumerate(prompts):
        room = max_new_tokens if most is None else min(max_new_tokens, most - len(prompt) + 1)
        is_changing = change is not None and len(prompt) + room - 1 > change
        groups.setdefault((room, len(prompt) if is_changing else 0), []).append(place)
    for room, length in sorted(groups, reverse=True):
        yield groups[room, length], room
