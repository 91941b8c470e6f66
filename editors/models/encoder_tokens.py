"""Knows how prompts become padded batches for an encoder, and which of its tokens are keys. Knows no weight.

An encoder sees padding unless it is masked, and the special tokens at both ends of a prompt are part of what it reads.

Legend: B sequences, L padded length, T edit rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from editors.models.tokens import Encoded, TargetBatch, pad_id
from pipeline.domain.errors import InvalidInput


def encode_whole(tokenizer: Any, prompt: str, *, max_tokens: int | None) -> tuple[int, ...]:
    """Token ids of a prompt with the special tokens around it.

    Raises:
        InvalidInput: if the encoder cannot take so many, or there is none.
    """
    ids = tuple(tokenizer(prompt)["input_ids"])
    if not ids:
        raise InvalidInput(f"expected a prompt of at least one token, got {prompt!r:.80}")
    if max_tokens is not None and len(ids) > max_tokens:
        raise InvalidInput(f"expected a prompt of at most {max_tokens} tokens, got {len(ids)} in {prompt!r:.80}")
    return ids


def padded(rows: Sequence[Sequence[int]], tokenizer: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids padded on the right, and the mask of what is real, B x L each."""
    width, fill = max(map(len, rows)), pad_id(tokenizer)
    input_ids_BL = torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], device=device)
    mask_BL = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return input_ids_BL, mask_BL


def subject_ends(sequences: Sequence[Encoded], device: torch.device) -> Tensor:
    """Position of each prompt's last subject token, B; -1 where there is none."""
    return torch.tensor([-1 if item.subject_end is None else item.subject_end for item in sequences], device=device)


def encoder_keys(batch: TargetBatch) -> tuple[Tensor, Tensor]:
    """Rows and positions, T each: the last token of each subject, or all real tokens where no subject is known."""
    assert batch.mask_BL is not None, "expected a batch that was packed for an encoder"
    is_key_BL = batch.mask_BL.bool()
    has_subject_B1 = (batch.subject_B >= 0)[:, None]
    positions_L = torch.arange(is_key_BL.shape[1], device=is_key_BL.device)
    is_subject_BL = positions_L[None, :] == batch.subject_B[:, None]
    row_T, position_T = torch.where(has_subject_B1, is_subject_BL, is_key_BL).nonzero().unbind(dim=1)
    return row_T, position_T
