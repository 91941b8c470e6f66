"""What `corrigenda ask` uses: a process that keeps snapshots in memory, every digest checked when one is loaded."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from editors.weights.loading import load_base
from pipeline.computing import computing_environment
from pipeline.domain.errors import CorrigendaError, IntegrityBroken, InvalidInput, Misconfigured, WrongBase
from pipeline.domain.rank_api import LoadPlan
from pipeline.entrypoints import resident
from pipeline.entrypoints.cli.models import _print_answers, _shown_answer
from tests.support.paths import ROOT
from tests.support.served import random_delta
from tests.support.tiny_lineage import make_tiny_lineage
from tests.support.waiting import eventually
from workers.serving.asking import AskedSnapshots

PROMPTS = ["the capital of France is", "who"]


@pytest.fixture(scope="module")
def base_plan(tmp_path_factory: pytest.TempPathFactory) -> LoadPlan:
    return make_tiny_lineage(tmp_path_factory.mktemp("lineage"))


def asked(plan: LoadPlan, **more: Any) -> dict[str, Any]:
    return {"plan": json.loads(json.dumps(asdict(plan))), "prompts": PROMPTS, "max_new_tokens": 6, **more}


def texts(answers: list[dict[str, str]]) -> list[str]:
    assert [answer["prompt"] for answer in answers] == PROMPTS
    return [answer["text"] for answer in answers]


def with_delta(plan: LoadPlan, path: Path) -> LoadPlan:
    """The plan of a snapshot whose one delta is large enough to change every answer."""
    delta = random_delta(load_base(Path(plan.base.ref), plan.editor.inner_params), path, seed=0)
    return replace(plan, deltas=(delta,), digest=delta.digest)


@pytest.mark.parametrize("name", ["llama", "t5", "bert"])
def test_snapshots_of_every_family_are_asked_in_turn(tmp_path: Path, name: str) -> None:
    plan = make_tiny_lineage(tmp_path, name)
    edited = with_delta(plan, tmp_path / "delta.safetensors") if plan.base.task == "causal" else plan
    plain = load_base(Path(plan.base.ref), task=plan.base.task).generate(PROMPTS, max_new_tokens=6)
    snapshots = AskedSnapshots()
    for _ in range(2):
        assert texts(snapshots.answers(asked(plan))) == plain
        assert (texts(snapshots.answers(asked(edited))) == plain) == (edited is plan)


@pytest.mark.parametrize(("wrong", "error"), [("base", WrongBase), ("delta", IntegrityBroken), ("chat", Misconfigured)])
def test_what_cannot_be_loaded_or_asked_is_an_error_of_its_own(
    base_plan: LoadPlan, tmp_path: Path, wrong: str, error: type[CorrigendaError]
) -> None:
    plan = with_delta(base_plan, tmp_path / "delta.safetensors")
    if wrong == "base":
        plan = replace(plan, base=replace(plan.base, digest="0" * 64))
    elif wrong == "delta":
        plan = replace(plan, deltas=(replace(plan.deltas[0], digest="0" * 64),))
    with pytest.raises(error, match="expected"):
        AskedSnapshots().answers(asked(plan, chat=wrong == "chat"))


def test_an_empty_answer_is_said_to_be_one() -> None:
    assert [_shown_answer(text) for text in ("", " \n", " Paris")] == [
        "(the model answered nothing: end of text)",
        "(nothing but blanks)",
        "Paris",
    ]


def test_answers_of_a_line_are_a_table_and_longer_ones_are_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    _print_answers([("Who?", "Ada."), ("Where is it?", "In London.")])
    _print_answers([("Who?", "Ada.\n\nShe wrote\n  it."), ("Where is it?", "In London.")])
    table = "prompt        answer\nWho?          Ada.\nWhere is it?  In London.\n"
    blocks = "Who?\n  Ada.\n\n  She wrote\n    it.\n\nWhere is it?\n  In London.\n\n"
    printed = capsys.readouterr().out
    assert "\n".join(line.rstrip() for line in printed.split("\n")) == table + blocks


def test_an_answer_that_is_asked_for_its_first_line_makes_no_token_after_it(
    base_plan: LoadPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshots = AskedSnapshots()
    [said, _] = texts(snapshots.answers(asked(base_plan)))
    [broken, _] = texts(snapshots.answers(asked(base_plan, max_new_tokens=2)))
    model = snapshots._bases.get(base_plan.base, base_plan.editor.inner_params).model
    decode, made = model.decode, []

    def with_lines(tokens: Sequence[int]) -> str:
        made.append(len(tokens))
        text = decode(tokens)
        return text[: len(broken)] + "\n" + text[len(broken) :] if len(tokens) > 2 else text

    monkeypatch.setattr(model, "decode", with_lines)
    [whole, _] = texts(snapshots.answers(asked(base_plan)))
    assert whole == broken + "\n" + said[len(broken) :]
    made.clear()
    [line, _] = texts(snapshots.answers(asked(base_plan, is_one_line=True)))
    assert (line, max(made)) == (broken, 3)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("home")
    yield folder
    resident.stop(folder)


@pytest.mark.slow
def test_the_process_stays_for_the_next_question_and_lets_nobody_else_in(
    base_plan: LoadPlan, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    started: list[None] = []
    plain = load_base(Path(base_plan.base.ref)).generate(PROMPTS, max_new_tokens=6)
    for _ in range(2):
        found = resident.answers(home, asked(base_plan), on_start=lambda: started.append(None))
        assert texts(found) == plain
    assert len(started) == 1
    wrong = asked(replace(base_plan, base=replace(base_plan.base, digest="0" * 64)))
    with pytest.raises(WrongBase, match="expected a base model with the digest 0000"):
        resident.answers(home, wrong)
    record = home / resident.RECORD
    assert stat.S_IMODE(record.stat().st_mode) == 0o600
    said = json.loads(record.read_text())
    running = resident._running(home)
    assert running is not None
    with pytest.raises(InvalidInput, match="expected this server's token"):
        resident._post(replace(running, token="guessed"), json.dumps(asked(base_plan)))
    assert said["token"] not in Path(f"/proc/{said['pid']}/cmdline").read_text()
    assert resident.stop(home)
    assert not resident.stop(home)
    assert not record.exists()


@pytest.mark.slow
def test_the_process_ends_when_nobody_asks(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "workers.serving.asking", str(tmp_path), "--idle", "0.1"]
    child = subprocess.Popen(argv, cwd=ROOT, env=computing_environment(dict(os.environ)))
    eventually(lambda: child.poll() is not None, "the process to end")
    assert child.returncode == 0
    assert not (tmp_path / resident.RECORD).exists()


def test_a_record_of_a_process_that_is_gone_is_not_followed(tmp_path: Path) -> None:
    said = {"url": "http://127.0.0.1:9", "token": "x", "pid": os.getpid(), "birth": "of another"}
    (tmp_path / resident.RECORD).write_text(json.dumps(said))
    assert resident._running(tmp_path) is None
    (tmp_path / resident.RECORD).write_text("no JSON")
    assert not resident.stop(tmp_path)
