"""How many tokens a device runs at once: the one place where an accelerator's batches become larger than a CPU's.

All bounds on tokens and prompts in `editors` are those of a CPU, where a batch hardly gets cheaper by being larger. An
accelerator waits for its orders unless a batch is large, so `EditableModel` multiplies them there.

fp32 stays fp32: nobody turns TF32 on, so figures differ from a CPU's by rounding only.
"""

from __future__ import annotations

import re

import torch
from torch import nn

from pipeline.domain.errors import Misconfigured

MOST = 8
"""Most times that a bound of a CPU is taken: the arithmetic of a small model fills an accelerator from there on."""
MODELS_EACH = 4
"""Sizes of the model that must be free for each time: what the blocks keep for a backward grows with the model."""


def times_more(module: nn.Module) -> int:
    """Return how many times as many tokens as on a CPU run at once where a model lies; 1 on a CPU.

    On CUDA it is what the device's memory has room for beside the model, between 1 and `MOST`.
    """
    parameters = list(module.parameters())
    device = parameters[0].device
    if device.type != "cuda":
        return 1
    # A parameter that ZeRO-3 partitions has no numbers of its own, but tells how many there are.
    held = sum(getattr(one, "ds_numel", one.numel()) * one.element_size() for one in parameters)
    free = torch.cuda.get_device_properties(device).total_memory - held
    return max(1, min(MOST, free // (MODELS_EACH * held)))


def found_device(name: str) -> torch.device:
    """Return the device of a name such as `cpu`, `cuda` or `cuda:1`.

    Raises:
        Misconfigured: if it is no such name, or this machine has no such device.
    """
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,3})?", name):
        raise Misconfigured(f"expected a device that models run on, cpu, cuda or cuda:0, got {name!r:.80}")
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise Misconfigured(f"expected a device that is here, such as cpu or cuda:0, got {name!r}: {reason}") from error
