"""Knows how to read what goes into and comes back to the edited layers, and how to add to what they give.

Does not know what the readings are for. All of it is hooks: it works on whole and on ZeRO-3-partitioned weights, no
weight gets a gradient, and the backward pass ends at the first edited layer.

Legend: B sequences, L padded length, N target tokens in the batch, I in_features, O out_features, R rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from editors.models.inner_params import InnerParam

Branch = tuple[Tensor, Tensor]
"""F (I x R) and D (R x O): `x -> (x F) D`."""
Places = tuple[Tensor, Tensor]
"""Rows and positions, N each."""


@dataclass(kw_only=True, slots=True)
class Capture:
    """What one forward under `capturing` left."""

    u_NI: dict[str, Tensor] = field(default_factory=dict)
    """Inputs of each inner parameter's layer at the chosen positions, fp32."""
    probes: dict[str, Tensor] = field(default_factory=dict)
    """Zeros that were added to its outputs there; the loss's gradient by them is delta."""

    def deltas(self, loss: Tensor) -> dict[str, Tensor]:
        """The gradient of the loss at each layer's outputs, N x O, fp32."""
        gradients = torch.autograd.grad(loss, list(self.probes.values()))
        return {name: gradient.float() for name, gradient in zip(self.probes, gradients, strict=True)}


@contextmanager
def capturing(model: nn.Module, params: Sequence[InnerParam], row_N: Tensor, position_N: Tensor) -> Iterator[Capture]:
    """Read inputs and output gradients of the inner layers at chosen positions of the next forward."""
    with capturing_at(model, [(param, (row_N, position_N)) for param in params]) as capture:
        yield capture


@contextmanager
def capturing_at(model: nn.Module, places: Iterable[tuple[InnerParam, Places]]) -> Iterator[Capture]:
    """As `capturing`, with rows and positions of each inner layer's own."""
    capture = Capture()

    def watch(param: InnerParam, row_N: Tensor, position_N: Tensor) -> Any:
        def hook(_layer: nn.Module, arguments: tuple[Tensor, ...], out_BLO: Tensor) -> Tensor:
            capture.u_NI[param.name] = arguments[0][row_N, position_N].detach().float()
            probe_NO = out_BLO.new_zeros((len(row_N), out_BLO.shape[-1]), requires_grad=True)
            capture.probes[param.name] = probe_NO
            return out_BLO.index_put((row_N, position_N), probe_NO, accumulate=True)

        return hook

    with ExitStack() as hooks:
        for param, (row_N, position_N) in places:
            handle = model.get_submodule(param.module_name).register_forward_hook(watch(param, row_N, position_N))
            hooks.callback(handle.remove)
        yield capture


@contextmanager
def side_branch(model: nn.Module, branches: Mapping[str, Branch]) -> Iterator[None]:
    """Let inner layers give `y + (x F) D`, by parameter name; the weights are not written.

    Enter it before `capturing`, so that the probes come after what it adds.
    """

    def add(factor_IR: Tensor, change_RO: Tensor) -> Any:
        def hook(_layer: nn.Module, arguments: tuple[Tensor, ...], out_BLO: Tensor) -> Tensor:
            return out_BLO + ((arguments[0].float() @ factor_IR) @ change_RO).to(out_BLO.dtype)

        return hook

    with ExitStack() as hooks:
        for name, (factor_IR, change_RO) in branches.items():
            layer = model.get_submodule(name.rpartition(".")[0])
            hooks.callback(layer.register_forward_hook(add(factor_IR, change_RO)).remove)
        yield
