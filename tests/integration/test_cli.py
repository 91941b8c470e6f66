"""The commands on a real database and a real broker: what they print, refuse and leave alone. No model is loaded."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from typer.testing import CliRunner, Result

from infra.local import LocalStack
from pipeline.adapters.kafka.source import KafkaSource
from pipeline.adapters.sql.database.engine import connect
from pipeline.adapters.sql.intake import SqlIntakeStore
from pipeline.adapters.sql.partitions import SqlPartitionHolds
from pipeline.choosing import chosen
from pipeline.config import Settings
from pipeline.domain.contract.messages import Message, ParsedMessage, Poll
from pipeline.domain.lineages import Work
from pipeline.domain.prompts import ChatTurn
from pipeline.domain.rank_api import Step
from pipeline.domain.review.approvals import Decision
from pipeline.entrypoints.cli import lineage as lineage_commands
from pipeline.entrypoints.cli import stack as stack_commands
from pipeline.entrypoints.cli.app import app
from pipeline.entrypoints.console import ExitCode
from pipeline.entrypoints.local_settings import current_settings
from pipeline.services.intake import Intake
from pipeline.storage import stores
from tests.support.factories import make_request
from tests.support.intake_parts import (
    correction,
    encoded,
    intake_settings,
    make_lineage,
    produce,
    request_ids,
    run_until,
)
from tests.support.ledger_parts import prior_lines
from tests.support.store_rig import StoreRig
from tests.support.tiny_editors import ANSWER, SUBJECT, tiny_editor
from tests.support.tiny_models import TEXT, save_tiny_llama
from tests.support.waiting import patience

Command = Callable[..., Result]
HOSTILE = "a [/b] [bold]x \x1b[31m"


def answers_without_a_model(home: Path, asked: Mapping[str, Any], *, given: Mapping[str, str], **_: Any) -> Any:
    """Stands in for the process behind `ask`: looks up what is meant, with the settings that the process is given."""
    own = {
        name.removeprefix("CORRIGENDA_").lower(): text for name, text in given.items() if name.startswith("CORRIGENDA_")
    }
    choice = chosen(stores(Settings.model_validate(own)), asked["lineage"], asked["snapshot"])
    answers = [{"prompt": prompt, "text": "a"} for prompt in asked["prompts"]]
    return {"lineage": choice.plan.lineage, "is_unapproved": choice.is_unapproved, "answers": answers}


@pytest.fixture
def corrigenda(postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pools_close: None) -> Command:
    """Runs a command in this process on the database of this test, which has the lineage `facts`."""
    make_lineage(postgres_url)
    for name in [name for name in os.environ if name.startswith("CORRIGENDA_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CORRIGENDA_DATABASE_URL", postgres_url)
    monkeypatch.setenv("CORRIGENDA_DATABASE_ROLE", "corrigenda_console")
    monkeypatch.setenv("CORRIGENDA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CORRIGENDA_ARTIFACT_ROOT", str(tmp_path / "artifacts"))
    monkeypatch.setattr("pipeline.entrypoints.resident.answers", answers_without_a_model)
    return lambda *words, **more: CliRunner().invoke(app, list(words), **more)


@pytest.fixture
def rig(postgres_url: str, tmp_path: Path) -> Iterator[StoreRig]:
    """The stores of the same database, to put edits there."""
    made = StoreRig(url=postgres_url, folder=tmp_path)
    yield made
    made.close()


def one_sentence(result: Result) -> bool:
    return result.stderr.startswith("corrigenda: expected ") and result.stderr.count("\n") == 1 and not result.stdout


def test_a_lineage_is_made_on_a_trained_editor(corrigenda: Command, tmp_path: Path) -> None:
    save_tiny_llama(tmp_path / "model", hidden=32, mlp=32)
    tiny_editor(tmp_path / "model").save(tmp_path / "editor")
    digest = tiny_editor(tmp_path / "model").digest
    contents = {"text": TEXT, "prior-text": "\n".join(prior_lines()), "suite": '{"prompt": "Berlin is a city in"}'}
    given = ["--model", str(tmp_path / "model"), "--task", "causal", "--editor", str(tmp_path / "editor")]
    for option, content in contents.items():
        (tmp_path / option).write_text(content)
        given += [f"--{option}", str(tmp_path / option)]
    made = corrigenda("lineage", "create", "trained", *given, env={"CORRIGENDA_CACHE": str(tmp_path / "cache")})
    assert made.exit_code == 0, made.stderr
    assert f"editor: editor, digest {digest[:12]}, solver recursive" in made.stdout
    assert f"edits {SUBJECT}, {ANSWER}" in made.stdout
    listed = json.loads(corrigenda("lineage", "list", "--json").stdout)
    assert [one["editor"]["digest"] for one in listed if one["settings"]["name"] == "trained"] == [digest]


def test_the_gate_policy_of_a_lineage_is_shown_and_changed(corrigenda: Command) -> None:
    shown = corrigenda("lineage", "policy", "show", "facts").stdout
    assert re.search(r"generalization_min +minimum +0.1 ", shown)
    assert re.search(r"edit_locality_kl_max +maximum +0.5 ", shown)
    change = ("lineage", "policy", "set", "facts", "free_success_min=0.75", "chat_success_min=off", "--reason", "why")
    done = corrigenda(*change)
    assert done.exit_code == ExitCode.done, done.stderr
    assert "free_success_min, a minimum: 0.5 -> 0.75\n" in done.stdout
    assert "is so already" in corrigenda(*change).stdout
    found = json.loads(corrigenda("lineage", "policy", "show", "facts", "--json").stdout)
    [row] = [row for row in found["bounds"] if row["key"] == "free_success_min"]
    assert (row["value"], row["default"], row["direction"], found["policy"]["free_success_min"]) == (
        0.75,
        "0.5",
        "minimum",
        0.75,
    )
    assert "lineage:policy_changed" in corrigenda("audit", "show", "facts").stdout


def test_ask_says_that_nothing_is_approved_yet_beside_the_answer(corrigenda: Command) -> None:
    asked = corrigenda("ask", "p", "--json")
    assert json.loads(asked.stdout) == [{"prompt": "p", "text": "a"}]
    assert asked.stderr == "nothing of facts is approved yet, so this is its base\n"
    assert corrigenda("ask", "p", "--snapshot", "base").stderr == ""


def test_of_a_long_prompt_its_end_is_shown_beside_the_answer(corrigenda: Command) -> None:
    prompt = "The river is long. " * 600 + "The capital of Mali is"
    assert json.loads(corrigenda("ask", prompt, "--json").stdout)[0]["prompt"] == prompt
    shown = corrigenda("ask", prompt).stdout
    assert "The capital of Mali is" in shown
    assert len(shown) < 1_000


@pytest.mark.parametrize(
    "line",
    [
        "lineage policy show nope",
        "lineage policy set nope free_success_min=1 --reason r",
        "lineage policy set facts nope=1 --reason r",
        "lineage policy set facts free_success_min --reason r",
        "lineage policy set facts free_success_min=1 free_success_min=0 --reason r",
        "lineage policy set facts free_success_min=2 --reason r",
        "status -l nope",
        "edits --status nope",
        "edits -l a/b",
        "show nope",
        "show \udcff",
        "show 99999999999999999999",
        "show champion",
        "approve 99",
        "approve head",
        "reject nope",
        "rollback 1",
        "revert nope",
        "ask --snapshot nope x",
        "audit show nope",
        "audit verify nope",
        "audit export facts --out /nope/file",
        "dead-letters replay nope",
        "lineage resume nope",
        "lineage create facts",
        "lineage create a/b",
        "lineage create system",
        "lineage create other --task poetry",
        "prune --older-than soon",
        "prune --older-than 10m",
        "submit",
        "submit -l nope --prompt a --target b",
        "submit -l facts --prompt  --target b",
        "submit -l facts --prompt a --target ",
        "submit /nope",
        "submit /",
        "submit /nope --prompt a --target b",
    ],
)
def test_what_names_nothing_is_wrong_input_and_one_sentence(corrigenda: Command, line: str) -> None:
    result = corrigenda(*line.split(" "))

    assert result.exit_code == ExitCode.usage, result.output
    assert one_sentence(result) or "\udcff" in line, result.output


def test_what_a_ledger_owes_is_asked_for_once_shown_and_refused_where_there_is_nothing(
    corrigenda: Command, rig: StoreRig
) -> None:
    for words in ("rekey nope", "rekey facts", "rekey facts --keep-keys", "rekey facts --undo 1", "upkeep nope"):
        result = corrigenda("lineage", *words.split(), env={"COLUMNS": "1000"})
        assert result.exit_code == ExitCode.usage, words
        assert one_sentence(result), result.output
    rig.correct("e1")
    rig.commit_batch(rig.acquire())
    none = corrigenda("lineage", "rekey", "facts", "--undo", "1", env={"COLUMNS": "1000"})
    assert none.exit_code == ExitCode.usage
    assert "whose ledger was solved anew, got 1, which was not" in none.stderr
    assert "both" not in corrigenda("lineage", "upkeep", "facts", "--rekey-every", "5").stderr
    asked = corrigenda("lineage", "rekey", "facts", "--strength", "1500", "--reason", "a long stream")
    assert asked.stdout.startswith("owed: a candidate of facts with keys read again and prior strength 1500")
    again = corrigenda("lineage", "rekey", "facts")
    assert again.exit_code == ExitCode.done
    assert again.stdout.startswith("nothing new is owed")
    told = " ".join(corrigenda("status", env={"COLUMNS": "1000"}).stdout.split())
    assert "facts: upkeep: keys are read again every 5 edits; the prior's strength stays" in told
    assert "keys read again and prior strength 1500, asked by cli:" in told
    assert "(claimed): a long stream" in told
    [row] = json.loads(corrigenda("status", "--json").stdout)["lineages"]
    assert (row["prior_strength"], row["upkeep"]["rekey_every"], row["ledger"]["rekeyed_seq"]) == (1000.0, 5, None)
    assert [one["reason"] for one in row["ledger"]["owed"]] == ["a long stream"]


@pytest.mark.parametrize("words", ["edits --limit 0", "edits --limit x", "audit show facts --after 9" + "9" * 30])
def test_numbers_outside_their_range_are_wrong_input(corrigenda: Command, words: str) -> None:
    assert corrigenda(*words.split()).exit_code == ExitCode.usage


def test_a_reason_that_nobody_would_read_is_refused(corrigenda: Command) -> None:
    assert corrigenda("approve", "head", "--reason", "x" * 1001).exit_code == ExitCode.usage


def test_a_name_that_cannot_be_had_is_refused_before_anything_is_measured(
    corrigenda: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lineage_commands, "prepare_base", lambda *args, **kwargs: pytest.fail("the base was measured"))

    assert corrigenda("lineage", "create", "facts").exit_code == ExitCode.usage


@pytest.mark.parametrize(
    "words",
    [
        "status",
        "edits",
        "snapshots",
        "lineage list",
        "audit show facts",
        "audit verify --no-mlflow",
        "dead-letters list",
        "show e1",
    ],
)
def test_what_can_be_read_is_valid_json_and_nothing_else(corrigenda: Command, rig: StoreRig, words: str) -> None:
    rig.correct("e1", target=HOSTILE)

    result = corrigenda(*words.split(), "--json")

    assert result.exit_code == ExitCode.done, result.output
    assert json.loads(result.stdout) is not None
    assert result.stderr == ""


def test_a_hostile_correction_is_listed_and_steers_nothing(corrigenda: Command, rig: StoreRig) -> None:
    rig.submit(
        make_request(
            "e1", prompt=HOSTILE, target_new=HOSTILE, messages=(ChatTurn(role="user", content=HOSTILE),), answer=HOSTILE
        )
    )

    for words in (["edits"], ["show", "e1"]):
        result = corrigenda(*words)
        assert result.exit_code == ExitCode.done, result.output
        assert "[/b] [bold]x \\x1b[31m" in result.stdout
        assert "\x1b" not in result.stdout


@pytest.mark.parametrize("words", ["e1 --reason mended", "--all", "--all --because OF"])
def test_a_dead_edit_is_taken_back_once(corrigenda: Command, rig: StoreRig, words: str) -> None:
    edit_id = rig.correct("e1")
    rig.claim(lease := rig.acquire())
    rig.queue.release(lease, [edit_id], reason="EngineFailed: out of memory", max_attempts=1)

    result = corrigenda("retry", *words.split(), "--json")
    assert result.exit_code == ExitCode.done, result.output
    assert json.loads(result.stdout) == {"lineage": "facts", "retried": [edit_id], "left": {}}
    assert rig.status(edit_id) == "received"
    again = corrigenda("retry", "e1")
    assert again.exit_code == ExitCode.done
    assert again.stdout.splitlines() == [
        f"left as it is: {edit_id}, which is received",
        "0 dead edits of facts wait to be tried again",
    ]


@pytest.mark.parametrize("words", ["", "e1 --all", "e1 --because x", "--because x", "nobody"])
def test_a_retry_of_nothing_or_of_two_things_is_wrong_input(corrigenda: Command, rig: StoreRig, words: str) -> None:
    rig.correct("e1")
    result = corrigenda("retry", *words.split())
    assert result.exit_code == ExitCode.usage
    assert one_sentence(result)


def test_an_exported_chain_has_every_line(corrigenda: Command, rig: StoreRig, tmp_path: Path) -> None:
    rig.correct("e1")
    file = tmp_path / "facts.jsonl"

    assert corrigenda("audit", "export", "facts", "--out", str(file)).exit_code == ExitCode.done
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [line["seq"] for line in lines] == list(range(1, rig.audit.head("facts")[0] + 1))


def test_settings_that_cannot_work_are_told_from_a_database_that_is_away(
    corrigenda: Command, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = urlsplit(postgres_url)
    wrong = parts._replace(netloc=f"{parts.username}:wrong@{parts.hostname}:{parts.port}").geturl()
    away = parts._replace(netloc=f"{parts.username}:x@127.0.0.1:1").geturl()

    for url, status in ((wrong, 3), ("nonsense", 3), ("mysql://x", 3), (away, 4)):
        monkeypatch.setenv("CORRIGENDA_DATABASE_URL", url)
        result = corrigenda("status")
        assert result.exit_code == status, result.output
        assert result.stderr.count("\n") == 1
        assert "wrong@" not in result.stderr


def test_a_file_is_sent_but_for_the_lines_that_can_never_be_edits(
    corrigenda: Command,
    postgres_url: str,
    kafka_bootstrap: str,
    new_topic: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    topic = new_topic()
    monkeypatch.setenv("CORRIGENDA_KAFKA_BOOTSTRAP", kafka_bootstrap)
    monkeypatch.setenv("CORRIGENDA_REQUESTS_TOPIC", topic)
    bad = [
        correction("empty", prompt=""),
        correction("nul", prompt="a\x00b"),
        correction("typed", prompt=5),
        correction("naive", occurred_at="2026-01-01T00:00:00"),
        correction("early", occurred_at="0001-01-01T00:00:00+14:00"),
        correction("stray", lineage="nowhere"),
        correction("huge", prompt="x" * 2_000_000),
    ]
    twice = json.dumps(correction("twice")).replace('"target_new"', '"target_new": "Perth", "target_new"', 1)
    # A line separator of Unicode is a character of a JSON string, not the end of a line.
    good = [correction("e1", prompt="The sea\u2028is"), correction("e2", occurred_at="2026-01-01T00:00:00+05:30")]
    file = tmp_path / "corrections.jsonl"
    lines = [json.dumps(document, ensure_ascii=False) for document in (good[0], *bad, good[1])] + [twice]
    file.write_text("\ufeff" + "\r\n".join(lines) + "\n\n", encoding="utf-8")

    result = corrigenda("submit", str(file), "--json")
    told = json.loads(result.stdout)
    produce(kafka_bootstrap, topic, [*(encoded(document) for document in bad[:-1]), twice.encode()])
    settings = intake_settings(postgres_url, kafka_bootstrap, topic)
    engine = connect(postgres_url, settings.database_role)
    store = SqlIntakeStore(engine)
    with KafkaSource(settings, SqlPartitionHolds(engine)) as source:
        counts = run_until(Intake(source=source, store=store), len(good) + len(bad))
    letters = json.loads(corrigenda("dead-letters", "list", "--json").stdout)
    again = corrigenda("dead-letters", "replay", letters[0]["dead_letter_id"], "--with", str(file))
    engine.dispose()

    assert result.exit_code == ExitCode.usage
    assert told["sent"] == ["e1", "e2"]
    assert again.exit_code == ExitCode.usage
    assert [refusal["line"] for refusal in told["refused"]] == [2, 3, 4, 5, 6, 7, 8, 10]
    assert request_ids(postgres_url) == ["e1", "e2"]
    assert (counts.received, counts.refused) == (2, 7)
    assert [letter["error"] for letter in reversed(letters)] == [r["error"] for r in told["refused"] if r["line"] != 8]
    assert "duplicate field 'target_new'" in letters[0]["error"]


def test_a_correction_in_options_may_come_as_a_chat(
    corrigenda: Command,
    postgres_url: str,
    kafka_bootstrap: str,
    new_topic: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    topic = new_topic()
    monkeypatch.setenv("CORRIGENDA_KAFKA_BOOTSTRAP", kafka_bootstrap)
    monkeypatch.setenv("CORRIGENDA_REQUESTS_TOPIC", topic)
    turns = ("system:Be brief.", "Who was pope?", "assistant: Francis: the first.", "user: And now: who?")
    words = [word for turn in turns for word in ("--message", turn)]
    named = ("--subject", "pope", "--alias", "Holy Father", "--alias", "Pontiff", "--question", "Who is the pope?")
    for answers in ((), ("--answer", "Pope Leo", "--target", "Francis")):
        assert corrigenda("submit", *words, *answers).exit_code == ExitCode.usage
    assert corrigenda("submit", "--answer", "Leo").exit_code == ExitCode.usage

    sent = corrigenda("submit", *words, *named, "--answer", "It is Leo.", "--target", "Leo", "--request-id", "c1")
    assert sent.exit_code == ExitCode.done, sent.output
    settings = intake_settings(postgres_url, kafka_bootstrap, topic)
    engine = connect(postgres_url, settings.database_role)
    store = SqlIntakeStore(engine)
    with KafkaSource(settings, SqlPartitionHolds(engine)) as source:
        run_until(Intake(source=source, store=store), 1)
    engine.dispose()
    row = json.loads(corrigenda("show", "c1", "--json").stdout)
    shown = corrigenda("show", "c1").stdout

    assert row["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who was pope?"},
        {"role": "assistant", "content": "Francis: the first."},
        {"role": "user", "content": "And now: who?"},
    ]
    assert (row["prompt"], row["answer"], row["target_new"]) == ("And now: who?", "It is Leo.", "Leo")
    assert (row["question"], row["aliases"]) == ("Who is the pope?", ["Holy Father", "Pontiff"])
    assert "assistant: Francis: the first." in shown
    assert "Holy Father" in shown


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "[1]\n", "[" * 100_000, '{"a":' * 100_000])
def test_a_file_that_is_no_jsonl_is_not_sent_at_all(
    corrigenda: Command, tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORRIGENDA_KAFKA_BOOTSTRAP", "127.0.0.1:1")
    file = tmp_path / "x.jsonl"
    file.write_text(text, encoding="utf-8")

    result = corrigenda("submit", str(file))

    assert result.exit_code == ExitCode.usage, result.output
    assert one_sentence(result)


def test_lines_are_filled_in_sent_once_and_told_where_they_are_none(
    corrigenda: Command,
    postgres_url: str,
    kafka_bootstrap: str,
    new_topic: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    topic = new_topic()
    monkeypatch.setenv("CORRIGENDA_KAFKA_BOOTSTRAP", kafka_bootstrap)
    monkeypatch.setenv("CORRIGENDA_REQUESTS_TOPIC", topic)
    bare = {"prompt": "The capital of Australia is", "target_new": "Canberra"}
    named = {"request_id": "n1", "prompt": "The capital of Peru is", "target_new": "Lima"}
    whole = {"request_id": "w1", "prompt": "The euro is used in", "target_new": "Malta"}
    whole |= {"occurred_at": "2026-01-01T00:00:00Z"}
    lines = [json.dumps(line).encode() for line in (bare, named, whole, bare)]
    file = tmp_path / "x.jsonl"
    other = json.dumps(named | {"target_new": "Cuzco"}).encode()
    file.write_bytes(b"\n".join([*lines[:2], b"{", b"[1]", b"\xff\xfe", *lines[2:], other]))

    refused = corrigenda("submit", str(file), "--strict", "--json")
    first = corrigenda("submit", str(file), "--json")
    settings = intake_settings(postgres_url, kafka_bootstrap, topic)
    engine = connect(postgres_url, settings.database_role)
    with KafkaSource(settings, SqlPartitionHolds(engine)) as source:
        counts = run_until(Intake(source=source, store=SqlIntakeStore(engine)), 3)
    engine.dispose()
    file.write_bytes(b"\n".join(lines[:2]))
    again = corrigenda("submit", str(file), "--json")
    file.write_text(json.dumps(named | {"target_new": "Cuzco"}), encoding="utf-8")
    changed = corrigenda("submit", str(file))
    row = json.loads(corrigenda("edits", "--json").stdout)[0]

    assert (refused.exit_code, json.loads(refused.stdout)["sent"]) == (ExitCode.usage, [])
    assert first.exit_code == ExitCode.usage
    told = json.loads(first.stdout)
    made_up = told["sent"][0]
    assert told["sent"] == [made_up, "n1", "w1"]
    assert made_up.startswith("line-")
    assert [refusal["line"] for refusal in told["refused"]] == [3, 4, 5, 8]
    assert told["sent_before"] == [{"line": 7, "request_id": made_up}]
    assert (counts.received, counts.refused) == (3, 0)
    assert (again.exit_code, json.loads(again.stdout)["sent"]) == (ExitCode.done, [])
    assert [one["line"] for one in json.loads(again.stdout)["sent_before"]] == [1, 2]
    assert (changed.exit_code, "expected another request_id" in changed.stderr) == (ExitCode.usage, True)
    assert row["submitted_by"].startswith("cli:")
    assert row["submitted_by"].endswith("(claimed)")


def test_waiting_for_a_correction_ends_with_its_verdict(corrigenda: Command, rig: StoreRig, tmp_path: Path) -> None:
    ahead = tmp_path / "ahead.jsonl"
    rig.correct("e1")
    rig.commit_batch(rig.acquire())
    rig.query("UPDATE snapshots SET registry_version = '7'")

    class Sent:
        def publish(self, topic: str, **_: object) -> None:
            """Takes it; the database has it already."""

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("pipeline.entrypoints.cli.submitting.publisher", lambda _: nullcontext(Sent()))
        known = ("submit", "--request-id", "e1", "--prompt", "The capital of e1 is", "--target")
        waited = corrigenda(*known, "Canberra", "--wait", "--json")
        other = corrigenda(*known, "Sydney", "--wait")
        ahead.write_text('{"prompt": "a", "target_new": "b", "occurred_at": "2990-01-01T00:00:00Z"}\n')
        dated = corrigenda("submit", str(ahead), "--wait")
        late = corrigenda("submit", "--prompt", "a", "--target", "b", "--request-id", "no", "--wait", "--timeout", "1")

    assert waited.exit_code == ExitCode.done, waited.output
    assert [(edit["request_id"], edit["state"]) for edit in json.loads(waited.stdout)["edits"]] == [("e1", "candidate")]
    assert json.loads(waited.stdout)["sent"] == []
    assert (other.exit_code, "expected another request_id" in other.stderr) == (ExitCode.usage, True)
    assert (dated.exit_code, "line 1: occurred_at: expected" in dated.stderr) == (ExitCode.usage, True)
    assert late.exit_code == ExitCode.unavailable
    assert "on its way to intake" in late.stderr
    assert "expected a verdict on no in time" in late.stderr


def test_status_says_what_a_worker_does_and_what_waits_for_approval(corrigenda: Command, rig: StoreRig) -> None:
    rig.correct("e1")
    lease = rig.acquire()
    rig.commit_batch(lease)
    rig.leases.note(lease, Work(kind="editing", num_edits=2, step=Step(name="pass", done=3, of=12)), begins=True)

    busy = json.loads(corrigenda("status", "--json").stdout)["lineages"][0]
    shown = corrigenda("status").stdout
    rig.leases.release(lease)
    idle = json.loads(corrigenda("status", "--json").stdout)["lineages"][0]

    assert busy["doing"].startswith("editing a batch of 2 edits, pass 3 of at most 12, ")
    assert busy["activity"]["owner"] == lease.owner
    assert "snapshot 1 waits for approval since" in shown
    assert (idle["doing"], [one["seq"] for one in idle["waiting"]]) == (None, [1])
    assert corrigenda("status", "--watch", "--json").exit_code == ExitCode.usage


def test_up_and_status_link_the_newest_candidates_version_else_the_newest(
    corrigenda: Command, rig: StoreRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORRIGENDA_MLFLOW_URI", "http://127.0.0.1:5000")
    settings, started = current_settings(), LocalStack(rig.folder / "home")
    monkeypatch.setattr(stack_commands, "start_stack", lambda *_: (started, settings))
    for name in ("start_intake", "start_control_worker", "start_web", "start_edit_worker", "start_supervisor"):
        monkeypatch.setattr(stack_commands, name, lambda *_, **__: "http://127.0.0.1:8080")
    monkeypatch.setattr(stack_commands, "is_answering", lambda *_, **__: True)

    def printed(command: str) -> set[str]:
        shown = corrigenda(command, env={"COLUMNS": "1000"})
        assert shown.exit_code == ExitCode.done, shown.output
        return set(re.findall(r"#/models/facts(\S*)\?", shown.stdout))

    lease = rig.acquire()
    assert (printed("up"), printed("status")) == ({""}, set())
    made = []
    for request_id in ("e1", "e2", "e3"):
        rig.correct(request_id)
        made.append(rig.commit_batch(lease))
    assert (printed("up"), printed("status")) == ({""}, set()), "nothing is in MLflow yet"
    for version, snapshot in enumerate(made[:2], start=1):
        rig.mirror.registered(snapshot.snapshot_id, version=str(version))
    assert printed("up") == {"/versions/2"}
    assert printed("status") == {"/versions/1", "/versions/2"}, "every candidate has its own"
    rig.mirror.registered(made[2].snapshot_id, version="3")
    assert rig.decide(made[2], Decision.rejected).is_accepted
    assert printed("up") == {"/versions/2"}, "the candidate that waits, below one that was rejected"
    assert rig.decide(made[1], Decision.approved).is_accepted
    assert (printed("up"), printed("status")) == ({"/versions/3"}, {"/versions/3"}), "nothing waits"
    [row] = json.loads(corrigenda("status", "--json").stdout)["lineages"]
    assert (row["newest_version"]["seq"], row["newest_version"]["status"]) == (3, "rejected")


def test_doctor_says_what_is_held_and_whether_the_schema_is_the_newest(corrigenda: Command, rig: StoreRig) -> None:
    rig.lineages.hold("facts", reason="saturated: perplexity", actor="worker:a")

    checked = corrigenda("doctor", "--json")

    rows = {row["check"]: row for row in json.loads(checked.stdout)}
    assert checked.exit_code == ExitCode.unavailable
    assert rows["schema"]["ok"], rows["schema"]
    assert (rows["lineages"]["ok"], rows["lineages"]["detail"]) == (False, "facts is held: saturated: perplexity")


def test_the_database_is_asked_with_a_login_that_only_reads(corrigenda: Command, rig: StoreRig) -> None:
    rig.correct("e1")

    asked = corrigenda("sql", "SELECT request_id, 'a:b' AS text FROM edit_history", "--json")

    assert json.loads(asked.stdout) == [{"request_id": "e1", "text": "a:b"}]
    for wrong in ("SELECT nope", "DELETE FROM audit_events"):
        result = corrigenda("sql", wrong)
        assert (result.exit_code, result.stderr.count("\n")) == (ExitCode.usage, 1), result.output


def test_psql_is_opened_with_the_login_of_a_query_or_says_as_everywhere_why_it_cannot(
    corrigenda: Command, rig: StoreRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[dict[str, str]] = []
    monkeypatch.setattr("pipeline.entrypoints.cli.sql.os.execve", lambda path, words, given: opened.append(given))
    assert corrigenda("sql").exit_code == ExitCode.done
    assert opened[0]["PGOPTIONS"] == "-c role=corrigenda_console"
    monkeypatch.setenv("CORRIGENDA_DATABASE_URL", "postgresql://corrigenda_auditor:x@127.0.0.1:1/none")
    away = corrigenda("sql")
    assert (away.exit_code, away.stderr.count("\n"), len(opened)) == (ExitCode.unavailable, 1, 1)


def test_logs_are_shown_by_process_and_as_sentences(corrigenda: Command, tmp_path: Path) -> None:
    folder = tmp_path / "home" / "logs"
    assert corrigenda("logs").exit_code == ExitCode.misconfigured
    folder.mkdir(parents=True)
    event = {"event": "poll_recorded", "received": 1, "level": "info", "timestamp": "2026-11-28T12:00:00Z"}
    (folder / "intake.log").write_text(f"first\n{json.dumps(event)}\n", encoding="utf-8")
    (folder / "kafka.log").write_text("ready \x1b[31m\n", encoding="utf-8")

    every = corrigenda("logs", "-n", "1").stdout.splitlines()
    one = corrigenda("logs", "int").stdout.splitlines()

    assert every[0].startswith("intake  ")
    assert every[0].endswith("info    poll_recorded  received=1")
    assert every[1] == "kafka   ready \\x1b[31m"
    assert one[0] == "first"
    assert json.loads(corrigenda("logs", "intake", "--raw", "-n", "1").stdout) == event
    assert corrigenda("logs", "nobody").exit_code == ExitCode.usage


def test_logs_of_several_processes_are_merged_by_time(corrigenda: Command, tmp_path: Path) -> None:
    folder = tmp_path / "home" / "logs"
    folder.mkdir(parents=True)
    told = [
        json.dumps({"event": name, "level": "info", "timestamp": f"2026-11-28T12:00:0{at}Z"})
        for name, at in (("a", 1), ("b", 5))
    ]
    (folder / "intake.log").write_text("\n".join(told) + "\n", encoding="utf-8")
    said = (
        "2026-11-28 12:00:03.126 UTC [7] ERROR:  no such row\n\tin a query\n2026-11-28 12:00:06.126 UTC [7] LOG:  up\n"
    )
    (folder / "postgres.log").write_text(said, encoding="utf-8")
    names = [line.split()[0] for line in corrigenda("logs").stdout.splitlines()]
    assert names == ["intake", "postgres", "postgres", "intake", "postgres"]


def test_a_correction_that_no_broker_took_can_be_sent_again_under_its_id(
    corrigenda: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORRIGENDA_KAFKA_BOOTSTRAP", "127.0.0.1:1")

    result = corrigenda("submit", "--prompt", "a", "--target", "b")

    assert result.exit_code == ExitCode.unavailable
    assert "sending again is safe: with --request-id cli-" in result.stderr


def test_a_line_changed_behind_our_back_makes_verify_say_no(corrigenda: Command, rig: StoreRig) -> None:
    rig.correct("e1")
    forge = "ALTER TABLE audit_events DISABLE TRIGGER ALL; UPDATE audit_events SET actor = 'x' WHERE seq = 2"
    with psycopg.connect(rig.url) as owner:
        owner.execute(forge.encode())

    result = corrigenda("audit", "verify")
    exported = corrigenda("audit", "export", "facts")

    assert result.exit_code == ExitCode.failed
    assert "facts: broken at line 2" in result.stderr
    assert exported.exit_code == ExitCode.failed
    assert "facts: broken at line 2" in exported.stderr
    assert len(exported.stdout.splitlines()) == rig.audit.head("facts")[0]


@pytest.mark.parametrize(
    ("variables", "words", "status"),
    [
        ({"CORRIGENDA_HOME": "/dev/null"}, ["up"], ExitCode.misconfigured),
        ({"CORRIGENDA_HOME": "/dev/null"}, ["status"], ExitCode.misconfigured),
        ({"CORRIGENDA_MAX_ATTEMPTS": "-1"}, ["status"], ExitCode.misconfigured),
        ({"CORRIGENDA_HOME": "/nope"}, ["down"], ExitCode.done),
        ({"CORRIGENDA_HOME": "/nope", "CORRIGENDA_LOG": "loudly"}, ["status"], ExitCode.misconfigured),
    ],
)
def test_the_program_itself_never_shows_a_traceback(
    variables: dict[str, str], words: list[str], status: int, tmp_path: Path
) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CORRIGENDA_")}
    path = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.entrypoints.cli", *words],
        cwd=tmp_path,
        env=kept | variables | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=patience(),
        check=False,
    )

    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr


def test_prune_takes_away_the_bytes_of_an_old_letter_which_is_then_only_replayed_with_others(
    corrigenda: Command, rig: StoreRig, tmp_path: Path
) -> None:
    refused = Message(partition=rig.partition, offset=0, key=None, value=b"{bad")
    one = ParsedMessage(message=refused, request=None, refusal="expected JSON, got none")
    rig.intake.record([Poll(claim=rig.intake.take_partition(rig.partition), messages=(one,), next_offset=1)])
    rig.query("UPDATE outbox SET done_at = clock_timestamp() - interval '1 year'")
    rig.query("UPDATE dead_letters SET created_at = created_at - interval '1 year'")

    counted = corrigenda("prune", "--older-than", "30d", "--dry-run", "--json")
    assert json.loads(counted.stdout)["num_dead_letters"] == 1
    done = corrigenda("prune", "--older-than", "30d")

    assert done.exit_code == 0, done.output
    said = "took away 1 done side effect, the bytes of 1 dead letter, 0 notes of the HTTP API, and 0 files"
    assert said in " ".join(done.stdout.split())
    (letter,) = json.loads(corrigenda("dead-letters", "list", "--json").stdout)
    assert (letter["num_bytes"], letter["error"]) == (0, "expected JSON, got none")
    again = corrigenda("dead-letters", "replay", letter["dead_letter_id"])
    assert again.exit_code == ExitCode.usage
    assert "pruned" in again.stderr


def test_a_reader_that_goes_away_or_a_disk_that_is_full_shows_no_traceback(postgres_url: str) -> None:
    make_lineage(postgres_url)
    command = f"{sys.executable} -m pipeline.entrypoints.cli lineage list --json"
    role = {"CORRIGENDA_DATABASE_ROLE": "corrigenda_console"}
    variables = {**os.environ, "CORRIGENDA_DATABASE_URL": postgres_url, **role}
    for rest in (" | true", " > /dev/full"):
        done = subprocess.run(
            command + rest, shell=True, env=variables, capture_output=True, text=True, timeout=patience(), check=False
        )
        assert "Traceback" not in done.stderr
