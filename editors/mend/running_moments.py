"""Mean and biased standard deviation of the rows seen so far, kept in a checkpoint.

Batches are merged by the formula of Chan, Golub and LeVeque; sums are fp64.

Legend: T rows of a batch, D width, S separate statistics.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.domain.errors import EditorFailed

EPSILON = 1e-7
"""Added to a standard deviation before dividing by it, as in MEND."""


class RunningMoments(nn.Module):
    """Mean and spread of rows, in buffers that travel with the checkpoint.

    Args:
        width: D.
        num_statistics: S, how many kinds of rows are told apart.
    """

    num_seen_S: Tensor
    mean_SD: Tensor
    squares_SD: Tensor

    def __init__(self, width: int, num_statistics: int = 1) -> None:
        super().__init__()
        self.register_buffer("num_seen_S", torch.zeros(num_statistics, dtype=torch.int64))
        self.register_buffer("mean_SD", torch.zeros(num_statistics, width, dtype=torch.float64))
        self.register_buffer("squares_SD", torch.zeros(num_statistics, width, dtype=torch.float64))

    @torch.no_grad()
    def observe(self, rows_TD: Tensor, kind: int = 0) -> None:
        """Take a batch of rows in, all of it or nothing.

        Raises:
            EditorFailed: if a row is not finite: left out, nobody would learn that the statistics lack it.
        """
        is_finite_T = torch.isfinite(rows_TD).all(dim=1)
        if not bool(is_finite_T.all()):
            raise EditorFailed(
                f"expected finite rows for the running statistics, got {int((~is_finite_T).sum())} of {len(rows_TD)} "
                "that are not"
            )
        rows_TD = rows_TD.double()
        added, seen = len(rows_TD), int(self.num_seen_S[kind])
        if not added:
            return
        mean_D = rows_TD.mean(dim=0)
        # Chan et al.: the squares of both batches about their own means, and what the distance of the means adds.
        step_D = mean_D - self.mean_SD[kind]
        self.squares_SD[kind] += (rows_TD - mean_D).square().sum(dim=0)
        self.squares_SD[kind] += step_D.square() * (seen * added / (seen + added))
        self.mean_SD[kind] += step_D * (added / (seen + added))
        self.num_seen_S[kind] += added

    def std(self, kind: int = 0) -> Tensor:
        """Return the biased standard deviation, D, fp64; ones while there are not two rows to tell it from."""
        seen = self.num_seen_S[kind]
        std_D = (self.squares_SD[kind] / seen.clamp(min=1)).sqrt()
        return torch.where(seen > 1, std_D, torch.ones_like(std_D))

    def normalised(self, rows_TD: Tensor, kind: int = 0) -> Tensor:
        """Return `(x - mean) / (std + 1e-7)`, T x D, in the dtype of the rows; the rows themselves below two seen.

        Nothing is fetched from an accelerator for it.
        """
        mean_D, std_D = self.mean_SD[kind].to(rows_TD.dtype), self.std(kind).to(rows_TD.dtype)
        return torch.where(self.num_seen_S[kind] < 2, rows_TD, (rows_TD - mean_D) / (std_D + EPSILON))
