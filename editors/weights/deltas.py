"""A change of weights as low-rank factors, its file, and edited weights as a base plus an fp32 accumulator.

    weights = PlainWeights(model.module, model.inner)
    weights.apply(WeightDelta.load(path, digest))

`S` (I x O) is the shift of a weight in row form, `y = x W + x S`. So the weight of a Conv1D (I x O) becomes `W + S`,
and that of a Linear (O x I) becomes `W + S^T`. Weights that ZeRO-3 partitions are `workers.rank.sharded_weights`.

Legend: I in_features, O out_features, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from editors.models.inner_params import InnerParam
from editors.weights.tensor_files import read_tensors, write_tensors
from pipeline.domain.errors import EditorFailed


def factors_of(change_IO: Tensor) -> tuple[Tensor, Tensor]:
    """Return a change of full rank as factors, exactly: itself and the identity on its narrower side."""
    num_in, num_out = change_IO.shape
    eye = torch.eye(min(num_in, num_out), dtype=change_IO.dtype, device=change_IO.device)
    return (eye, change_IO) if num_in < num_out else (change_IO, eye)


def narrowed(left_IR: Tensor, right_RO: Tensor) -> tuple[Tensor, Tensor]:
    """Return factors of the same change, of no more columns than a change of full rank has."""
    if left_IR.shape[1] <= min(left_IR.shape[0], right_RO.shape[1]):
        return left_IR, right_RO
    return factors_of(left_IR @ right_RO)


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightDelta:
    """The change `S = F D` of each inner parameter, fp32."""

    factors: dict[str, tuple[Tensor, Tensor]]
    """Inner parameter -> F (I x R) and D (R x O), contiguous fp32 on the CPU; R may be 0."""

    @classmethod
    def of(cls, factors: Mapping[str, tuple[Tensor, Tensor]]) -> Self:
        """Return the delta of factors in any dtype and on any device, rounded to what is stored.

        Changes of more columns than their weight has on its narrower side are multiplied out.

        Raises:
            EditorFailed: if there is no factor, or one is not finite.
        """
        if not factors:
            raise EditorFailed("expected a weight delta of at least one inner parameter, got none")
        narrow = {name: narrowed(*factors[name]) for name in sorted(factors)}
        rounded = {name: (_stored(left), _stored(right)) for name, (left, right) in narrow.items()}
        for name, pair in rounded.items():
            if not all(bool(torch.isfinite(factor).all()) for factor in pair):
                raise EditorFailed(f"expected finite factors, got NaN or infinity in the delta of {name}")
        return cls(factors=rounded)

    @property
    def norms(self) -> dict[str, float]:
        """Inner parameter -> Frobenius norm of `F D`, which is never formed."""
        return {name: product_norm(left, right) for name, (left, right) in self.factors.items()}

    def save(self, path: Path) -> str:
        """Write the factors and return the file's SHA-256; the same factors give the same bytes."""
        tensors = {f"{name}.F": left for name, (left, _) in self.factors.items()}
        tensors |= {f"{name}.D": right for name, (_, right) in self.factors.items()}
        return write_tensors(path, tensors, {"kind": "delta"})

    @classmethod
    def load(cls, path: Path, expected_digest: str | None = None) -> Self:
        """Read the factors of a file.

        Raises:
            IntegrityBroken: if the file is not a delta, or has another digest than expected.
        """
        tensors, _ = read_tensors(path, "delta", expected_digest)
        names = sorted(key[:-2] for key in tensors if key.endswith(".F"))
        return cls(factors={name: (tensors[f"{name}.F"], tensors[f"{name}.D"]) for name in names})


class WeightStore(Protocol):
    """The edited weights of a loaded model, whole or partitioned: base plus an fp32 accumulator."""

    def shift(self, name: str) -> Tensor:
        """Return the whole accumulated shift S of an inner parameter, I x O, fp32."""
        ...

    def apply(self, delta: WeightDelta) -> None:
        """Add a delta to the accumulators and write `cast(base + accumulator)` into the model."""
        ...

    def save(self) -> Any:
        """Return the accumulators as they are now, for `restore`."""
        ...

    def restore(self, saved: Any) -> None:
        """Go back, bit for bit, to what `save` returned."""
        ...

    def set_accumulators(self, shifts: Mapping[str, Tensor]) -> None:
        """Replace the accumulators by whole shifts (I x O, fp32); parameters that are not named get zero."""
        ...

    def base_norm(self, name: str) -> float:
        """Return the Frobenius norm of an inner parameter in the base."""
        ...


class PlainWeights:
    """The edited weights of a model that is whole on one device; a `WeightStore`.

    Args:
        module: the model, with the base's weights in it.
        params: the inner parameters that edits change.
    """

    def __init__(self, module: nn.Module, params: Sequence[InnerParam]) -> None:
        self._params = {param.name: param for param in params}
        self._weights = {name: module.get_parameter(name) for name in self._params}
        self._base = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self._shift = {name: self._zero(name) for name in self._params}

    def shift(self, name: str) -> Tensor:
        """Return the accumulated shift S of an inner parameter, I x O, fp32, on the model's device."""
        return self._shift[name]

    def apply(self, delta: WeightDelta) -> None:
        """Add a delta to the accumulators and write `cast(base + accumulator)` into the model."""
        for name, (left, right) in delta.factors.items():
            shift = self._shift[name]
            self._shift[name] = shift + left.to(shift.device) @ right.to(shift.device)
            self._write(name)

    def save(self) -> dict[str, Tensor]:
        """Return the accumulators as they are now; later changes replace them and do not reach what was returned."""
        return dict(self._shift)

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Put back what `save` returned, bit for bit: nothing is ever subtracted."""
        for name, shift in saved.items():
            self._shift[name] = shift
            self._write(name)

    def set_accumulators(self, shifts: Mapping[str, Tensor]) -> None:
        """Replace the accumulators by whole shifts (I x O, fp32); parameters that are not named get zero."""
        for name in self._params:
            self._shift[name] = self._zero(name) if name not in shifts else shifts[name].to(self._base[name].device)
            self._write(name)

    def base_norm(self, name: str) -> float:
        """Return the Frobenius norm of an inner parameter in the base."""
        return float(self._base[name].double().norm())

    def _zero(self, name: str) -> Tensor:
        param, base = self._params[name], self._base[name]
        return torch.zeros(param.in_features, param.out_features, dtype=torch.float32, device=base.device)

    def _write(self, name: str) -> None:
        """Write base plus accumulator, cast once: in bf16 a sum of casts would lose small shifts."""
        edited = edited_weight(self._base[name], self._shift[name], self._params[name])
        with torch.no_grad():
            self._weights[name].copy_(edited)


def edited_weight(base: Tensor, shift_IO: Tensor, param: InnerParam) -> Tensor:
    """Return `cast(base + shift)` as the layer stores its weight: a Conv1D as I x O, a Linear as O x I."""
    lying = shift_IO if param.fan_in_fan_out else shift_IO.T
    return (base.float() + lying).to(base.dtype).contiguous()


def save_accumulators(path: Path, shifts: Mapping[str, Tensor]) -> str:
    """Write whole shifts (I x O, fp32) by inner parameter and return the file's SHA-256."""
    return write_tensors(path, {name: _stored(shift) for name, shift in shifts.items()}, {"kind": "accumulator"})


def load_accumulators(path: Path, expected_digest: str | None = None) -> dict[str, Tensor]:
    """Read the whole shifts of a file, by inner parameter."""
    return read_tensors(path, "accumulator", expected_digest)[0]


def _stored(tensor: Tensor) -> Tensor:
    return tensor.detach().to(device="cpu", dtype=torch.float32).contiguous()


def product_norm(left_IR: Tensor, right_RO: Tensor) -> float:
    """Return the Frobenius norm of `F D`, which is never formed."""
    left, right = left_IR.double(), right_RO.double()
    # |F D|^2 = tr(D^T F^T F D) = sum of (F^T F) * (D D^T), R x R each instead of I x O.
    squared = ((left.T @ left) * (right @ right.T)).sum()
    return float(squared.clamp(min=0).sqrt())
