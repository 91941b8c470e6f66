"""What `corrigenda ask` runs: a snapshot loaded in a process of its own, every digest checked."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from editors.weights import ask as asking
from editors.weights.deltas import WeightDelta
from editors.weights.loading import load_base
from pipeline.domain.rank_api import FileRef, LoadPlan
from tests.support.tiny_lineage import make_tiny_lineage

PROMPTS = ["The capital of France is", "Water boils at"]


@pytest.fixture(scope="module")
def base_plan(tmp_path_factory: pytest.TempPathFactory) -> LoadPlan:
    return make_tiny_lineage(tmp_path_factory.mktemp("lineage"))


def answers(plan: LoadPlan, folder: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    file = folder / "asked.json"
    file.write_text(json.dumps({"plan": asdict(plan), "prompts": PROMPTS, "max_new_tokens": 6}))
    assert asking.main(str(file)) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [answer["prompt"] for answer in said] == PROMPTS
    return [answer["text"] for answer in said]


def with_delta(plan: LoadPlan, path: Path) -> LoadPlan:
    """The plan of a snapshot whose one delta is large enough to change every answer."""
    model = load_base(Path(plan.base.ref), plan.editor.inner_params)
    noise = torch.Generator().manual_seed(0)
    factors = {
        param.name: (
            torch.randn(param.in_features, 8, generator=noise),
            torch.randn(8, param.out_features, generator=noise),
        )
        for param in model.inner
    }
    return replace(plan, deltas=(FileRef(path=str(path), digest=WeightDelta.of(factors).save(path)),))


def test_the_base_answers_as_the_base(base_plan: LoadPlan, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = load_base(Path(base_plan.base.ref)).generate(PROMPTS, max_new_tokens=6)
    assert answers(base_plan, tmp_path, capsys) == plain


def test_a_delta_changes_what_is_answered(
    base_plan: LoadPlan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = answers(base_plan, tmp_path, capsys)
    assert answers(with_delta(base_plan, tmp_path / "delta.safetensors"), tmp_path, capsys) != before


def test_a_base_without_a_chat_template_is_not_asked_in_a_chat(
    base_plan: LoadPlan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "asked.json"
    file.write_text(json.dumps({"plan": asdict(base_plan), "prompts": PROMPTS, "max_new_tokens": 6, "chat": True}))
    assert asking.main(str(file)) == 1
    assert "expected a model with a chat template" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["base", "delta"])
def test_another_digest_than_recorded_is_one_sentence(
    base_plan: LoadPlan, tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: str
) -> None:
    plan = with_delta(base_plan, tmp_path / "delta.safetensors")
    plan = (
        replace(plan, base=replace(plan.base, digest="0" * 64))
        if wrong == "base"
        else replace(plan, deltas=(replace(plan.deltas[0], digest="0" * 64),))
    )
    file = tmp_path / "asked.json"
    file.write_text(json.dumps({"plan": asdict(plan), "prompts": PROMPTS, "max_new_tokens": 6}))
    assert asking.main(str(file)) == 1
    said = capsys.readouterr()
    assert not said.out
    assert len(said.err.strip().splitlines()) == 1
    assert "expected" in said.err
