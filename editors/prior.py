"""Knows the second moments of an inner layer's keys over plain text: what edits should leave alone. Knows no edit.

Legend: I in_features, T keys in the batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from editors.capture import capturing
from editors.deltas import read_tensors, write_tensors
from editors.families import EditableModel
from editors.prompts import Encoded, TargetBatch
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
    """Over how many tokens the mean was taken; the most of any inner parameter."""

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


def measure_prior(model: EditableModel, lines: Iterable[str]) -> Prior:
    """Second moments of the keys at every token of the first lines of a text, summed in fp64.

    An encoder reads lines whole or their first halves; a decoder of its own goes on with the second.

    Raises:
        Misconfigured: if there is no line to read.
    """
    sequences = _sequences(model, lines)
    if not sequences:
        raise Misconfigured("expected at least one line of text for the prior, got none")
    sums = {p.name: torch.zeros(p.in_features, p.in_features, dtype=torch.float64) for p in model.inner}
    num_tokens = dict.fromkeys(sums, 0)
    for _, batch in model.chunked(sequences):
        for name, u_TI in _keys(model, batch).items():
            num_tokens[name] += len(u_TI)
            sums[name] += (u_TI.T @ u_TI).double().cpu()
    moments = {name: (total / num_tokens[name]).float() for name, total in sums.items()}
    return Prior(moments=moments, num_tokens=max(num_tokens.values()))


def _keys(model: EditableModel, batch: TargetBatch) -> dict[str, Tensor]:
    """Keys of each inner parameter at every token that its layer sees, T x I, fp32."""
    with torch.no_grad(), ExitStack() as hooks:
        seen = [
            hooks.enter_context(capturing(model.module, [param], *model.key_positions(batch, param, "answer")))
            for param in model.inner
        ]
        model.run_to_last_inner(batch)
    return {name: u_TI for capture in seen for name, u_TI in capture.u_NI.items()}


def _sequences(model: EditableModel, lines: Iterable[str]) -> Sequence[Encoded]:
    found: list[Encoded] = []
    for line in lines:
        if len(found) == NUM_LINES:
            break
        if line.strip():
            found.append(model.encode_text(line.strip(), max_tokens=LINE_TOKENS))
    return found
