"""The model on ZeRO-3 partitions is the unsharded model, before and after edits, for one to three ranks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.ranks_of_tests import run_ranks
from tests.support.tiny_families import ARCHITECTURES, tiny_module
from tests.support.tiny_models import save_tiny_gpt2, save_tiny_llama

LLAMA = ("model.layers.1.mlp.down_proj.weight", "model.layers.2.mlp.down_proj.weight")
CONV1D = ("transformer.h.0.mlp.c_proj.weight", "transformer.h.1.mlp.c_proj.weight")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with square edited matrices."""
    folder = tmp_path_factory.mktemp("llama")
    save_tiny_llama(folder)
    return folder


@pytest.fixture(scope="module")
def uneven_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama whose edited matrices (6 x 9) make three ranks share rows and two leave none over."""
    folder = tmp_path_factory.mktemp("uneven")
    save_tiny_llama(folder, hidden=8, mlp=7)
    return folder


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2 with Conv1D layers of 5 x 10."""
    folder = tmp_path_factory.mktemp("gpt2")
    save_tiny_gpt2(folder)
    return folder


@pytest.fixture(scope="module")
def every_architecture(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name -> folder of a tiny model."""
    folders = {}
    for name in ARCHITECTURES:
        module, tokenizer = tiny_module(name)
        folders[name] = tmp_path_factory.mktemp(name)
        module.save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    return folders


def run_sharded(folder: Path, names: tuple[str, ...], *, num_ranks: int) -> list[dict[str, Any]]:
    """Start the ranks and collect what each found."""
    models = json.dumps([(str(folder), "causal", names)])
    found = run_ranks("tests.support.sharded_program", models, num_ranks=num_ranks)
    return [of_model for (of_model,) in found]


SHARED_STATES = ("t5", "t5_gated", "mt5", "bart")
"""Every block of their decoders reads the encoder's states, whose gradients ZeRO-3 adds up in an order of its own."""


def assert_like_unsharded(found: Sequence[dict[str, Any]], *, tolerance: float, name: str = "the model") -> None:
    for rank in found:
        assert rank["base"], f"the logits of the sharded base differ from the unsharded one's: {name}"
        assert rank["changed"], f"a write to the shards did not change the logits: {name}"
        assert max(rank["edited"], rank["shift"]) <= tolerance, name
        assert rank["gradients"] <= (1e-6 if name in SHARED_STATES else 0.0), (name, rank["gradients"])
        assert rank["norm"] <= 1e-12, name
        assert all(rank[what] for what in ("generated", "restored_once", "restored_base", "reloaded")), (name, rank)


def test_one_rank_equals_the_unsharded_model_bit_for_bit(llama: Path) -> None:
    assert_like_unsharded(run_sharded(llama, LLAMA, num_ranks=1), tolerance=0.0)


def test_one_rank_of_conv1d_layers_equals_the_unsharded_model_bit_for_bit(gpt2: Path) -> None:
    assert_like_unsharded(run_sharded(gpt2, CONV1D, num_ranks=1), tolerance=0.0)


def test_two_ranks_equal_the_unsharded_model_and_own_different_slices(llama: Path) -> None:
    found = run_sharded(llama, LLAMA, num_ranks=2)
    assert_like_unsharded(found, tolerance=1e-5)
    assert found[0]["digest"] != found[1]["digest"]


@pytest.mark.slow
def test_three_ranks_share_rows_and_pad_the_last_slice(uneven_llama: Path) -> None:
    assert_like_unsharded(run_sharded(uneven_llama, LLAMA, num_ranks=3), tolerance=1e-5)


@pytest.mark.slow
def test_three_ranks_of_conv1d_layers_equal_the_unsharded_model(gpt2: Path) -> None:
    assert_like_unsharded(run_sharded(gpt2, CONV1D, num_ranks=3), tolerance=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("num_ranks", "tolerance"), [(1, 0.0), (2, 1e-5), (3, 1e-5)])
def test_every_architecture_equals_the_unsharded_model(
    every_architecture: dict[str, Path], num_ranks: int, tolerance: float
) -> None:
    models = json.dumps([(str(folder), ARCHITECTURES[name].task, ()) for name, folder in every_architecture.items()])
    found = run_ranks("tests.support.sharded_program", models, num_ranks=num_ranks)
    for name, of_ranks in zip(every_architecture, zip(*found, strict=True), strict=True):
        assert_like_unsharded(of_ranks, name=name, tolerance=tolerance)
        assert len({rank["digest"] for rank in of_ranks}) == num_ranks, f"{name}: two ranks have the same slice"
