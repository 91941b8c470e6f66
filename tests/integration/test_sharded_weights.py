"""The model on ZeRO-3 partitions is the unsharded model, before and after edits, for one rank and for two."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_families import ARCHITECTURES, tiny_module
from tests.tiny_models import save_tiny_gpt2, save_tiny_llama

ROOT = Path(__file__).parents[2]
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


def run_ranks(
    folder: Path, names: tuple[str, ...] = (), *, num_ranks: int, task: str = "causal"
) -> list[dict[str, Any]]:
    """Start the ranks and collect what each found."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.integration.sharded_program", str(folder), task, *names]
    processes = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(num_ranks)
    ]
    found = []
    with ExitStack() as ended:
        for process in processes:
            ended.enter_context(process)
            ended.callback(process.kill)
        for process in processes:
            out, err = process.communicate(timeout=240)
            assert process.returncode == 0, err[-3000:]
            found.append(json.loads(out.splitlines()[-1]))
    return found


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
    assert_like_unsharded(run_ranks(llama, LLAMA, num_ranks=1), tolerance=0.0)


def test_one_rank_of_conv1d_layers_equals_the_unsharded_model_bit_for_bit(gpt2: Path) -> None:
    assert_like_unsharded(run_ranks(gpt2, CONV1D, num_ranks=1), tolerance=0.0)


def test_two_ranks_equal_the_unsharded_model_and_own_different_slices(llama: Path) -> None:
    found = run_ranks(llama, LLAMA, num_ranks=2)
    assert_like_unsharded(found, tolerance=1e-5)
    assert found[0]["digest"] != found[1]["digest"]


@pytest.mark.slow
def test_three_ranks_share_rows_and_pad_the_last_slice(uneven_llama: Path) -> None:
    assert_like_unsharded(run_ranks(uneven_llama, LLAMA, num_ranks=3), tolerance=1e-5)


@pytest.mark.slow
def test_three_ranks_of_conv1d_layers_equal_the_unsharded_model(gpt2: Path) -> None:
    assert_like_unsharded(run_ranks(gpt2, CONV1D, num_ranks=3), tolerance=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t5", "bart", "bert"])
def test_two_ranks_of_any_family_equal_the_unsharded_model(name: str, tmp_path: Path) -> None:
    module, tokenizer = tiny_module(name)
    module.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    found = run_ranks(tmp_path, num_ranks=2, task=ARCHITECTURES[name].task)
    assert_like_unsharded(found, tolerance=1e-5)
    assert found[0]["digest"] != found[1]["digest"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t5", "bart", "bert"])
def test_one_rank_of_any_family_equals_the_unsharded_model_bit_for_bit(name: str, tmp_path: Path) -> None:
    module, tokenizer = tiny_module(name)
    module.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert_like_unsharded(run_ranks(tmp_path, num_ranks=1, task=ARCHITECTURES[name].task), tolerance=0.0)
