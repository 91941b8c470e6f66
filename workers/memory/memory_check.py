"""Refuses a base for which a rank's memory cannot suffice, before any of it is loaded. The arithmetic is `plan`'s."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from editors.models.comm import Comm
from pipeline.domain.rank_api import BaseSpec
from workers.memory.plan import Work, plan_memory

AMPLE = 8
"""A base is not planned for where a rank's part of it fits in so many times: reading shapes takes seconds."""
LEAST_WORK = Work(batch_size=1, num_edits=0, num_tokens=64)
"""What every rank has to have room for."""


def require_memory(base: BaseSpec, inner_param_names: Sequence[str], *, config_path: Path | None, comm: Comm) -> None:
    """Nothing, where a base fits.

    Args:
        base: what is to be loaded.
        inner_param_names: what is to be edited; the architecture's default when empty.
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
        work=LEAST_WORK,
    )
    plan.require(memory_bytes, host_bytes=host_bytes)


def _host_bytes() -> int | None:
    """What this machine can still give without swapping; None where it does not say."""
    try:
        told = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", told, re.MULTILINE)
    return int(found[1]) * 1024 if found else None
