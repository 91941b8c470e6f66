"""MEND as published: `W <- W - alpha sum_j delta~_j u~_j^T` over every token of every edit, in one step.

It is the reference that other solvers are held against. It keeps no memory of earlier edits, and many edits at once
add their side effects up: on the base of this project 125 of them leave one in a hundred.

Legend: T tokens of all edits, I in_features, O out_features, N target tokens, B sequences, L padded length.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from editors.measure.scoring import Prepared, prepare
from editors.mend.transform import MendTransform
from editors.methods.base import EditJob, EditResult
from editors.methods.pairs import Pairs, read_pairs
from editors.models.families import EditableModel, InnerParam, TargetBatch
from editors.models.inner_params import stacks_of
from editors.solve.rows import EditRows, consecutive
from editors.weights.deltas import WeightDelta, WeightStore

NUM_LAST = 3
"""Blocks of a decoder whose MLPs are edited, as in the paper; of an encoder and a decoder it is what the stack says."""


class MendSumEditor:
    """An editor that adds up the rank-one updates of a trained MEND transform.

    Args:
        transform: trained for these weights.
    """

    keeps_ledger: ClassVar[bool] = False

    def __init__(self, transform: MendTransform) -> None:
        self._transform = transform

    @torch.no_grad()
    def edit(self, job: EditJob) -> EditResult:
        """Add up the rank-one updates of every token of the edits; an `Editor`.

        Raises:
            Misconfigured: if the transform was not trained for a weight.
        """
        job.require_additions("mend")
        began = time.perf_counter()
        model = job.model
        sequences = [model.encode_pair(edit.request.own_prompt, edit.request.target_new) for edit in job.added]
        pairs = token_pairs(model, prepare(model, sequences))
        captured = time.perf_counter()
        factors = {name: self._factors(name, pairs, model.device) for name in model.inner_param_names}
        rows = _rows(pairs, factors, job.weights, [edit.edit_id for edit in job.added])
        return EditResult(
            delta=WeightDelta.of(factors),
            rows=rows,
            removed_ids=(),
            num_passes=1,
            seconds={"capture": captured - began, "solve": time.perf_counter() - captured},
            jitter={},
        )

    def _factors(self, name: str, pairs: Pairs, device: torch.device) -> tuple[Tensor, Tensor]:
        self._transform.to(device)
        return update(self._transform, name, pairs.u_TI[name], pairs.delta_TO[name])


def update(transform: MendTransform, name: str, u_TI: Tensor, delta_TO: Tensor) -> tuple[Tensor, Tensor]:
    """Return the published update `S = F D` of one inner parameter: F (I x T) is u~ transposed, D is -alpha delta~."""
    edited_TI, edited_TO = transform.pseudo(name, u_TI, delta_TO)
    return edited_TI.T, -transform.rate(name) * edited_TO


def token_pairs(model: EditableModel, prepared: Prepared) -> Pairs:
    """Return inputs and output gradients at every token of the sequences; every rank has to ask.

    Args:
        model: as it is now; side branches that are entered count.
        prepared: the sequences, prompt and target.
    """
    return read_pairs(
        model, prepared, lambda batch: {param.name: every_token(model, batch, param) for param in model.inner}
    )


def every_token(model: EditableModel, batch: TargetBatch, param: InnerParam) -> tuple[Tensor, Tensor]:
    """Return rows and positions of every token that an inner layer sees, T each: to the last key of its sequence."""
    row_T, position_T = model.key_positions(batch, param, "answer")
    zero_B = torch.zeros(batch.num_rows, dtype=position_T.dtype, device=position_T.device)
    last_B = zero_B.scatter_reduce(0, row_T, position_T, "amax")
    position_L = torch.arange(int(last_B.max()) + 1, device=position_T.device)
    rows, positions = (position_L[None, :] <= last_B[:, None]).nonzero().unbind(dim=1)
    return rows, positions


def published_inner_params(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the weights that the paper edits: those of the MLPs of the last blocks."""
    names: list[str] = []
    for stack in stacks_of(module):
        depth = len(list(module.get_submodule(stack.blocks_name).children()))
        for block in range(max(depth - (stack.num_last or NUM_LAST), 0), depth):
            mlp = stack.pattern.format(i=block).rpartition(".")[0].rpartition(".")[0]
            names += _weights_in(module, mlp.replace(".output", ".intermediate")) if ".output" in mlp else []
            names += _weights_in(module, mlp)
    return tuple(names)


def _weights_in(module: nn.Module, folder: str) -> list[str]:
    children = module.get_submodule(folder).named_children()
    return [f"{folder}.{name}.weight" for name, child in children if isinstance(child, nn.Linear | Conv1D)]


def _rows(
    pairs: Pairs, factors: dict[str, tuple[Tensor, Tensor]], weights: WeightStore, edit_ids: Sequence[str]
) -> EditRows:
    """Return ledger rows that say what the weights come to at each token: a sum asks for nothing else."""
    keys = {name: u_TI.double().cpu() for name, u_TI in pairs.u_TI.items()}
    targets = {}
    for name, keys_TI in keys.items():
        left_IT, right_TO = (factor.double().cpu() for factor in factors[name])
        held_TO = keys_TI @ weights.shift(name).double().cpu()
        targets[name] = (held_TO + (keys_TI @ left_IT) @ right_TO).float()
    ranges = {name: consecutive(list(zip(edit_ids, pairs.lengths(name), strict=True))) for name in keys}
    return EditRows(keys={name: key.float() for name, key in keys.items()}, targets=targets, ranges=ranges)
