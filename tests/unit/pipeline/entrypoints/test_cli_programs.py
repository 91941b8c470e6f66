"""The commands `evaluate` and `train`: what they pass on, and what their programs refuse before anything is loaded."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from editors.evaluation import __main__ as evaluation
from editors.evaluation.arguments import parser as evaluation_parser
from editors.evaluation.place import Place
from editors.training import __main__ as training
from editors.training.arguments import loop_settings, objective_settings
from editors.training.arguments import parser as training_parser
from editors.training.setup import without_folders
from pipeline.domain.formats.refusals import INTERRUPTED
from pipeline.entrypoints.cli.app import app
from pipeline.entrypoints.console import ExitCode
from workers import on_ranks

POSITIVE, RANKS = (f"expected a whole number from 1 to {most}" for most in ("1,000,000,000", "65,536"))
LEAST = {"evaluate": "--data x --edits 2 --model m", "train": "--data x --out o --model m"}
"""The fewest words of each command."""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "edits.jsonl"
    path.write_text('{"prompt": "A is", "target_new": "b"}\n')
    return path


class Started:
    """Takes the place of the process that measures or trains."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, returncode: int = 0) -> None:
        self.program = ""
        self.arguments: list[str] = []
        self._returncode = returncode
        monkeypatch.setattr("pipeline.entrypoints.cli.programs.subprocess.Popen", self)

    def __call__(self, arguments: list[str], **_: Any) -> Started:
        assert arguments[:4] == [sys.executable, "-m", "pipeline.tied", str(os.getpid())]
        self.program, self.arguments = arguments[4], arguments[5:]
        return self

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def wait(self) -> int:
        return self._returncode


def corrigenda(command: str, *words: object) -> Result:
    return CliRunner().invoke(app, [command, *map(str, words)])


def test_every_word_of_an_evaluation_arrives(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = Started(monkeypatch)
    line = (
        f"--data {data} --edits 7 --protocol single --batch 3 --checkpoint-every 0 --sample 5 --free-sample 4 "
        f"--rephrase-rows 2 --solver sum,ft --editor ft={tmp_path} --editor {tmp_path} --seed 9 --task causal "
        f"--model {tmp_path} --out {tmp_path / 'out'} --json {tmp_path / 'x.json'} "
        "--prior-strength 7.5 --ft-bound 0.1 --rephrases 2"
    )
    assert corrigenda("evaluate", *line.split()).exit_code == 0
    assert (started.program, started.arguments) == ("editors.evaluation", line.split())
    given = evaluation_parser().parse_args(started.arguments)
    assert (given.data, given.edits, given.protocol, given.batch) == (data, 7, "single", 3)
    assert (given.checkpoint_every, given.sample, given.free_sample, given.rephrase_rows) == (0, 5, 4, 2)
    assert given.editor == [("ft", tmp_path), (None, tmp_path)]
    assert (given.solver, given.seed, given.task) == (("sum", "ft"), 9, "causal")
    assert (given.model, given.out, given.json) == (tmp_path, tmp_path / "out", str(tmp_path / "x.json"))
    assert (given.prior_strength, given.ft_bound, given.rephrases) == (7.5, 0.1, 2)


def test_every_word_of_a_training_arrives(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = Started(monkeypatch)
    line = (
        f"--data {data} --model {tmp_path} --out {tmp_path / 'run'} --resume --validation {data} --text {data} "
        "--task causal --solver recursive --rank 8 --steps 7 --edits-per-step 6 --lr 0.1 --patience 3 --limit 5 "
        "--seed 9 --threads 2 --boost 2.5 --subject-param a.weight --inner-param a.weight --inner-param b.weight"
    )
    assert corrigenda("train", *line.split()).exit_code == 0
    assert (started.program, started.arguments) == ("editors.training", line.split())
    given = training_parser().parse_args(started.arguments)
    assert (given.data, given.model, given.out, given.resume) == ([data], tmp_path, tmp_path / "run", True)
    assert (given.validation, given.text, given.task, given.rank, given.limit) == (data, data, "causal", 8, 5)
    assert (given.inner_params, given.subject_params, given.threads) == (["a.weight", "b.weight"], ["a.weight"], 2)
    settings, loop = objective_settings(given), loop_settings(given)
    assert (settings.batch, settings.network_lr, settings.seed, getattr(settings, "boost", None)) == (6, 0.1, 9, 2.5)
    assert (loop.num_steps, loop.patience, loop.seed) == (7, 3, 9)


@pytest.mark.parametrize("ranks", ["--ranks 2", "--ranks=2"])
@pytest.mark.parametrize(("command", "program"), [("train", "training"), ("evaluate", "evaluation")])
def test_on_ranks_it_is_another_program(
    command: str, program: str, ranks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = Started(monkeypatch)
    assert corrigenda(command, *LEAST[command].split(), *ranks.split()).exit_code == 0
    assert (started.program, started.arguments[0]) == ("workers.on_ranks", program)
    assert started.arguments[-len(ranks.split()) :] == ranks.split()


@pytest.mark.parametrize("command", ["evaluate", "train"])
def test_the_embedded_base_is_taken_where_none_is_named(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started = Started(monkeypatch)
    monkeypatch.setattr("infra.local.base_model.ensure_base_model", lambda: Path("/embedded"))
    words = LEAST[command].removesuffix(" --model m").split()
    assert corrigenda(command, *words).exit_code == 0
    assert started.arguments == [*words, "--model", "/embedded"]


@pytest.mark.parametrize("command", ["evaluate", "train"])
def test_help_asks_the_program_too_and_needs_no_model(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started = Started(monkeypatch)
    shown = corrigenda(command, "--help")
    assert f"Example: corrigenda {command}" in shown.output
    assert started.arguments == ["--help"]


@pytest.mark.parametrize(("more", "printed"), [([], "-"), (["--out", "measured"], None)])
def test_figures_are_printed_unless_they_go_into_a_folder(
    more: list[str], printed: str | None, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str | None] = []
    monkeypatch.setattr(evaluation, "evaluate", lambda given, *_: told.append(given.json))
    assert evaluation.main(["--data", str(data), "--edits", "2", "--model", str(tmp_path), *more]) == 0
    assert told == [printed]


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ("--editor /nope", "a model with"),
        *((f"--{name} /nope", "/nope") for name in ("data", "text", "suite", "prior-text")),
        *((f"--{name} {{}}/binary", "UTF-8") for name in ("data", "text", "suite", "prior-text")),
        ("--data {}/empty", "at least one edit in"),
        ("--text {}/empty", "plain text for --text, got"),
        ("--prior-text {}/empty", "line of text for --prior-text, got"),
        *((f"--json {path}", f"written for --json, got {path}") for path in ("/nope/x.json", "/", "{}/empty/x")),
        *((f"--out {path}", f"written for --out, got {path}") for path in ("/proc/x", "{}/empty", "{}/empty/x/y")),
    ],
)
def test_what_an_evaluation_cannot_read_or_write_is_refused_before_anything_is_loaded(
    wrong: str, complaint: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty").write_text(" \n\n")
    before = set(tmp_path.iterdir())
    words = ["--data", str(data), "--edits", "2", "--model", str(tmp_path), "--json", "-"]
    place = Place(load=nothing_is_loaded)
    assert evaluation.main([*words, *wrong.format(tmp_path).split()], place=place) == 1
    said = one_line(capsys)
    assert "expected" in said
    assert complaint.format(tmp_path) in said
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("wrong", ["--data /nope", "--validation /nope", "--text /nope"])
def test_what_a_training_cannot_read_is_refused_before_anything_is_loaded(
    wrong: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(data), "--model", str(tmp_path), "--task", "causal", "--out", str(tmp_path / "run")]
    assert training.main([*words, *wrong.split()], load=nothing_is_loaded) == 1
    assert "/nope" in one_line(capsys)


@pytest.mark.parametrize(
    "wrong",
    ["--out /proc/x", "--out {}", "--out {}/x/y", "--prepared {}/x", "--prepared /proc/x", "--prepared /nope/x"],
)
@pytest.mark.parametrize("more", [[], ["--resume"]])
def test_where_a_training_cannot_write_is_refused_before_anything_is_loaded(
    wrong: str, more: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(data), "--model", str(tmp_path), "--task", "causal", "--out", str(tmp_path / "run")]
    assert training.main([*words, *wrong.format(data).split(), *more], load=nothing_is_loaded) == 1
    option, path = wrong.format(data).split()
    assert f"can be written for {option}, got {path}" in one_line(capsys)
    assert list(tmp_path.iterdir()) == [data]


@pytest.mark.parametrize(
    ("left", "more", "hint"),
    [
        ([], [], ""),
        (["run.json"], [], "; --resume begins it again"),
        (["run.json", "state.safetensors"], [], "; --resume goes on from the last state"),
        (["run.json", "state.safetensors"], ["--only-prepare"], ""),
    ],
)
def test_a_training_that_was_stopped_says_how_it_goes_on(
    left: list[str], more: list[str], hint: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name in left:
        (tmp_path / name).touch()
    words = ["--data", "x", "--model", "m", "--task", "causal", "--out", str(tmp_path), *more]
    stopped, is_full = KeyboardInterrupt(), OSError(28, "No space left on device")
    for error, status, said in (
        (stopped, INTERRUPTED, f"stopped{hint}"),
        (is_full, 1, f"expected room for the run in {tmp_path}, got: No space left on device{hint}"),
    ):
        monkeypatch.setattr(training, "train", raising(error))
        assert training.main(words) == status
        assert one_line(capsys) == said


@pytest.mark.parametrize(
    ("program", "wrong", "sentence"),
    [
        (evaluation, "--edits 0", f"corrigenda evaluate: error: argument --edits: {POSITIVE}, got '0'"),
        (evaluation, "--edit 1", "corrigenda evaluate: error: unrecognized arguments: --edit 1"),
        (training, "--rank 0", f"corrigenda train: error: argument --rank: {RANKS}, got '0'"),
        (training, "--out", "corrigenda train: error: argument --out: expected one argument"),
        (on_ranks, "--ranks 0", f"corrigenda train: error: argument --ranks: {POSITIVE}, got '0'"),
        (on_ranks, "--ranks 2 --rank 0", f"corrigenda train: error: argument --rank: {RANKS}, got '0'"),
    ],
)
def test_words_that_cannot_be_read_are_refused_in_one_sentence(
    program: ModuleType, wrong: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    least = LEAST["evaluate" if program is evaluation else "train"]
    with pytest.raises(SystemExit) as refused:
        program.main([*(["training"] if program is on_ranks else []), *least.split(), *wrong.split()])
    assert refused.value.code == 2
    assert one_line(capsys) == sentence


def test_help_is_shown_whole(capsys: pytest.CaptureFixture[str]) -> None:
    for program in (evaluation, training):
        with pytest.raises(SystemExit) as ended:
            program.main(["--help"])
        shown = capsys.readouterr()
        assert (ended.value.code, shown.err) == (0, "")
        assert shown.out.startswith("usage: corrigenda")


@pytest.mark.parametrize("command", ["evaluate", "train"])
@pytest.mark.parametrize(
    ("returncode", "status"),
    [(1, ExitCode.usage), (2, ExitCode.usage), (-9, ExitCode.misconfigured), (137, ExitCode.misconfigured),
     (130, INTERRUPTED)],
)  # fmt: skip
def test_a_failed_program_is_a_failed_command(
    command: str, returncode: int, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    Started(monkeypatch, returncode)
    failed = corrigenda(command, *LEAST[command].split())
    assert failed.exit_code == status
    assert ("by signal 9" in failed.stderr) == (status == ExitCode.misconfigured)
    assert "--resume" not in failed.stderr


@pytest.mark.parametrize("more", [[], ["--only-prepare"]])
def test_a_training_that_a_signal_ended_is_said_to_go_on_where_it_can(
    more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Started(monkeypatch, -signal.SIGKILL)
    (tmp_path / "run.json").write_text("{}")
    failed = corrigenda("train", *f"--data x --model m --out={tmp_path}".split(), *more)
    assert ("signal 9; --resume goes on with it" in failed.stderr) == (not more)


def test_a_card_names_files_and_not_where_they_lay() -> None:
    command = "corrigenda train --data /home/ada/edits.jsonl --text here/text.txt --licence 'MIT; CC BY-SA 3.0'"
    expected = "corrigenda train --data edits.jsonl --text here/text.txt --licence 'MIT; CC BY-SA 3.0'"
    assert without_folders(command) == expected


def nothing_is_loaded(*_: Any, **__: Any) -> Any:
    raise AssertionError("expected nothing to be loaded")


def raising(error: BaseException) -> Callable[..., Any]:
    def raised(*_: Any, **__: Any) -> Any:
        raise error

    return raised


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line
