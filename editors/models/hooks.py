"""Hooks on the edited layers: read what goes through them, or add to what they give.

    with side_branch(model.module, candidate), capturing(model.module, places) as seen:
        loss = loss_of(model.target_logits(batch))
        delta_of = seen.deltas(loss)  # the gradient at each layer's output

Hooks work on whole weights and on those that ZeRO-3 partitions. No weight gets a gradient, and every hook is removed
when its block is left. `editors.methods.pairs` reads the loss that every editor uses.

Legend: B sequences, L padded length, T chosen tokens, I in_features, O out_features, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Branch = tuple[Tensor, Tensor]
"""F and D, which add `(x F) D` to a layer's output: I x R and R x O, or B x I x R and B x R x O with one for each
sequence of a batch."""
Addition = Branch | Callable[[Tensor], Tensor]
"""What is added to a layer's output: a branch, or a function of the layer's input (B x L x I, fp32) that gives it
(B x L x O, fp32)."""
Places = tuple[Tensor, Tensor]
"""Rows of a batch and positions in them, T each."""


@dataclass(kw_only=True, slots=True)
class Capture:
    """What the forward under `capturing` has left, by inner parameter."""

    u_TI: dict[str, Tensor] = field(default_factory=dict)
    """Inputs of the layer at its chosen tokens, fp32, without gradient."""
    zeros_TO: dict[str, Tensor] = field(default_factory=dict)
    """Zeros that were added to the layer's outputs there. The loss's gradient by them is the gradient at the output."""

    def deltas(self, loss: Tensor) -> dict[str, Tensor]:
        """Return the gradient of a scalar loss at each layer's output, T x O, fp32; frees the graph."""
        gradients = torch.autograd.grad(loss, list(self.zeros_TO.values()))
        return {name: gradient.float() for name, gradient in zip(self.zeros_TO, gradients, strict=True)}


@contextmanager
def capturing(module: nn.Module, places: Mapping[str, Places]) -> Iterator[Capture]:
    """Read the inputs of layers, and make their outputs ready for `Capture.deltas`, in the next forward.

    Args:
        module: the model.
        places: inner parameter -> the tokens to read in its layer.
    """
    capture = Capture()

    def watch(name: str, row_T: Tensor, position_T: Tensor) -> Any:
        def hook(_layer: nn.Module, arguments: tuple[Tensor, ...], out_BLO: Tensor) -> Tensor:
            capture.u_TI[name] = arguments[0][row_T, position_T].detach().float()
            # The weights want no gradient, so the graph begins here: at the first edited layer, not at the embeddings.
            zeros_TO = out_BLO.new_zeros((len(row_T), out_BLO.shape[-1]), requires_grad=True)
            capture.zeros_TO[name] = zeros_TO
            return out_BLO.index_put((row_T, position_T), zeros_TO, accumulate=True)

        return hook

    with ExitStack() as hooks:
        for name, (row_T, position_T) in places.items():
            _hook_layer(hooks, module, name, watch(name, row_T, position_T))
        yield capture


@contextmanager
def side_branch(module: nn.Module, branches: Mapping[str, Addition]) -> Iterator[None]:
    """Let layers give `y + (x F) D`, which is what the weights `W + F D` would give; no weight is written.

    A function in the place of F and D may add what no weights would.

    Hooks run in the order in which they were entered: enter this one before `capturing`, so that the zeros are added
    to what the branch gives.

    Args:
        module: the model.
        branches: inner parameter -> F and D, the same for all sequences or one for each; or a function.
    """

    def add(addition: Addition) -> Any:
        def hook(_layer: nn.Module, arguments: tuple[Tensor, ...], out_BLO: Tensor) -> Tensor:
            # In fp32 whatever the model computes in: a change is orders of magnitude smaller than the output.
            with torch.autocast(out_BLO.device.type, enabled=False):
                x_BLI = arguments[0].float()
                if callable(addition):
                    return out_BLO + addition(x_BLI).to(out_BLO.dtype)
                left, right = addition
                return out_BLO + ((x_BLI @ left) @ right).to(out_BLO.dtype)

        return hook

    with ExitStack() as hooks:
        for name, addition in branches.items():
            _hook_layer(hooks, module, name, add(addition))
        yield


def _hook_layer(hooks: ExitStack, module: nn.Module, name: str, hook: Any) -> None:
    """Put a forward hook on the layer that owns a weight, until the stack is left."""
    layer = module.get_submodule(name.rpartition(".")[0])
    hooks.callback(layer.register_forward_hook(hook).remove)
