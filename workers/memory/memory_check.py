"""Check of a rank's memory before a base is loaded, by the figures of `plan`."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from editors.models.comm import Comm
from editors.models.inner_params import InnerParam
from pipeline.domain.rank_api import BaseSpec
from workers.memory.plan import Work, plan_memory

AMPLE = 8
"""A base is not planned where a rank's part of it fits in this many times: reading its shapes takes seconds."""
LEAST_WORK = Work(batch_size=1, num_edits=0, num_tokens=64)
"""Work that every rank must have memory for, whatever its settings; with the edits that are active."""


def require_memory(
    base: BaseSpec, inner_param_names: Sequence[str], *, config_path: Path | None, comm: Comm, num_edits: int = 0
) -> None:
    """Refuse a base that cannot fit, before any of it is loaded.

    Args:
        base: what is to be loaded.
        inner_param_names: what is to be edited; the architecture's default when empty.
        num_edits: active edits, whose ledger is to be held with it.
        config_path: a DeepSpeed JSON; the shipped one if None.
        comm: the ranks that will hold it together.

    Raises:
        Misconfigured: in one sentence with the plan's main figures.
    """
    has_accelerator = torch.cuda.is_available()
    host_bytes = _host_bytes()
    if host_bytes is None:
        return
    host_bytes //= int(os.environ.get("LOCAL_WORLD_SIZE", comm.num_ranks))
    memory_bytes = torch.cuda.mem_get_info()[0] if has_accelerator else host_bytes
    stored_bytes = sum(path.stat().st_size for path in Path(base.ref).glob("*.safetensors"))
    if stored_bytes // comm.num_ranks * AMPLE < min(memory_bytes, host_bytes):
        return
    plan = plan_memory(
        Path(base.ref),
        num_ranks=comm.num_ranks,
        task=base.task,
        inner_param_names=inner_param_names,
        config_path=config_path,
        has_accelerator=has_accelerator,
        work=replace(LEAST_WORK, num_edits=num_edits),
    )
    plan.require(memory_bytes, host_bytes=host_bytes)


def solve_device(params: Sequence[InnerParam], device: torch.device, comm: Comm) -> torch.device:
    """Return where the matrices of some inner parameters are added up and factored.

    It is the accelerator where they fit into half of what that has left beside the base: a forward and a candidate
    take from the other half. A plan counts them on the host, where they always may be. Several ranks solve on their
    accelerators if all of them can: the bits of a solve depend on where it is done. Every rank has to ask.

    Args:
        params: what this rank solves for; may be none where there are more ranks than inner parameters.
        device: where its model runs; of one kind on all ranks.
        comm: the ranks that hold the model together.
    """
    if device.type == "cpu":
        return device
    # Each A with its factor, both again while edits leave, and what is there while one is made: see `plan`.
    squares = [param.in_features**2 * torch.float64.itemsize for param in params]
    free_bytes = torch.cuda.mem_get_info(device)[0]
    fits = 2 * sum(squares) + 4 * max(squares, default=0) <= free_bytes // 2
    return device if all(comm.gathered(fits)) else torch.device("cpu")


def _host_bytes() -> int | None:
    """Return what this machine can still give without swapping; None where it does not say."""
    try:
        told = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", told, re.MULTILINE)
    return int(found[1]) * 1024 if found else None
