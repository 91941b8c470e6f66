"""MEND's gradient transform (Mitchell et al., ICLR 2022, section 3): from a rank-one pair to an edited one.

With `z` the normalised pair (u, delta) of a token and `m` the inner parameter:

    h = z + max(0, s1_m * (U1 V1 z + b1) + o1_m)
    g = h + max(0, s2_m * (U2 V2 h + b2) + o2_m)         (u~, delta~) = g
    W_m <- W_m - alpha_m * sum_j delta~_j u~_j^T

Inner parameters of one shape share a network; s, o and alpha are their own. U = b = o = 0 and s = 1 at the start, so
that the network begins as the identity. We part from the published code in three places: alpha is the exponential of
what is learned, so that the update cannot take the wrong sign; the statistics are in the checkpoint; and the maximum is
a clamp, whose gradient at 0 is 1, where that of torch's relu is 0 and U would never leave its zeros.

Legend: T tokens (edit rows), I in_features, O out_features, D = I + O, R rank, M inner parameters of one shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from editors.mend.running_moments import RunningMoments
from editors.models.inner_params import InnerParam
from pipeline.domain.errors import EditorFailed, Misconfigured

Shape = tuple[int, int]
"""(in_features, out_features)."""
Statistics = Literal["shape", "param", "token"]
"""What pairs are normalised by: what was seen in all inner parameters of a shape (as published), in their own, or u by
what was seen in its own and delta by its own length. The last makes an untrained network a step down the gradient, and
is for several passes: what a token asks for is scaled by the probability that it misses."""
MARGIN = 0.1
"""What a token is aimed at beyond `stop_probability`, so that it gets there in finitely many passes."""


def shapes_of(params: Sequence[InnerParam]) -> dict[str, Shape]:
    """Return (in_features, out_features) by inner parameter, in order."""
    return {param.name: (param.in_features, param.out_features) for param in params}


class MendLayer(nn.Module):
    """One layer, `z + max(0, s_m * (U V z + b) + o_m)`, with U at zero so that it begins as the identity."""

    def __init__(self, width: int, *, rank: int, num_params: int, generator: torch.Generator) -> None:
        super().__init__()
        self.left_DR = nn.Parameter(torch.zeros(width, rank))
        self.right_RD = nn.Parameter(nn.init.xavier_uniform_(torch.empty(rank, width), generator=generator))
        self.bias_D = nn.Parameter(torch.zeros(width))
        self.scale_MD = nn.Parameter(torch.ones(num_params, width))
        self.offset_MD = nn.Parameter(torch.zeros(num_params, width))

    def forward(self, rows_TD: Tensor, member: int) -> Tensor:
        """Return the rows (T x D) of the inner parameter that is `member` of its shape, transformed."""
        low_TD = (rows_TD @ self.right_RD.T) @ self.left_DR.T + self.bias_D
        return rows_TD + (self.scale_MD[member] * low_TD + self.offset_MD[member]).clamp(min=0)


class ShapeNetwork(nn.Module):
    """The network of all inner parameters of one shape, with its statistics."""

    def __init__(
        self, shape: Shape, *, rank: int, num_params: int, statistics: Statistics, generator: torch.Generator
    ) -> None:
        super().__init__()
        width = sum(shape)
        self._in_features = shape[0]
        self._by_token = statistics == "token"
        self.moments = RunningMoments(width, 1 if statistics == "shape" else num_params)
        self.first = MendLayer(width, rank=rank, num_params=num_params, generator=generator)
        self.second = MendLayer(width, rank=rank, num_params=num_params, generator=generator)

    def forward(self, rows_TD: Tensor, member: int) -> Tensor:
        """Return raw pairs (T x D) of one inner parameter, normalised and transformed."""
        edited: Tensor = self.second(self.first(self._normalised(rows_TD, member), member), member)
        return edited

    def observe(self, rows_TD: Tensor, member: int) -> None:
        """Take raw pairs into the statistics."""
        self.moments.observe(rows_TD, self._kind(member))

    def _normalised(self, rows_TD: Tensor, member: int) -> Tensor:
        known_TD = self.moments.normalised(rows_TD, self._kind(member))
        if not self._by_token:
            return known_TD
        delta_TO = rows_TD[:, self._in_features :]
        length_T1 = delta_TO.norm(dim=1, keepdim=True).clamp(min=1e-30)
        return torch.cat([known_TD[:, : self._in_features], delta_TO * (delta_TO.shape[1] ** 0.5 / length_T1)], dim=1)

    def _kind(self, member: int) -> int:
        return member if len(self.moments.num_seen_S) > 1 else 0


class MendTransform(nn.Module):
    """MEND's transform of every inner parameter; called, it is a `Transform` (see `editors.methods.steps`).

    Args:
        shapes: inner parameter -> (in_features, out_features), in order; see `shapes_of`.
        rank: R of both layers.
        statistics: by what rows are normalised.
        stop_probability: target probability from which a token asks for nothing when called as a `Transform`.
        seed: of the initial V.
    """

    def __init__(
        self,
        shapes: Mapping[str, Shape],
        *,
        rank: int,
        statistics: Statistics = "shape",
        stop_probability: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not shapes or rank < 1:
            raise Misconfigured(f"expected inner parameters and a rank above 0, got {len(shapes)} and {rank}")
        self.shapes, self.rank, self.statistics = dict(shapes), rank, statistics
        self.stop_probability = stop_probability
        self.names = tuple(shapes)
        self._skipped = torch.zeros((), dtype=torch.int64)
        generator = torch.Generator().manual_seed(seed)
        self.networks = nn.ModuleDict(
            {
                _key(shape): ShapeNetwork(
                    shape, rank=rank, num_params=len(names), statistics=statistics, generator=generator
                )
                for shape, names in _members(self.shapes).items()
            }
        )
        self.log_rate_M = nn.Parameter(torch.zeros(len(shapes)))

    @property
    def num_skipped(self) -> int:
        """Rows so far whose update would have moved their own key's output up the gradient (k . u~ <= 0)."""
        return int(self._skipped)

    def rate(self, name: str) -> Tensor:
        """Return alpha of an inner parameter, with gradient."""
        return self.log_rate_M[self.names.index(name)].exp()

    def observe(self, name: str, u_TI: Tensor, delta_TO: Tensor) -> None:
        """Take raw pairs into the running statistics; pairs whose update is zero are none."""
        rows_TD = _paired(u_TI, delta_TO)
        self._network(name).observe(rows_TD[_is_pair(u_TI, delta_TO)], self._member(name))

    def pseudo(self, name: str, u_TI: Tensor, delta_TO: Tensor) -> tuple[Tensor, Tensor]:
        """Return the edited pairs u~ (T x I) and delta~ (T x O), fp32; zeros where the raw pair's update is zero."""
        edited_TD: Tensor = self._network(name)(_paired(u_TI, delta_TO), self._member(name))
        edited_TD = edited_TD * _is_pair(u_TI, delta_TO)[:, None]
        return edited_TD[:, : u_TI.shape[1]], edited_TD[:, u_TI.shape[1] :]

    def shift(self, name: str, u_TI: Tensor, delta_TO: Tensor) -> Tensor:
        """Return what each token's own update does at its own key: `-alpha (k . u~) delta~`, T x O.

        Rows with `k . u~ <= 0` are zero and counted in `num_skipped`.
        """
        reach_T, edited_TO = self._reach(name, u_TI, delta_TO)
        return -self.rate(name) * reach_T[:, None] * edited_TO

    @torch.no_grad()
    def forward(self, *, name: str, u_TI: Tensor, delta_TO: Tensor, probability_T: Tensor) -> Tensor:
        """Return the shift of each row, T x O, without gradient; none where its token is probable enough."""
        return self.deficit(probability_T)[:, None] * self.shift(name, u_TI, delta_TO)

    def deficit(self, probability_T: Tensor) -> Tensor:
        """Return what each token's shift is scaled by, T.

        It is 0 from `stop_probability` on; below, it is 1, or with statistics by token what the probability falls
        short of.
        """
        is_reached_T = probability_T >= self.stop_probability
        if self.statistics != "token":
            return (~is_reached_T).float()
        return (self.stop_probability + MARGIN - probability_T).masked_fill(is_reached_T, 0.0)

    @torch.no_grad()
    def initial_rates(self, u_TI: Mapping[str, Tensor], delta_TO: Mapping[str, Tensor], *, step: float) -> None:
        """Set each alpha so that the mean norm of the shifts of these pairs is `step` mean key norms.

        Raises:
            EditorFailed: if a parameter's pairs ask for nothing.
        """
        skipped = self._skipped
        for place, name in enumerate(self.names):
            reach_T, edited_TO = self._reach(name, u_TI[name], delta_TO[name])
            asked = float((reach_T[:, None] * edited_TO).double().norm(dim=1).mean())
            wanted = step * float(u_TI[name].double().norm(dim=1).mean())
            if not 0 < asked < float("inf") or wanted <= 0:
                raise EditorFailed(f"expected pairs of {name} that ask for something, got a mean shift of {asked}")
            self.log_rate_M[place] = torch.tensor(wanted / asked, dtype=torch.float64).log()
        self._skipped = skipped

    def _reach(self, name: str, u_TI: Tensor, delta_TO: Tensor) -> tuple[Tensor, Tensor]:
        """`max(k . u~, 0)` and delta~ of each row; counts the rows that are skipped."""
        edited_TI, edited_TO = self.pseudo(name, u_TI, delta_TO)
        reach_T = (u_TI.float() * edited_TI).sum(dim=1)
        # Counted where the rows are: to ask for the number would be to wait for an accelerator.
        self._skipped = self._skipped.to(reach_T.device) + ((reach_T <= 0) & _is_pair(u_TI, delta_TO)).sum()
        return reach_T.clamp(min=0), edited_TO

    def _network(self, name: str) -> ShapeNetwork:
        if name not in self.shapes:
            raise Misconfigured(f"expected an inner parameter of the transform, got {name!r}")
        network = self.networks[_key(self.shapes[name])]
        assert isinstance(network, ShapeNetwork)
        return network

    def _member(self, name: str) -> int:
        return _members(self.shapes)[self.shapes[name]].index(name)


def _members(shapes: Mapping[str, Shape]) -> dict[Shape, list[str]]:
    """The inner parameters of each distinct shape, in order."""
    members: dict[Shape, list[str]] = {}
    for name, shape in shapes.items():
        members.setdefault(shape, []).append(name)
    return members


def _key(shape: Shape) -> str:
    return f"{shape[0]}x{shape[1]}"


def _paired(u_TI: Tensor, delta_TO: Tensor) -> Tensor:
    return torch.cat([u_TI.detach().float(), delta_TO.detach().float()], dim=1)


def _is_pair(u_TI: Tensor, delta_TO: Tensor) -> Tensor:
    return (u_TI != 0).any(dim=1) & (delta_TO != 0).any(dim=1)
