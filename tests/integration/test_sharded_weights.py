"""The model on ZeRO-3 partitions is the unsharded model, before and after edits, for one to three ranks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.support.ranks_of_tests import run_ranks
from tests.support.tiny_families import ARCHITECTURES, tiny_module
from tests.support.tiny_models import save_tiny_gpt2, save_tiny_llama

LLAMA = ("model.layers.1.mlp.down_proj.weight", "model.layers.2.mlp.down_proj.weight")
CONV1D = ("transformer.h.0.mlp.c_proj.weight", "transformer.h.1.mlp.c_proj.weight")


OnRanks = Callable[[int], dict[str, Sequence[dict[str, Any]]]]
# What each number of ranks is asked about: starting them takes far longer than one more tiny model.
MODELS: dict[int, dict[str, tuple[str, ...]]] = {
    1: {"llama, square": LLAMA, "gpt2, uneven": CONV1D},
    2: {"llama, square": LLAMA},
    3: {"llama, uneven": LLAMA, "gpt2, uneven": CONV1D},
}
"""By number of ranks: name of a model -> its inner parameters; each also gets every architecture with its own."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name -> folder of a tiny model."""
    made = {name: tmp_path_factory.mktemp("model") for name in ("llama, square", "llama, uneven", "gpt2, uneven")}
    save_tiny_llama(made["llama, square"])
    # Edited matrices of 6 x 9: three ranks share rows and two leave none over.
    save_tiny_llama(made["llama, uneven"], hidden=8, mlp=7)
    # Conv1D layers of 5 x 10.
    save_tiny_gpt2(made["gpt2, uneven"])
    for name in ARCHITECTURES:
        module, tokenizer = tiny_module(name)
        made[name] = tmp_path_factory.mktemp(name)
        module.save_pretrained(made[name])
        tokenizer.save_pretrained(made[name])
    return made


@pytest.fixture(scope="module")
def sharded(folders: dict[str, Path]) -> OnRanks:
    """Return what each of some ranks found, by name of the model; every number of ranks is started once."""

    @cache
    def on_ranks(num_ranks: int) -> dict[str, Sequence[dict[str, Any]]]:
        asked = MODELS[num_ranks] | dict.fromkeys(ARCHITECTURES, ())
        tasks = {name: ARCHITECTURES[name].task if name in ARCHITECTURES else "causal" for name in asked}
        models = json.dumps([(str(folders[name]), tasks[name], names) for name, names in asked.items()])
        found = run_ranks("tests.support.sharded_program", models, num_ranks=num_ranks)
        return dict(zip(asked, zip(*found, strict=True), strict=True))

    return on_ranks


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


@pytest.mark.parametrize("name", MODELS[1])
def test_one_rank_equals_the_unsharded_model_bit_for_bit(sharded: OnRanks, name: str) -> None:
    assert_like_unsharded(sharded(1)[name], tolerance=0.0)


def test_two_ranks_equal_the_unsharded_model_and_own_different_slices(sharded: OnRanks) -> None:
    found = sharded(2)["llama, square"]
    assert_like_unsharded(found, tolerance=1e-5)
    assert found[0]["digest"] != found[1]["digest"]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS[3])
def test_three_ranks_share_rows_and_pad_the_last_slice(sharded: OnRanks, name: str) -> None:
    assert_like_unsharded(sharded(3)[name], tolerance=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("num_ranks", "tolerance"), [(1, 0.0), (2, 1e-5), (3, 1e-5)])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_equals_the_unsharded_model(
    sharded: OnRanks, name: str, num_ranks: int, tolerance: float
) -> None:
    found = sharded(num_ranks)[name]
    assert_like_unsharded(found, name=name, tolerance=tolerance)
    assert len({rank["digest"] for rank in found}) == num_ranks, "two ranks have the same slice"
