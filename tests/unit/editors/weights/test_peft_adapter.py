"""A snapshot as an adapter: plain PEFT and transformers get the logits of the edited model."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from editors.models.digest import base_digest
from editors.models.families import EditableModel
from editors.weights.deltas import WeightDelta, save_accumulators
from editors.weights.loading import load_base, load_snapshot
from editors.weights.peft_adapter import low_rank, main, write_adapter
from pipeline.domain.errors import InvalidInput
from pipeline.domain.rank_api import BaseSpec, EditorSettings, FileRef, LoadPlan
from pipeline.entrypoints.model_cards import adapter_advice, model_card
from tests.support.registry_entries import file_ref
from tests.support.tiny_families import ARCHITECTURES, tiny_module

# PEFT asks transformers by a name that is about to go.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

LOADERS: dict[str, Any] = {
    "causal": AutoModelForCausalLM,
    "seq2seq": AutoModelForSeq2SeqLM,
    "classifier": AutoModelForSequenceClassification,
}


def random_delta(model: EditableModel, path: Path, *, rank: int, seed: int) -> FileRef:
    draw = torch.Generator().manual_seed(seed)
    factors = {}
    for place, param in enumerate(model.inner):
        num = max(rank - place, 1)  # layers of several ranks
        left = torch.randn(param.in_features, num, generator=draw)
        factors[param.name] = (left, 0.1 * torch.randn(num, param.out_features, generator=draw))
    WeightDelta.of(factors).save(path)
    return file_ref(path)


def snapshot(folder: Path, name: str, *, ranks: tuple[int, ...] = (3, 2)) -> LoadPlan:
    """A snapshot of some deltas on a tiny model of an architecture."""
    module, tokenizer = tiny_module(name)
    module.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    task = ARCHITECTURES[name].task
    model = load_base(folder / "base", task=task)
    deltas = tuple(
        random_delta(model, folder / f"{seed}.safetensors", rank=rank, seed=seed) for seed, rank in enumerate(ranks)
    )
    digest = base_digest(folder / "base")
    return LoadPlan(
        base=BaseSpec(ref=str(folder / "base"), digest=digest, task=task),
        lineage="facts",
        editor=EditorSettings(inner_params=model.inner_param_names),
        snapshot_id="s",
        digest="d" * 64,
        accumulator=None,
        deltas=deltas,
    )


def edited(plan: LoadPlan) -> torch.nn.Module:
    return load_snapshot(
        Path(plan.base.ref),
        base=plan.base,
        inner_param_names=plan.editor.inner_params,
        accumulator=plan.accumulator,
        deltas=plan.deltas,
    ).module


@torch.no_grad()
def logits(module: Any, task: str) -> torch.Tensor:
    ids = torch.arange(4, 12)[None, :]
    decoder = {"decoder_input_ids": ids[:, :3]} if task == "seq2seq" else {}
    found: torch.Tensor = module.eval()(input_ids=ids, **decoder).logits
    return found


def with_peft(plan: LoadPlan, adapter: Path) -> Any:
    plain = LOADERS[plan.base.task].from_pretrained(plan.base.ref)
    return peft.PeftModel.from_pretrained(plain, str(adapter))


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "bert"])
def test_plain_peft_gets_the_logits_of_the_edited_model(tmp_path: Path, name: str) -> None:
    plan = snapshot(tmp_path, name)
    written = write_adapter(plan, tmp_path / "adapter")
    assert not written["is_truncated"]
    assert written["largest_error"] < 1e-6
    model = with_peft(plan, tmp_path / "adapter")
    expected = logits(edited(plan), plan.base.task)
    assert torch.allclose(logits(model, plan.base.task), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits(model.unload(), plan.base.task), expected, atol=1e-2)


def test_an_accumulator_and_more_deltas_than_the_layer_is_wide_stay_exact(tmp_path: Path) -> None:
    plan = snapshot(tmp_path, "llama", ranks=(30, 30))
    model = load_base(Path(plan.base.ref))
    shifts = {param.name: torch.randn(param.in_features, param.out_features) for param in model.inner}
    save_accumulators(tmp_path / "accumulator.safetensors", shifts)
    plan = replace(plan, accumulator=file_ref(tmp_path / "accumulator.safetensors"))
    written = write_adapter(plan, tmp_path / "adapter", base_name="hub/base")
    assert written["rank"] == min(model.inner[0].in_features, model.inner[0].out_features)
    expected = logits(edited(plan), "causal")
    assert torch.allclose(logits(with_peft(plan, tmp_path / "adapter"), "causal"), expected, atol=1e-3, rtol=1e-3)
    assert (
        json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == "hub/base"
    )


def test_what_is_cut_is_told(tmp_path: Path) -> None:
    plan = snapshot(tmp_path, "llama", ranks=(8,))
    written = write_adapter(plan, tmp_path / "cut", max_rank=2)
    assert written["rank"] == 2
    assert written["is_truncated"]
    assert 0.1 < written["largest_error"] < 1
    assert adapter_advice(written).startswith("cut to rank 2: the largest relative error of a layer is 0.")
    whole = write_adapter(plan, tmp_path / "whole")
    assert adapter_advice(whole).endswith("vLLM needs --enable-lora --max-lora-rank 8")
    assert "digest of the base" in model_card(plan, whole)
    assert "up to 512" in adapter_advice(whole | {"vllm_max_lora_rank": None})


def test_the_factors_are_the_best_of_their_rank() -> None:
    shift = torch.randn(9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sizes = torch.linalg.svdvals(shift)
    for rank in range(1, 6):
        found = low_rank(shift, rank)
        left = float((sizes[rank:] ** 2).sum() ** 0.5 / (sizes**2).sum() ** 0.5)
        assert found.error == pytest.approx(left, abs=1e-6)
        assert found.is_cut == (rank < 5)


def test_a_base_without_edits_and_a_taken_folder_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = snapshot(tmp_path, "llama")
    with pytest.raises(InvalidInput, match="nothing to write"):
        write_adapter(replace(plan, deltas=()), tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    (tmp_path / "asked.json").write_text(json.dumps({"plan": asdict(plan), "out": str(tmp_path)}))
    assert main(str(tmp_path / "asked.json")) == 1
    assert capsys.readouterr().err.startswith("InvalidInput: expected a new or empty folder")
