"""The model on ZeRO-3 partitions is the unsharded model, before and after edits, for one rank and for two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.integration.ranks_of_tests import run_ranks
from tests.tiny_families import ARCHITECTURES, tiny_module
from tests.tiny_models import save_tiny_gpt2, save_tiny_llama

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


def run_sharded(
    folder: Path, names: tuple[str, ...] = (), *, num_ranks: int, task: str = "causal"
) -> list[dict[str, Any]]:
    """Start the ranks and collect what each found."""
    return run_ranks("tests.integration.sharded_program", str(folder), task, *names, num_ranks=num_ranks)


def assert_like_unsharded(found: list[dict[str, Any]], *, tolerance: float) -> None:
    for rank in found:
        assert rank["base"], "the logits of the sharded base differ from the unsharded one's"
        assert rank["changed"], "a write to the shards did not change the logits"
        assert rank["edited"] <= tolerance
        assert rank["shift"] <= tolerance
        assert rank["norm"] <= 1e-12
        assert rank["generated"]
        assert rank["restored_once"]
        assert rank["restored_base"]
        assert rank["reloaded"]


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
@pytest.mark.parametrize("name", ["t5", "bart", "bert"])
def test_two_ranks_of_any_family_equal_the_unsharded_model(name: str, tmp_path: Path) -> None:
    module, tokenizer = tiny_module(name)
    module.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    found = run_sharded(tmp_path, num_ranks=2, task=ARCHITECTURES[name].task)
    assert_like_unsharded(found, tolerance=1e-5)
    assert found[0]["digest"] != found[1]["digest"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t5", "bart", "bert"])
def test_one_rank_of_any_family_equals_the_unsharded_model_bit_for_bit(name: str, tmp_path: Path) -> None:
    module, tokenizer = tiny_module(name)
    module.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert_like_unsharded(run_sharded(tmp_path, num_ranks=1, task=ARCHITECTURES[name].task), tolerance=0.0)
