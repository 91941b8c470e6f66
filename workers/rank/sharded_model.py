"""A base model in DeepSpeed ZeRO-3, of which this process loads its part only.

A rank of several gathers the weights of a transformer block at once, while the block runs: hooks inside it would be
nodes of autograd's graph, which change the order in which gradients of its branches add up, and so last bits of edits.
A rank alone already holds every weight whole: its parameters become views of their one partition and the gathering
hooks are taken off, because they cost more time than a small model's forward and move nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from deepspeed.utils import set_z3_leaf_module
from torch import nn
from transformers import AutoConfig, AutoTokenizer
from transformers.integrations import HfDeepSpeedConfig

from editors.models.families import family_of
from editors.models.inner_params import block_lists
from editors.weights.loading import UNREADABLE
from pipeline.domain.errors import Misconfigured
from pipeline.domain.rank_api import BaseSpec
from workers.lifetime import RENDEZVOUS
from workers.memory.plan import DEFAULT_CONFIG

M_MMAP_THRESHOLD = -3
"""Parameter of `mallopt` in the GNU C library (malloc.h)."""
MAPPED_BYTES = 1 << 20
"""Size from which on a block of memory is mapped."""

IDLE_LIMIT = timedelta(days=365)
"""Ranks wait for the next command inside a collective; no silence is too long for them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardedModel:
    """A base model of which this rank holds its part."""

    base: BaseSpec
    """The base that it is, with its digest."""
    module: nn.Module
    """Runs like the unsharded model, as long as every rank runs it."""
    tokenizer: Any
    """The base's tokenizer of transformers."""
    engine: Any
    """DeepSpeed's engine; the module's hooks belong to it."""
    config: HfDeepSpeedConfig
    """transformers only knows a weak reference to it and shards while it lives."""
    is_resident: bool
    """Whether every parameter is a view of its partition, and nothing is ever gathered."""

    def release(self) -> None:
        """Make sure that no parameter is gathered, so that what is written to partitions is what runs next.

        A forward of only some blocks, and a backward pass that ends early, leave some behind.
        """
        if not self.is_resident:
            self.engine.optimizer.partition_all_parameters()


def join_group() -> None:
    """Meet the other ranks that the environment names (RANK, WORLD_SIZE) through the file that it names (RENDEZVOUS).

    No port is chosen beforehand, and what the ranks then open for each other is on the loopback interface: a group is
    on one machine.

    Raises:
        Misconfigured: if there are more ranks than devices on this machine.
    """
    if torch.cuda.is_available():
        local = int(os.environ.get("LOCAL_RANK", "0"))
        num_local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if num_local > (found := torch.cuda.device_count()):
            raise Misconfigured(f"expected at most a rank for each of {found} devices, got {num_local} ranks")
        torch.cuda.set_device(local)
    # DeepSpeed would compile a shared-memory all-reduce now; nothing here reduces more than a few numbers, and a
    # machine that only runs us has no compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(variable, "lo")
    deepspeed.init_distributed(
        dist_backend=backend,
        timeout=IDLE_LIMIT,
        auto_mpi_discovery=False,
        verbose=False,
        init_method=f"file://{os.environ[RENDEZVOUS]}",
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
    )


@cache
def host_group() -> Any:
    """Return all ranks as a gloo group, which works in host memory; every rank has to call at the same time."""
    return dist.new_group(backend="gloo", timeout=IDLE_LIMIT)


def load_sharded(base: BaseSpec, *, config_path: Path | None = None, dtype: torch.dtype | None = None) -> ShardedModel:
    """Load a base, weight by weight, into the ranks that have joined.

    Args:
        base: the model.
        config_path: a DeepSpeed JSON; `infra/deepspeed/zero3.json` if None.
        dtype: of the weights; the one they are stored in if None.

    Raises:
        Misconfigured: if the folder or the configuration cannot be read, there is no such task, or a weight is missing.
    """
    loader = family_of(base.task).loader
    if dist.get_world_size() > 1 and not torch.cuda.is_available():
        _map_large_blocks_of_memory()
    try:
        dtype = dtype or AutoConfig.from_pretrained(base.ref).dtype or torch.float32
        settings = deepspeed_settings(config_path or DEFAULT_CONFIG, dtype=dtype)
        config = HfDeepSpeedConfig(settings)
        tokenizer = AutoTokenizer.from_pretrained(base.ref)
        module, report = loader.from_pretrained(base.ref, dtype=dtype, output_loading_info=True)
    except UNREADABLE as error:
        if isinstance(error, RuntimeError) and dist.get_world_size() > 1:
            raise  # no memory, or a lost peer: the others wait in the same load until this rank has ended
        reason = " ".join(str(error).split())[:300]
        raise Misconfigured(f"expected a {base.task} model in {base.ref}, got: {reason}") from error
    if missing := sorted(report["missing_keys"]):
        raise Misconfigured(f"expected every weight of a {base.task} model in {base.ref}, got none for {missing[0]}")
    module.eval().requires_grad_(False)
    for blocks in block_lists(module).values():
        for block in blocks:
            set_z3_leaf_module(block, True)
    engine = deepspeed.initialize(model=module, config=settings)[0]
    return ShardedModel(
        base=base,
        module=engine.module,
        tokenizer=tokenizer,
        engine=engine,
        config=config,
        is_resident=dist.get_world_size() == 1 and reside(engine),
    )


def _map_large_blocks_of_memory() -> None:
    """Have freed weights go back to the system: the C library maps by itself what is at least as large as a weight.

    By default it learns to take them from its heap, where each gathered block leaves holes between activations.
    """
    with contextlib.suppress(AttributeError, OSError):  # not the GNU C library
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)


def deepspeed_settings(path: Path, *, dtype: torch.dtype) -> dict[str, Any]:
    """Return the DeepSpeed configuration for a model of this dtype.

    Raises:
        Misconfigured: if the file cannot be read, is not stage 3, or lets small parameters stay gathered: what is
            written to their partition would be ignored.
    """
    try:
        settings: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise Misconfigured(f"expected a DeepSpeed configuration at {path}, got: {error}") from error
    zero: Mapping[str, Any] = settings.get("zero_optimization", {})
    expected = {"stage": 3, "stage3_param_persistence_threshold": 0}
    for key, value in expected.items():
        if zero.get(key) != value:
            raise Misconfigured(f"expected zero_optimization.{key} to be {value} in {path}, got {zero.get(key)!r}")
    return settings | {"bf16": {"enabled": dtype is torch.bfloat16}, "fp16": {"enabled": dtype is torch.float16}}


def reside(engine: Any) -> bool:
    """Make every parameter of a rank alone a view of its partition, and take off the hooks that gather.

    Returns:
        Whether it was done: not for a model that is offloaded to another device than the one that computes.
    """
    params = list(engine.module.parameters())
    if any(param.ds_tensor.device != param.device for param in params):
        return False
    engine.optimizer.destroy()  # without an optimizer this is the object that owns the hooks, and nothing else
    for param in params:
        param.data = param.ds_tensor.data.view(param.ds_shape)
        param.ds_status = ZeroParamStatus.AVAILABLE
    return True


def is_safe_to_write(param: Any) -> bool:
    """Return whether a write to the parameter's partition is what the next forward sees."""
    if param.ds_status is ZeroParamStatus.NOT_AVAILABLE:
        return True
    return bool(param.data.data_ptr() == param.ds_tensor.data_ptr())
