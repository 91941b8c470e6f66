"""What `corrigenda ask` uses: a process that keeps snapshots in memory, every digest checked when one is loaded."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr

from editors.weights.loading import load_base
from infra.local.processes import process_id
from pipeline.adapters.login_names import Login
from pipeline.adapters.sql.database.engine import connect
from pipeline.adapters.sql.lineages import SqlLineageStore
from pipeline.choosing import Choice, chosen
from pipeline.computing import computing_environment
from pipeline.config import Settings
from pipeline.domain.errors import (
    CorrigendaError,
    IntegrityBroken,
    InvalidInput,
    LoginRefused,
    Misconfigured,
    Unavailable,
    UnknownLineage,
    UnknownRecord,
    WrongBase,
)
from pipeline.domain.rank_api import LoadPlan
from pipeline.entrypoints import resident
from pipeline.entrypoints.cli.models import _print_answers, _shown_answer
from pipeline.entrypoints.local_settings import asking_environment
from pipeline.storage import stores
from tests.support.paths import ROOT
from tests.support.registry_entries import lineage
from tests.support.served import random_delta
from tests.support.tiny_lineage import make_tiny_lineage
from tests.support.waiting import eventually
from workers.serving.asked_snapshots import AskedSnapshots
from workers.serving.asking import AskingServer
from workers.serving.http_server import bound_socket, serve, url_of

PROMPTS = ["the capital of France is", "who"]


@pytest.fixture(scope="module")
def base_plan(tmp_path_factory: pytest.TempPathFactory) -> LoadPlan:
    return make_tiny_lineage(tmp_path_factory.mktemp("lineage"))


def asked(name: str | None = None, snapshot: str = "champion", **more: Any) -> dict[str, Any]:
    """A question as the command sends it."""
    return {"lineage": name, "snapshot": snapshot, "prompts": PROMPTS, "max_new_tokens": 6, **more}


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
        assert texts(snapshots.answers(plan, PROMPTS, max_new_tokens=6)) == plain
        assert (texts(snapshots.answers(edited, PROMPTS, max_new_tokens=6)) == plain) == (edited is plan)


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
        AskedSnapshots().answers(plan, PROMPTS, max_new_tokens=6, chat=wrong == "chat")


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
    [said, _] = texts(snapshots.answers(base_plan, PROMPTS, max_new_tokens=6))
    [broken, _] = texts(snapshots.answers(base_plan, PROMPTS, max_new_tokens=2))
    model = snapshots._bases.get(base_plan.base, base_plan.editor.inner_params).model
    decode, made = model.decode, []

    def with_lines(tokens: Sequence[int]) -> str:
        made.append(len(tokens))
        text = decode(tokens)
        return text[: len(broken)] + "\n" + text[len(broken) :] if len(tokens) > 2 else text

    monkeypatch.setattr(model, "decode", with_lines)
    [whole, _] = texts(snapshots.answers(base_plan, PROMPTS, max_new_tokens=6))
    assert whole == broken + "\n" + said[len(broken) :]
    made.clear()
    [line, _] = texts(snapshots.answers(base_plan, PROMPTS, max_new_tokens=6, is_one_line=True))
    assert (line, max(made)) == (broken, 3)


def make_lineages(postgres_url: str, **plans: LoadPlan) -> None:
    """Make lineages without a snapshot, each on the base of its plan."""
    engine = connect(postgres_url, "")
    for name, plan in plans.items():
        settings = replace(lineage(name).settings, base=plan.base, editor=plan.editor)
        SqlLineageStore(engine).create(settings, actor="test")
    engine.dispose()


@contextmanager
def answering(choose: Callable[[str | None, str], Choice]) -> Iterator[resident._Resident]:
    """Answers questions in this process."""
    with bound_socket("127.0.0.1", 0) as made:
        server = serve(AskingServer(choose, "a token", idle=timedelta(hours=1)).app(), made)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[made])))
        thread.start()
        try:
            yield resident._Resident(url=url_of(made), token="a token", settings="", process=process_id(os.getpid()))
        finally:
            server.should_exit = True
            thread.join()


def test_what_names_nothing_is_refused_before_torch_is_imported() -> None:
    text = "import sys, workers.serving.asking; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_what_is_meant_is_looked_up_for_each_question_also_after_the_database_was_restarted(
    base_plan: LoadPlan, postgres_url: str, tmp_path: Path, pools_close: None
) -> None:
    settings = Settings(
        database_url=SecretStr(postgres_url), database_role=Login.auditor, artifact_root=tmp_path / "artifacts"
    )
    kept = stores(settings)
    with answering(lambda name, ref: chosen(kept, name, ref)) as server:
        with pytest.raises(InvalidInput, match="expected --lineage, got none and there are 0: none"):
            resident._post(server, json.dumps(asked()))
        make_lineages(postgres_url, tiny=base_plan)
        with psycopg.connect(postgres_url, autocommit=True) as owner:
            # As a server that ends does with whoever is connected.
            ended = owner.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )
            assert ended.rowcount > 0
        plain = load_base(Path(base_plan.base.ref)).generate(PROMPTS, max_new_tokens=6)
        said = resident._post(server, json.dumps(asked()))
        assert (said["lineage"], said["is_unapproved"], texts(said["answers"])) == ("tiny", True, plain)
        assert not resident._post(server, json.dumps(asked("tiny", "base")))["is_unapproved"]
        for name, ref, error in (("none", "base", UnknownLineage), ("tiny", "head", UnknownRecord)):
            with pytest.raises(error):
                resident._post(server, json.dumps(asked(name, ref)))


@pytest.mark.parametrize("kind", [Unavailable, LoginRefused, Misconfigured, UnknownLineage, IntegrityBroken])
def test_what_goes_wrong_in_the_database_is_the_error_that_any_command_has(kind: type[CorrigendaError]) -> None:
    def choose(name: str | None, ref: str) -> Choice:
        raise kind(f"expected something of {name} and {ref}, got nothing")

    with answering(choose) as server, pytest.raises(CorrigendaError) as raised:
        resident._post(server, json.dumps(asked("tiny", "head")))
    assert (type(raised.value), str(raised.value)) == (kind, "expected something of tiny and head, got nothing")


@pytest.mark.slow
def test_the_process_stays_for_the_next_question_and_lets_nobody_else_in(
    base_plan: LoadPlan, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    wrong = replace(base_plan, base=replace(base_plan.base, digest="0" * 64))
    make_lineages(postgres_url, tiny=base_plan, wrong=wrong)
    home, started = tmp_path / "home", list[None]()
    settings = Settings(home=home, database_url=SecretStr(postgres_url), database_role=Login.auditor)
    given = asking_environment(settings)

    def ask(given: dict[str, str], name: str = "tiny") -> Any:
        return resident.answers(home, asked(name), given=given, on_start=lambda: started.append(None))

    plain = load_base(Path(base_plan.base.ref)).generate(PROMPTS, max_new_tokens=6)
    try:
        for _ in range(2):
            assert texts(ask(given)["answers"]) == plain
        assert len(started) == 1
        with pytest.raises(WrongBase, match="expected a base model with the digest 0000"):
            ask(given, "wrong")
        record = home / resident.RECORD
        assert stat.S_IMODE(record.stat().st_mode) == 0o600
        said = json.loads(record.read_text())
        running = resident._running(home)
        assert running is not None
        with pytest.raises(InvalidInput, match="expected this server's token"):
            resident._post(replace(running, token="guessed"), json.dumps(asked("tiny")))
        words = Path(f"/proc/{said['pid']}/cmdline").read_text()
        assert not any(secret in words for secret in (said["token"], said["settings"], postgres_url))

        elsewhere = asking_environment(
            settings.model_copy(update={"database_url": SecretStr("postgresql://a@[::1]:1/b")})
        )
        with pytest.raises(Unavailable, match="the database 'b' at ::1:1 does not answer"):
            ask(elsewhere)
        assert len(started) == 2, "it was not the process of another database that was asked"
        assert process_id(said["pid"]) != running.process
    finally:
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
