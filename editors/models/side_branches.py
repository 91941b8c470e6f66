"""Knows how each sequence of a batch can go through a model of its own edit. Writes no weight.

Legend: B sequences, L padded length, I in_features, O out_features, T tokens of an edit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from editors.models.hooks import Branch


@contextmanager
def branch_of_each(model: nn.Module, branches: Mapping[str, Branch]) -> Iterator[None]:
    """Let inner layers give `y_b + (x_b F_b) D_b` to sequence b, by parameter name; F is B x I x T, D is B x T x O."""

    def add(factor_BIT: Tensor, change_BTO: Tensor) -> Any:
        def hook(_layer: nn.Module, arguments: tuple[Tensor, ...], out_BLO: Tensor) -> Tensor:
            return out_BLO + ((arguments[0].float() @ factor_BIT) @ change_BTO).to(out_BLO.dtype)

        return hook

    with ExitStack() as hooks:
        for name, (factor_BIT, change_BTO) in branches.items():
            layer = model.get_submodule(name.rpartition(".")[0])
            hooks.callback(layer.register_forward_hook(add(factor_BIT, change_BTO)).remove)
        yield
