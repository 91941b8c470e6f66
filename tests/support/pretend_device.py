"""A second device that is only pretended: a test on a CPU sees whether code would mix devices on an accelerator.

    with PretendDevice() as device:
        run_everything("cuda:0")
    device.fetched

All numbers stay on the CPU. Each tensor's memory is marked with the device that it claims to be on; what is made from
tensors of a device is on it; and an operation on tensors of two devices fails as CUDA makes it fail.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any, Self

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
FETCHES = ("aten._local_scalar_dense", "aten.nonzero", "aten.is_nonzero", "aten.equal")
"""Operations after which a program waits for the device."""
MAY_MIX = ("aten.copy_", "aten._to_copy", "aten.index", "aten.index_put", "aten.index_put_", "aten._index_put_impl_")
"""Operations that take tensors of several devices; indices may lie on the CPU."""
MEMORY = {"reset_peak_memory_stats": None, "max_memory_allocated": 2**20, "memory_allocated": 2**19, "device_count": 1}


class PretendDevice:
    """A CUDA device that a test pretends to have, as a context; see above.

    Args:
        num_bytes: the memory that it says it has.

    Attributes:
        fetched: how often each operation made the program wait for the device.
    """

    def __init__(self, num_bytes: int = 80 * 2**30) -> None:
        self._num_bytes = num_bytes
        self._marked: dict[int, tuple[StorageWeakRef, torch.device]] = {}
        self._open = ExitStack()
        self.fetched: Counter[str] = Counter()

    def __enter__(self) -> Self:
        """Pretend from now on."""
        patch = self._open.enter_context(pytest.MonkeyPatch.context())
        properties = type("Properties", (), {"total_memory": self._num_bytes})()
        patch.setattr(torch.cuda, "get_device_properties", lambda _device: properties)
        for name, value in MEMORY.items():
            patch.setattr(torch.cuda, name, lambda *_arguments, value=value: value)
        patch.setattr(torch, "Generator", _Generator)
        self._open.enter_context(_Checks(self))
        self._open.enter_context(_Calls(self))
        return self

    def __exit__(self, *problem: object) -> None:
        """Pretend no more."""
        self._open.close()

    def of(self, tensor: Tensor) -> torch.device:
        """Return the device that a tensor claims to be on."""
        if tensor.is_meta:  # a model that is being loaded
            return torch.device("meta")
        found = self._marked.get(tensor.untyped_storage()._cdata)
        return CPU if found is None or found[0].expired() else found[1]

    def is_marked(self, tensor: Tensor) -> bool:
        """Return whether it is known where a tensor's memory is."""
        found = self._marked.get(tensor.untyped_storage()._cdata)
        return found is not None and not found[0].expired()

    def mark(self, tensor: Tensor, device: torch.device) -> None:
        """Let a tensor's memory claim to be on a device."""
        storage = tensor.untyped_storage()
        # The weak reference keeps the address from being given to other memory.
        self._marked[storage._cdata] = StorageWeakRef(storage), device


class _Generator(torch.Generator):
    """Draws on the CPU, whatever device is asked for."""

    def __new__(cls, device: Any = None) -> Self:
        return super().__new__(cls)


class _Checks(TorchDispatchMode):
    """Sees every operation, those of a backward too: checks its inputs and marks its outputs."""

    def __init__(self, device: PretendDevice) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and see to the devices."""
        given = list(_tensors((args, kwargs or {})))
        name = str(func).rpartition(".")[0]
        places = {self._device.of(one) for one in given if one.dim()} or {self._device.of(one) for one in given}
        if len(places) > 1 and name not in MAY_MIX:
            raise RuntimeError(f"{name}: expected all tensors on the same device, got {sorted(map(str, places))}")
        place = self._device.of(given[0]) if name in MAY_MIX and given else next(iter(places), CPU)
        if CUDA in places and name in FETCHES:
            self._device.fetched[name] += 1
        found = func(*args, **(kwargs or {}))
        for one in _tensors(found) if given else ():
            if not self._device.is_marked(one):
                self._device.mark(one, place)
        return found


class _Calls(TorchFunctionMode):
    """Sees what a program asks of torch: answers which device a tensor is on, and moves and makes tensors."""

    def __init__(self, device: PretendDevice) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a call with the CPU in the place of the device."""
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name == "__get__" and getattr(func, "__self__", None) is torch.Tensor.device:
            return self._device.of(args[0])
        if name == "numpy" and self._device.of(args[0]) == CUDA:
            raise TypeError("expected a tensor on the CPU for numpy, got one on cuda:0")
        if name == "cpu":
            return self._moved(args[0], CPU, func(*args, **kwargs))
        if name == "tolist" and self._device.of(args[0]) == CUDA:
            self._device.fetched[name] += 1
        wanted, args, kwargs = _without_device(func, args, kwargs)
        if name in ("to", "type_as") and len(args) > 1 and isinstance(args[1], Tensor):
            wanted = self._device.of(args[1])
        found = func(*args, **kwargs)
        if name in ("to", "type_as"):
            return found if wanted is None else self._moved(args[0], wanted, found)
        if wanted is not None:
            for one in _tensors(found):
                self._device.mark(one, wanted)
        return found

    def _moved(self, tensor: Tensor, wanted: torch.device, found: Tensor) -> Tensor:
        """Return a copy on the device that is wanted; what is there already is returned as it is."""
        held = self._device.of(tensor)
        if held == wanted:
            return found
        if held == CUDA:
            self._device.fetched["cpu"] += 1
        copy: Tensor = found.clone() if found.untyped_storage()._cdata == tensor.untyped_storage()._cdata else found
        self._device.mark(copy, wanted)
        return copy


def _without_device(func: Any, args: Any, kwargs: Mapping[str, Any]) -> tuple[torch.device | None, Any, dict[str, Any]]:
    """Return the device that a call names, and its arguments with the CPU instead."""
    wanted: torch.device | None = None

    def plain(value: Any) -> Any:
        nonlocal wanted
        is_device = isinstance(value, torch.device) or (isinstance(value, str) and value in ("cpu", "cuda", "cuda:0"))
        if is_device and torch.device(value).type != "meta":
            wanted = CUDA if torch.device(value).type == "cuda" else CPU
            return CPU
        return value

    is_move = getattr(func, "__name__", "") == "to"
    args = tuple(map(plain, args)) if is_move else args
    kwargs = {name: plain(value) if name == "device" else value for name, value in kwargs.items()}
    return wanted, args, kwargs


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))
