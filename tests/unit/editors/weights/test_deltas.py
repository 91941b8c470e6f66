"""Changes of weights: how they lie, how they are kept, and that going back is exact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from editors.models.families import CausalModel
from editors.weights.deltas import PlainWeights, WeightDelta, load_accumulators, save_accumulators
from editors.weights.loading import load_base
from pipeline.domain.errors import EditorFailed, IntegrityBroken
from tests.support.tiny_models import save_tiny_gpt2, save_tiny_llama


def model_in(folder: Path, kind: str) -> CausalModel:
    (save_tiny_llama if kind == "llama" else save_tiny_gpt2)(folder)
    model = load_base(folder)
    assert isinstance(model, CausalModel)
    return model


def some_delta(model: CausalModel, *, seed: int = 0, scale: float = 0.1) -> WeightDelta:
    draw = torch.Generator().manual_seed(seed)
    return WeightDelta.of(
        {
            p.name: (
                torch.randn(p.in_features, 3, generator=draw),
                torch.randn(3, p.out_features, generator=draw) * scale,
            )
            for p in model.inner
        }
    )


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_shift_adds_x_times_s_to_what_a_layer_gives(kind: str, tmp_path: Path) -> None:
    model = model_in(tmp_path, kind)
    param, delta = model.inner[0], some_delta(model)
    layer = model.module.get_submodule(param.module_name)
    x = torch.randn(5, param.in_features, generator=torch.Generator().manual_seed(7))
    before = layer(x)
    PlainWeights(model.module, model.inner).apply(delta)
    left, right = delta.factors[param.name]
    torch.testing.assert_close(layer(x) - before, x @ (left @ right), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_going_back_is_bitwise(dtype: torch.dtype, tmp_path: Path) -> None:
    model = model_in(tmp_path, "llama")
    model.module.to(dtype)
    weights = PlainWeights(model.module, model.inner)
    weights.apply(some_delta(model, seed=1))
    saved = weights.save()
    held = {name: model.module.get_parameter(name).clone() for name in model.inner_param_names}
    for seed in range(2, 6):
        weights.apply(some_delta(model, seed=seed, scale=1e-3))
    weights.restore(saved)
    for name, weight in held.items():
        assert torch.equal(model.module.get_parameter(name), weight)
        assert torch.equal(weights.shift(name), saved[name])


def test_a_bf16_weight_is_base_plus_accumulator_cast_once(tmp_path: Path) -> None:
    model = model_in(tmp_path, "llama")
    model.module.to(torch.bfloat16)
    name = model.inner_param_names[0]
    base = model.module.get_parameter(name).clone()
    weights = PlainWeights(model.module, model.inner)
    for seed in range(8):  # each far below what bf16 can hold next to the base
        weights.apply(some_delta(model, seed=seed, scale=1e-5))
    expected = (base.float() + weights.shift(name).T).to(torch.bfloat16)
    assert torch.equal(model.module.get_parameter(name), expected)


def test_set_accumulators_starts_from_the_base(tmp_path: Path) -> None:
    model = model_in(tmp_path, "gpt2")
    base = {name: model.module.get_parameter(name).clone() for name in model.inner_param_names}
    weights = PlainWeights(model.module, model.inner)
    weights.apply(some_delta(model))
    shifts = {name: weights.shift(name) for name in model.inner_param_names}
    path = tmp_path / "accumulator.safetensors"
    digest = save_accumulators(path, shifts)
    weights.set_accumulators({})
    assert all(torch.equal(model.module.get_parameter(name), weight) for name, weight in base.items())
    weights.set_accumulators(load_accumulators(path, digest))
    assert all(torch.equal(weights.shift(name), shift) for name, shift in shifts.items())


def test_the_same_factors_give_the_same_bytes(tmp_path: Path) -> None:
    factors = {name: (torch.ones(4, 2), torch.ones(2, 3)) for name in ("b.weight", "a.weight")}
    swapped = dict(reversed(factors.items()))
    first = WeightDelta.of(factors).save(tmp_path / "1")
    assert WeightDelta.of(swapped).save(tmp_path / "2") == first
    again = WeightDelta.load(tmp_path / "1", first)
    assert again.save(tmp_path / "3") == first


def test_norms_are_those_of_the_product() -> None:
    left, right = torch.randn(6, 3), torch.randn(3, 5)
    delta = WeightDelta.of({"w": (left, right)})
    assert delta.norms["w"] == pytest.approx(float((left.double() @ right.double()).norm()), rel=1e-9)


def test_a_change_never_has_more_columns_than_one_of_full_rank() -> None:
    """An edit's rows leave with a column each, and there is no bound on how many leave at once."""
    draw = torch.Generator().manual_seed(3)
    for num_in, num_out in ((6, 9), (9, 6)):
        for num_columns in (5, 6, 7, 400):
            left = torch.randn(num_in, num_columns, generator=draw, dtype=torch.float64)
            right = torch.randn(num_columns, num_out, generator=draw, dtype=torch.float64)
            delta = WeightDelta.of({"w": (left, right)})
            stored_left, stored_right = delta.factors["w"]
            assert stored_left.shape[1] == min(num_columns, 6)
            torch.testing.assert_close(stored_left @ stored_right, (left @ right).float(), rtol=1e-5, atol=1e-4)
            assert delta.norms["w"] == pytest.approx(float((left @ right).norm()), rel=1e-5)


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "delta.safetensors"
    digest = WeightDelta.of({"w": (torch.ones(2, 1), torch.ones(1, 2))}).save(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(IntegrityBroken, match=digest):
        WeightDelta.load(path, digest)


def test_what_is_no_delta_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(IntegrityBroken, match="nothing there"):
        WeightDelta.load(path)
    path.write_bytes(b"not safetensors")
    with pytest.raises(IntegrityBroken, match="safetensors"):
        WeightDelta.load(path)
    save_accumulators(path, {"w": torch.ones(2, 2)})
    with pytest.raises(IntegrityBroken, match="accumulator"):
        WeightDelta.load(path)


def test_numbers_that_are_not_finite_never_become_a_delta() -> None:
    with pytest.raises(EditorFailed, match="w"):
        WeightDelta.of({"w": (torch.full((2, 1), torch.nan), torch.ones(1, 2))})
    with pytest.raises(EditorFailed, match="none"):
        WeightDelta.of({})
