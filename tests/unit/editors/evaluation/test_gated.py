"""The gated lookup, a baseline that changes no weight: what is added where, and what a model makes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from editors.data.datasets import edit_lines
from editors.evaluation.__main__ import main as evaluate
from editors.evaluation.gated import GatedEditor, GatedModel
from editors.evaluation.lookup import GatedMemory, Lookup, UsualKeys
from editors.methods.base import EditJob
from editors.methods.batch_update import BatchUpdate
from editors.solve.ledger import Ledger
from editors.solve.prior import Prior
from pipeline.domain.edits import Edit, Probe
from pipeline.domain.errors import InvalidInput, Misconfigured
from tests.support.factories import make_edit
from tests.support.ledger_parts import SETTINGS, Rig, make_rig, prior_lines
from tests.support.scored import score_pairs

FRAMED = replace(SETTINGS, frames_per_pass=2, num_passes=20)
JAPAN, ITALY = "the capital of Japan is", "the capital of Italy is"


def edits() -> list[Edit]:
    return [
        make_edit(
            "japan", prompt=JAPAN, subject="Japan", relation="capital", target_new="Milan",
            locality=(Probe(prompt="a mountain river located", target="Bonn"),),
        ),
        make_edit("italy", prompt=ITALY, subject="Italy", relation="capital", target_new="Kyoto"),
    ]  # fmt: skip


def gated(rig: Rig, gate: float = 0.99, **more: bool) -> GatedModel:
    base = rig.model
    memory = GatedMemory(gate, **more)
    return GatedModel(base.module, base.tokenizer, base.inner_param_names, memory=memory)


def job(rig: Rig, model: GatedModel, *added: Edit, guards: dict[str, tuple[str, ...]] | None = None) -> EditJob:
    return EditJob(model=model, weights=rig.weights, ledger=rig.ledger, added=added, guards=guards or {})


def probability(model: GatedModel, edit: Edit) -> float:
    [score] = score_pairs(model, [(edit.request.prompt, edit.request.target_new)])
    return score.probability


def test_the_nearest_keys_shift_is_added_where_the_gate_opens_and_nothing_elsewhere() -> None:
    lookup = Lookup(
        unit_RI=torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 0.0]]),
        shift_RO=torch.tensor([[5.0], [0.0], [7.0]]),
        gate=0.95,
    )
    x_BLI = torch.tensor([[[3.0, 0.0], [3.0, 0.9], [8.0, 5.0], [0.0, 2.0], [0.0, 0.0]]])
    # Length counts for nothing; the second key is a guard, which wins where it is nearer; nothing is like no key.
    assert lookup(x_BLI)[0, :, 0].tolist() == [5.0, 5.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_edits_hold_behind_the_gate_and_no_weight_changes(kind: str, tmp_path: Path) -> None:
    rig = make_rig(tmp_path, kind)
    model, editor = gated(rig), GatedEditor(FRAMED)
    japan, italy = edits()
    before = {name: value.clone() for name, value in rig.model.module.state_dict().items()}
    other = [("a mountain river located", "Bonn")]
    untouched = rig.model.target_logits(rig.model.encode(other))
    assert torch.equal(model.target_logits(model.encode(other)), untouched), "an empty memory is the base"
    results = [editor.edit(job(rig, model, edit)) for edit in (japan, italy)]
    for result in results:
        rig.weights.apply(result.delta)
        assert (result.kept_bytes or 0) > 0
    assert all(torch.equal(value, before[name]) for name, value in rig.model.module.state_dict().items())
    assert min(probability(model, edit) for edit in (japan, italy)) > 0.4, "the first holds beside the second"
    told = model.greedy([model.encode_prompt(JAPAN)], max_new_tokens=1)
    assert told == [[model.encode_pair(JAPAN, "Milan").target_ids[0]]]
    assert torch.equal(rig.model.target_logits(rig.model.encode(other)), untouched), "hooks are gone between calls"


def test_a_fact_that_is_corrected_again_has_the_rows_of_the_later_edit_only(tmp_path: Path) -> None:
    rig = make_rig(tmp_path)
    model, editor = gated(rig), GatedEditor(FRAMED)
    japan, italy = edits()
    editor.edit(job(rig, model, japan, italy))
    num_rows = {name: len(lookup.unit_RI) for name, lookup in model.memory.lookups.items()}
    later = make_edit("later", prompt=JAPAN, subject="Japan", relation="capital", target_new="Lyon")
    editor.edit(job(rig, model, later))
    assert probability(model, later) > 0.4
    assert probability(model, italy) > 0.4
    assert {name: len(lookup.unit_RI) for name, lookup in model.memory.lookups.items()} == num_rows
    alone = gated(rig, keeps_one=True)
    for edit in (japan, italy):
        editor.edit(job(rig, alone, edit))
    assert alone.memory.lookups.keys() == model.memory.lookups.keys()
    assert probability(alone, italy) > 0.4 > probability(alone, japan)


def test_guards_are_keys_that_add_nothing(tmp_path: Path) -> None:
    rig = make_rig(tmp_path)
    model = gated(rig, 0.9)
    japan, _ = edits()
    GatedEditor(FRAMED).edit(job(rig, model, japan, guards={"japan": ("Italy",)}))
    asked = [(ITALY, "Kyoto")]
    with torch.no_grad():
        held = model.target_logits(model.encode(asked))
        assert torch.allclose(held, rig.model.target_logits(rig.model.encode(asked)), atol=1e-5)
    assert probability(model, japan) > 0.4


def test_a_key_that_plain_text_is_full_of_is_left_out() -> None:
    draw = torch.Generator().manual_seed(0)
    text_TI = torch.randn(4000, 64, generator=draw)
    # Every other token is nearly the same, and long, as first tokens are.
    text_TI[::2] = 30.0 + 0.05 * torch.randn(2000, 64, generator=draw)
    ledger = Ledger(Prior(moments={"w": text_TI.T @ text_TI / 4000}, num_tokens=4000), strength=10.0, ridge=1e-3)
    update = BatchUpdate()
    update.keys["w"] = torch.stack([text_TI[8] * 0.5, text_TI[9], text_TI[11]])
    update.asked["w"] = torch.ones(1, 3, dtype=torch.float64)
    update.spread["w"] = torch.tensor([[0.5], [1.0], [0.0]], dtype=torch.float64)
    usual = UsualKeys(ledger, 10.0)
    is_usual_R = usual.rows(update, "w")
    assert is_usual_R.tolist() == [True, False, False]
    update.keys["w"] = update.keys["w"].flip(0)  # keys of later layers are read again in each pass
    assert usual.rows(update, "w").tolist() == [False, False, True]
    update.keys["w"] = update.keys["w"].flip(0)
    lookup = Lookup.of(update, "w", is_usual_R, 0.8)
    assert lookup.unit_RI.norm(dim=1).tolist() == pytest.approx([0.0, 1.0, 1.0])
    assert lookup.shift_RO[:, 0].tolist() == [1.0, 1.0, 0.0]


def test_it_needs_a_model_that_looks_up_and_takes_no_edit_out(tmp_path: Path) -> None:
    rig = make_rig(tmp_path)
    with pytest.raises(Misconfigured, match="looks edits up"):
        GatedEditor(FRAMED).edit(EditJob(model=rig.model, weights=rig.weights, ledger=rig.ledger, added=edits()))
    taking_out = EditJob(model=gated(rig), weights=rig.weights, ledger=rig.ledger, added=edits(), removed_ids=("old",))
    with pytest.raises(InvalidInput, match="recursive"):
        GatedEditor(FRAMED).edit(taking_out)


def test_an_evaluation_measures_it_and_its_gate_is_a_cosine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_rig(tmp_path / "model")
    (tmp_path / "edits.jsonl").write_bytes(edit_lines(edits()))
    (tmp_path / "text.txt").write_text("\n".join(prior_lines()[:6]))
    words = ["--data", tmp_path / "edits.jsonl", "--edits", 2, "--model", tmp_path / "model", "--free-sample", 1]
    words += ["--text", tmp_path / "text.txt", "--prior-text", tmp_path / "text.txt", "--batch", 1]
    words += ["--solver", "gated", "--json", tmp_path / "figures.json"]
    given = [str(word) for word in words]
    assert evaluate([*given, "--gate", "0.95"]) == 0
    found = json.loads((tmp_path / "figures.json").read_text())["solvers"]["gated"]
    assert found["active"] == 2
    assert found["editing"]["bytes_per_edit"] > 0
    assert found["cost"]["seconds_per_edit"] > 0
    with pytest.raises(SystemExit):
        evaluate([*given, "--gate", "1.5"])
    assert "argument --gate" in capsys.readouterr().err
