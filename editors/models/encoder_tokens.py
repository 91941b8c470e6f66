"""Prompts as an encoder reads them: token ids, padded batches with their masks, and which tokens are keys.

Unlike a decoder, an encoder sees padding unless it is masked, and reads special tokens at both ends of a prompt.

Legend: B sequences, L padded length, T edit rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from editors.models.positions import require_positions
from editors.models.tokens import TargetBatch, pad_id, rendered, require_readable
from pipeline.domain.errors import InvalidInput
from pipeline.domain.prompts import Prompt


def encode_whole(tokenizer: Any, prompt: Prompt, *, max_tokens: int | None) -> tuple[int, ...]:
    """Return the token ids of a prompt with the special tokens around it.

    Raises:
        InvalidInput: if the encoder cannot take so many or there is none, or as `tokens.require_readable` says.
    """
    require_readable(tokenizer, prompt)
    ids = encode_any(tokenizer, rendered(tokenizer, prompt))
    if not ids:
        raise InvalidInput(f"expected a prompt of at least one token, got {prompt!r:.80}")
    require_positions(len(ids), max_tokens)
    return ids


def encode_any(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Return the token ids of any text, however long it is, with the special tokens around it."""
    return tuple(tokenizer(text)["input_ids"])


def padded(rows: Sequence[Sequence[int]], tokenizer: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return token ids padded on the right, and a mask with 1 where they are real, B x L each."""
    width, fill = max(map(len, rows)), pad_id(tokenizer)
    input_ids_BL = torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], device=device)
    mask_BL = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return input_ids_BL, mask_BL


def encoder_keys(batch: TargetBatch) -> tuple[Tensor, Tensor]:
    """Return rows and positions of the keys, T each.

    The key of a sequence is the last token of its subject; where no subject is known, every real token is one.
    """
    assert batch.mask_BL is not None, "expected a batch that was packed for an encoder"
    is_key_BL = batch.mask_BL.bool()
    has_subject_B1 = (batch.subject_B >= 0)[:, None]
    positions_L = torch.arange(is_key_BL.shape[1], device=is_key_BL.device)
    is_subject_BL = positions_L[None, :] == batch.subject_B[:, None]
    row_T, position_T = torch.where(has_subject_B1, is_subject_BL, is_key_BL).nonzero().unbind(dim=1)
    return row_T, position_T
