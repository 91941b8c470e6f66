"""How commands speak: exit statuses, what is shown, and what never reaches a terminal."""

import errno
import io
import json
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any, Self

import pytest
import typer
from rich.cells import cell_len
from rich.console import Console
from typer.testing import CliRunner

from infra.local.errors import LocalStackError
from pipeline.domain.errors import (
    CorrigendaError,
    EpochStale,
    IntegrityBroken,
    InvalidMessage,
    LeaseLost,
    Misconfigured,
    StreamGap,
    Unavailable,
    UnknownLineage,
    WrongBase,
)
from pipeline.domain.formats.counting import counted
from pipeline.entrypoints import console
from pipeline.entrypoints.cli.app import app
from pipeline.entrypoints.console import ExitCode, exits_clearly, print_json, print_record, print_rows, say, visible
from tests.support.commands import every_command


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidMessage("x"), ExitCode.usage),
        (UnknownLineage("x"), ExitCode.usage),
        (Misconfigured("x"), ExitCode.misconfigured),
        (WrongBase("x"), ExitCode.misconfigured),
        (StreamGap("x"), ExitCode.misconfigured),
        (LocalStackError(service="redis", reason="x"), ExitCode.misconfigured),
        (PermissionError(errno.EACCES, "denied", "/x"), ExitCode.misconfigured),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), ExitCode.unavailable),
        (Unavailable("x"), ExitCode.unavailable),
        (LeaseLost("x"), ExitCode.unavailable),
        (IntegrityBroken("x"), ExitCode.broken),
        (EpochStale("x"), ExitCode.failed),
        (CorrigendaError("x"), ExitCode.failed),
        (UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"), ExitCode.usage),
        (ZeroDivisionError("x"), ExitCode.failed),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_error_has_a_documented_exit_status_and_one_sentence(
    error: BaseException, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    @exits_clearly
    def command() -> None:
        raise error

    with pytest.raises(typer.Exit) as raised:
        command()

    said = capsys.readouterr()
    assert raised.value.exit_code == status
    assert said.out == ""
    assert "Traceback" not in said.err
    assert said.err.count("\n") == (0 if isinstance(error, KeyboardInterrupt) else 1)


def test_brackets_and_colons_of_a_prompt_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"prompt": "a [/b] [bold]x :cat:", "target": "[red]Paris[/red]"}

    print_rows([row], {"prompt": "prompt", "target": "target"}, as_json=False, empty="none")

    assert capsys.readouterr().out.splitlines()[1] == "a [/b] [bold]x :cat:  [red]Paris[/red]"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", "\\x1b[31mred"),
        ("bell\x07", "bell\\x07"),
        ("over\rwritten", "over\\rwritten"),
        ("turned\u202eround", "turned\\u202eround"),
        ("no utf-8 \udcff", "no utf-8 \\udcff"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("".join(("日本 ", "é ", "\U0001f600")), "日本 é \U0001f600"),
    ],
)
def test_what_steers_a_terminal_is_spelled_out(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_a_table_is_not_folded_where_a_program_reads_it(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"prompt": "word " * 60 + "end", "target": "x"}

    print_rows([row], {"prompt": "prompt", "target": "target"}, as_json=False, empty="none")

    assert capsys.readouterr().out.splitlines()[1] == row["prompt"] + "  x"


def test_a_table_fits_a_terminal_and_keeps_whole_what_people_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    narrow = Console(file=terminal, width=80, force_terminal=True, color_system=None, highlight=False)
    monkeypatch.setattr(console, "out", narrow)
    row = {"id": "01a20602-6e67-7741-bc0e-5012271c213a", "reason": "expected something that was not there " * 5}

    print_rows([row], {"id": "id", "reason": "reason"}, as_json=False, empty="none", whole=("id",))

    lines = terminal.getvalue().splitlines()
    assert max(len(line) for line in lines) <= 80
    assert lines[1].startswith(row["id"] + "  expected")


def test_a_link_that_a_terminal_has_no_room_for_is_never_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    narrow = Console(file=terminal, width=80, force_terminal=True, color_system=None, highlight=False)
    monkeypatch.setattr(console, "out", narrow)
    link = f"http://127.0.0.1:24718/#/models/{'facts' * 4}?workflowType=machine_learning"

    say(f"look at {link}{'x' * 80} now")
    print_record({"Kafka": "there", "MLflow": [link], "mlflow_login": "`corrigenda mlflow-user YOU`"}, as_json=False)

    assert [line.rstrip() for line in terminal.getvalue().splitlines()] == [
        f"look at {link}{'x' * 80} now",
        "Kafka         there",
        "MLflow",
        link,
        "mlflow login  `corrigenda mlflow-user YOU`",
    ]


@pytest.mark.parametrize(("width", "is_below"), [(80, True), (120, False)])
def test_a_sentence_stands_below_a_table_that_is_too_narrow_for_it(
    width: int, is_below: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(console, "out", Console(file=terminal, width=width, force_terminal=True, color_system=None))
    why: dict[str, Any] = {"id": "a", "state": "rejected", "reason": "after the edit"}
    rows = [why, {"id": "b", "state": "live", "reason": None}]

    columns = {"id": "request", "state": "state", "reason": "reason"}
    print_rows(rows, columns, as_json=False, empty="none", below="reason")

    lines = [line.rstrip() for line in terminal.getvalue().splitlines()]
    if is_below:
        assert lines == ["request  state", "a        rejected", "b        live", "a: after the edit"]
    else:
        assert lines[1:] == ["a        rejected  after the edit", "b        live      -"]


@pytest.mark.parametrize("value", [{"text": "\udcff"}, {"at": datetime(2026, 1, 1, tzinfo=UTC)}, {"b": b"\xff"}, {}])
def test_json_is_json_whatever_it_holds(value: Any, capsys: pytest.CaptureFixture[str]) -> None:
    print_json(value)

    assert set(json.loads(capsys.readouterr().out)) == set(value)


def test_json_is_escaped_where_the_output_is_no_utf_8(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    ascii_only = io.TextIOWrapper(raw, encoding="ascii")
    monkeypatch.setattr("sys.stdout", ascii_only)

    print_json({"text": "日本 \U0001f600"})

    ascii_only.flush()
    assert json.loads(raw.getvalue()) == {"text": "日本 \U0001f600"}


class SilentProgram:
    """Takes the place of the programs behind some commands, whose help follows that of the command."""

    def __init__(self, words: list[str], **_: Any) -> None:
        self.args, self.returncode = words, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def wait(self) -> int:
        return 0


@pytest.mark.parametrize("words", [words for words, _ in every_command()], ids=" ".join)
def test_every_command_has_help_with_an_example_that_fits_eighty_columns(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.entrypoints.cli.programs.subprocess.Popen", SilentProgram)
    shown = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})

    assert shown.exit_code == 0
    assert f"Example: corrigenda {' '.join(words)}" in shown.output
    assert max(len(line) for line in shown.output.splitlines()) <= 80


def test_an_unknown_command_is_wrong_input() -> None:
    assert CliRunner().invoke(app, ["nope"]).exit_code == ExitCode.usage


@pytest.mark.parametrize("prompts", [[""], ["The pope is", " "]])
def test_a_model_is_not_asked_nothing(prompts: list[str]) -> None:
    refused = CliRunner().invoke(app, ["ask", *prompts])
    assert (refused.exit_code, "got an empty one" in refused.output) == (ExitCode.usage, True)


@pytest.mark.parametrize("bound", ["nan", "inf", "-1"])
def test_a_bound_that_is_no_number_is_refused_before_a_base_is_measured(bound: str) -> None:
    refused = CliRunner().invoke(app, ["lineage", "create", "facts", "--change-bound", bound])
    assert refused.exit_code == ExitCode.usage
    assert "--change-bound" in refused.output


@pytest.mark.parametrize("width", [40, 80, 120])
def test_columns_stay_aligned_in_wide_scripts(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(console, "out", Console(file=shown, width=width, force_terminal=True, color_system=None))
    texts = ["The capital of", "日本の首都は", "عاصمة مصر هي", "Столица", "flag 🇪🇬 is", "हिन्दी में"]
    print_rows([{"a": text, "b": "|"} for text in texts], {"a": "asked", "b": "b"}, as_json=False, empty="")

    lines = shown.getvalue().splitlines()[1:]
    assert len(lines) == len(texts)
    assert len({cell_len(line.partition("|")[0]) for line in lines}) == 1
    assert all(cell_len(line) <= width for line in lines)


@pytest.mark.parametrize(("number", "told"), [(0, "0 edits"), (1, "1 edit"), (1200, "1,200 edits")])
def test_a_number_and_its_noun_agree(number: int, told: str) -> None:
    assert counted(number, "edit") == told
    assert counted(1, "process", "processes") == "1 process"


def test_help_is_shown_without_what_only_running_a_command_needs() -> None:
    heavy = "pydantic sqlalchemy psycopg structlog alembic kafka celery mlflow fastapi prometheus_client numpy torch"
    program = (
        "import sys; from importlib import import_module; from pipeline.entrypoints.cli.app import MODULE_OF; "
        "[import_module(f'pipeline.entrypoints.cli.{name}') for name in MODULE_OF.values()]; "
        "print(*({*sys.argv[1:]} & {*sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *heavy.split()], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == []
