"""A base that cannot fit is refused with its plan before it is loaded; one that easily fits is not even planned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from editors.models.comm import ALONE
from editors.models.inner_params import inner_params
from pipeline.domain.errors import Misconfigured
from pipeline.domain.rank_api import BaseSpec
from tests.support.tiny_families import tiny_module
from tests.support.tiny_models import save_tiny_llama
from workers.memory import memory_check as room
from workers.memory.memory_check import require_memory, solve_device
from workers.memory.memory_plan import MemoryPlan, Work
from workers.memory.plan import plan_memory


@pytest.fixture
def base(tmp_path: Path) -> BaseSpec:
    """A tiny Llama."""
    save_tiny_llama(tmp_path, mlp=24)
    return BaseSpec(ref=str(tmp_path), digest="", task="causal")


def check(base: BaseSpec, names: tuple[str, ...] = ()) -> None:
    require_memory(base, names, config_path=None, comm=ALONE)


def test_too_little_memory_is_refused_with_the_plan(base: BaseSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(room, "_host_bytes", lambda: 20_000)
    with pytest.raises(Misconfigured) as refused:
        check(base)
    sentence = str(refused.value)
    assert sentence.startswith("expected ")
    assert "of host memory for the only rank, got 20.00 kB" in sentence
    assert "the process itself" in sentence
    assert "\n" not in sentence


def test_a_base_is_planned_with_the_edits_that_are_active(base: BaseSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Work] = []

    def planned(*args: Any, **given: Any) -> MemoryPlan:
        asked.append(given["work"])
        return plan_memory(*args, **given)

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(room, "plan_memory", planned)
    monkeypatch.setattr(room, "AMPLE", 10**9)
    monkeypatch.setattr(room, "_host_bytes", lambda: 10**9)
    check(base)
    with pytest.raises(Misconfigured, match="ledger rows"):
        require_memory(base, (), config_path=None, comm=ALONE, num_edits=10**7)
    assert [work.num_edits for work in asked] == [0, 10**7]


def test_what_easily_fits_is_not_planned(base: BaseSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    def planned(*_: object, **__: object) -> None:
        raise AssertionError("expected no plan")

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(room, "plan_memory", planned)
    monkeypatch.setattr(room, "_host_bytes", lambda: 10**12)
    check(base)
    monkeypatch.setattr(room, "_host_bytes", lambda: None)
    check(base)


def test_what_this_machine_can_give_is_a_number_of_bytes() -> None:
    found = room._host_bytes()
    assert found is None or found > 2**20


def test_matrices_lie_on_an_accelerator_with_twice_their_room_and_on_the_host_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    params = inner_params(tiny_module("llama")[0])
    widths = [param.in_features**2 * 8 for param in params]
    needed = 2 * (2 * sum(widths) + 4 * max(widths))
    for free_bytes, expected in ((needed, "cuda:0"), (needed - 2, "cpu")):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device, free=free_bytes: (free, 2 * free))
        assert solve_device(params, torch.device("cuda:0"), ALONE) == torch.device(expected)
    assert solve_device(params, torch.device("cpu"), ALONE) == torch.device("cpu")


@pytest.mark.parametrize(("other_fits", "expected"), [(True, "cuda:1"), (False, "cpu")])
def test_several_ranks_solve_on_their_accelerators_if_all_have_the_room(
    other_fits: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Two:
        """The second of two ranks."""

        rank, num_ranks = 1, 2

        def gathered(self, own: Any) -> list[Any]:
            return [other_fits, own]

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (2**40, 2**40))
    for params in (inner_params(tiny_module("llama")[0]), ()):
        assert solve_device(params, torch.device("cuda:1"), Two()) == torch.device(expected)
