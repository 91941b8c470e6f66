"""Facts before prompts, the baselines that change no weight: which fact is put where, and what a model makes of it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from editors.data.datasets import edit_lines
from editors.evaluation.__main__ import main as evaluate
from editors.evaluation.in_context import K1, ORACLE, RETRIEVAL, B, InContextEditor, InContextModel, Memory
from editors.methods.base import EditJob
from pipeline.domain.edits import Edit, Probe
from pipeline.domain.errors import Misconfigured
from pipeline.domain.prompts import ChatPrompt, ChatTurn
from tests.support.factories import make_edit
from tests.support.ledger_parts import make_rig, prior_lines

JAPAN, ITALY = "the capital of Japan is", "the capital of Italy is"


def edits() -> list[Edit]:
    return [
        make_edit(
            "japan", prompt=JAPAN, subject="Japan", relation="capital", target_new="Milan",
            rephrases=("Japan has capital",), locality=(Probe(prompt="the king of Japan is", target="Bonn"),),
        ),
        make_edit("italy", prompt=ITALY, subject="Italy", relation="capital", target_new="Kyoto"),
    ]  # fmt: skip


def memory(kind: str, added: Sequence[Edit], **more: bool) -> Memory:
    made = Memory(kind, **more)
    made.add(added)
    return made


def test_the_oracle_puts_an_edits_own_fact_before_all_that_is_asked_of_it() -> None:
    known = memory(ORACLE, edits())
    for prompt in (JAPAN, "Japan has capital", "the king of Japan is", "user: the capital of Japan is\nassistant:"):
        assert known.fact_for(prompt) == "the capital of Japan is Milan."
    assert known.fact_for("a mountain river") is None
    known.add([make_edit("later", prompt=JAPAN, subject="Japan", relation="capital", target_new="Lyon")])
    assert known.fact_for(JAPAN) == "the capital of Japan is Lyon."


def test_single_edits_are_remembered_one_at_a_time() -> None:
    known = memory(ORACLE, edits()[:1], keeps_one=True)
    known.add(edits()[1:])
    assert known.fact_for(JAPAN) is None
    assert known.fact_for(ITALY) is not None


def test_retrieval_puts_the_likest_fact_before_a_prompt_by_the_formula_of_bm25() -> None:
    known = memory(RETRIEVAL, edits())
    assert known.fact_for("who is king of Italy") == "the capital of Italy is Kyoto."
    assert known.fact_for("Bonn") is None
    # `italy` is in one fact of two, of six words each, once.
    expected = math.log(1 + 1.5 / 1.5) * (K1 + 1) / (1 + K1 * (1 - B + B))
    [key] = [key for key, fact in known._facts.items() if "Italy" in fact]
    assert known._score(known._words[key], {"italy"}, 6.0) == pytest.approx(expected)
    known.add([make_edit("again", prompt=ITALY, subject="Italy", relation="capital", target_new="Kyoto")])
    assert known._num_with["italy"] == 1, "a fact that is corrected again counts once"


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_model_reads_what_it_would_read_if_the_fact_stood_in_the_prompt(kind: str, tmp_path: Path) -> None:
    rig = make_rig(tmp_path, kind)
    base = rig.model
    model = InContextModel(base.module, base.tokenizer, base.inner_param_names, Memory(ORACLE))
    asked = [(JAPAN, "Milan"), ("a mountain river is", "Lyon")]
    with torch.no_grad():
        assert torch.equal(model.target_logits(model.encode(asked)), base.target_logits(base.encode(asked)))
    job = EditJob(model=model, weights=rig.weights, ledger=rig.ledger, added=edits())
    before = {name: value.clone() for name, value in base.module.state_dict().items()}
    rig.weights.apply(InContextEditor().edit(job).delta)
    written = [(f"the capital of Japan is Milan.\n{JAPAN}", "Milan"), asked[1]]
    with torch.no_grad():
        found, expected = model.target_logits(model.encode(asked)), base.target_logits(base.encode(written))
    assert torch.allclose(found, expected, atol=1e-5)
    prompts = [base.encode_prompt(prompt) for prompt, _ in asked]
    behind = [base.encode_prompt(prompt) for prompt, _ in written]
    assert model.greedy(prompts, max_new_tokens=3) == base.greedy(behind, max_new_tokens=3)
    assert all(torch.equal(value, before[name]) for name, value in base.module.state_dict().items())
    with pytest.raises(Misconfigured, match="reads facts"):
        InContextEditor().edit(EditJob(model=base, weights=rig.weights, ledger=rig.ledger, added=edits()))


def test_in_a_chat_the_fact_opens_the_last_turn(tmp_path: Path) -> None:
    rig = make_rig(tmp_path)
    tokenizer = rig.model.tokenizer
    tokenizer.chat_template = "{% for turn in messages %}who {{ turn.content }} . {% endfor %}"
    model = InContextModel(rig.model.module, tokenizer, (), memory(ORACLE, edits()))
    behind = model._with_fact(model.encode_chat(JAPAN), room=1)
    assert behind == model.encode_chat(f"the capital of Japan is Milan.\n{JAPAN}")
    assert model.decode(behind).split()[0] == "who"
    first = ChatTurn(role="user", content="the language")
    talk = ChatPrompt(turns=(first, ChatTurn(role="assistant", content="Bonn"), ChatTurn(role="user", content=JAPAN)))
    told = model.decode(model._with_fact(model.encode_prompt(talk), room=1)).split()
    assert told.count("capital") == 2
    assert told.index("capital") > told.index("Bonn"), "not before the first turn"


def test_an_evaluation_measures_them_beside_an_editor(tmp_path: Path) -> None:
    make_rig(tmp_path / "model")
    (tmp_path / "edits.jsonl").write_bytes(edit_lines(edits()))
    (tmp_path / "text.txt").write_text("\n".join(prior_lines()[:6]))
    words = ["--data", tmp_path / "edits.jsonl", "--edits", 2, "--model", tmp_path / "model", "--free-sample", 1]
    words += ["--text", tmp_path / "text.txt", "--prior-text", tmp_path / "text.txt", "--num-guards", 0]
    words += ["--solver", "context,bm25", "--json", tmp_path / "figures.json"]
    assert evaluate([str(word) for word in words]) == 0
    found = json.loads((tmp_path / "figures.json").read_text())
    assert found["solvers"].keys() == {"context", "bm25"}
    for figures in found["solvers"].values():
        assert figures["active"] == 2
        assert figures["locality_unchanged"] == 0.0, "the neighbour is asked behind the fact, too"
        assert figures["editing"]["passes"] == 0
