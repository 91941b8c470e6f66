"""Knows the second moments of an inner layer's keys over plain text: what edits should leave alone. Knows no edit.

Legend: L padded length, I in_features, N tokens in the batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from editors.capture import capturing
from editors.deltas import read_tensors, write_tensors
from editors.families import CausalModel
from editors.prompts import Encoded, encode_prompt
from pipeline.domain.errors import Misconfigured

NUM_LINES = 512
"""Most lines of text that are read."""
LINE_TOKENS = 24
"""Most tokens of a line: about the length of an edit's prompt, where the measured constants come from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prior:
    """mean(k k^T) of each inner parameter."""

    moments: dict[str, Tensor]
    """Inner parameter -> I x I, fp32 on the CPU."""
    num_tokens: int
    """Over how many tokens the mean was taken."""

    def save(self, path: Path) -> str:
        """Write the moments; returns the file's SHA-256."""
        return write_tensors(path, self.moments, {"kind": "prior", "num_tokens": self.num_tokens})

    @classmethod
    def load(cls, path: Path, expected_digest: str | None = None) -> Self:
        """Read moments back.

        Raises:
            IntegrityBroken: if the file is not a prior, or has another digest than expected.
        """
        moments, facts = read_tensors(path, "prior", expected_digest)
        return cls(moments=moments, num_tokens=int(facts.get("num_tokens", 0)))


def measure_prior(model: CausalModel, lines: Iterable[str]) -> Prior:
    """Second moments of the keys at every token of the first lines of a text, summed in fp64.

    Raises:
        Misconfigured: if there is no line to read.
    """
    sequences = _sequences(model, lines)
    if not sequences:
        raise Misconfigured("expected at least one line of text for the prior, got none")
    sums = {p.name: torch.zeros(p.in_features, p.in_features, dtype=torch.float64) for p in model.inner}
    num_tokens = 0
    for _, batch in model.chunked(sequences):
        num_tokens += len(batch.row_N)
        with torch.no_grad(), capturing(model.module, model.inner, batch.row_N, batch.position_N) as seen:
            model.run_to_last_inner(batch)
        for name, u_NI in seen.u_NI.items():
            sums[name] += (u_NI.T @ u_NI).double().cpu()
    return Prior(moments={name: (total / num_tokens).float() for name, total in sums.items()}, num_tokens=num_tokens)


def _sequences(model: CausalModel, lines: Iterable[str]) -> Sequence[Encoded]:
    """Lines as sequences in which every token counts: the last position predicts a token that is never used."""
    found: list[Encoded] = []
    for line in lines:
        if len(found) == NUM_LINES:
            break
        if line.strip():
            ids = encode_prompt(model.tokenizer, line.strip())[:LINE_TOKENS]
            found.append(Encoded(prompt_ids=ids[:1], target_ids=(*ids[1:], ids[0])))
    return found
