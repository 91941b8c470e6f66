"""What a module in a process of its own says wrong comes home as the same error."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from infra.local.processes import is_alive, process_id
from pipeline.domain.errors import EngineFailed, InvalidInput, Misconfigured, WrongBase, named_by, one_line
from pipeline.entrypoints.children import run_module
from tests.support.paths import ROOT
from tests.support.waiting import eventually


def module(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> str:
    (folder / "spoken.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return "spoken"


def test_what_a_module_prints_is_returned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = module(tmp_path, monkeypatch, "import sys; print(sys.argv[1]); print('progress', file=sys.stderr)")
    assert run_module(name, "hello") == "hello\n"


def test_how_far_a_module_is_is_told_while_it_runs_and_is_no_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import sys; from pipeline.domain.formats.progress import progress_line as told\n"
        "for step in (1, 2): print(told(f'step {step}'), file=sys.stderr, flush=True)\n"
        "print('x' * 1_000_000); print('a warning', file=sys.stderr); print(told('ending'), file=sys.stderr)\n"
        "sys.exit(int(sys.argv[1]))"
    )
    name = module(tmp_path, monkeypatch, code)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    heard: list[str] = []

    assert run_module(name, "0", tell=heard.append) == "x" * 1_000_000 + "\n"
    assert heard == ["step 1", "step 2", "ending"]
    with pytest.raises(EngineFailed, match=r"ended with status 3: a warning$"):
        run_module(name, "3")


def test_a_module_ends_when_whoever_waits_for_it_has_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys, time; print('progress: begun', file=sys.stderr, flush=True); time.sleep(3600)"
    name = module(tmp_path, monkeypatch, code)

    def enough(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_module(name, tell=enough)  # returns only once the process has ended


def test_a_module_that_is_stopped_clears_away_what_it_has_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from pipeline.domain.formats.progress import progress_line as told\n"
        "half = Path(sys.argv[1]); half.touch(); print(told('begun'), file=sys.stderr, flush=True)\n"
        "try: time.sleep(3600)\nfinally: half.unlink()"
    )
    name = module(tmp_path, monkeypatch, code)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")

    def enough(_: str) -> None:
        raise KeyboardInterrupt

    # Tests that a shell runs in the background ignore Ctrl-C, and so would the child; commands take it anew.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_module(name, str(tmp_path / "half"), tell=enough)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not (tmp_path / "half").exists()


def test_an_error_that_is_named_is_raised_as_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = module(tmp_path, monkeypatch, "import sys; print('progress', file=sys.stderr); sys.exit('WrongBase: no: x')")
    with pytest.raises(WrongBase, match=r"^no: x$"):
        run_module(name)


def test_words_that_argparse_refuses_are_wrong_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import argparse; p = argparse.ArgumentParser(); p.add_argument('--ranks', type=int); p.parse_args()"
    name = module(tmp_path, monkeypatch, code)
    with pytest.raises(InvalidInput, match=r"^argument --ranks: invalid int value: 'two'$"):
        run_module(name, "--ranks", "two")


@pytest.mark.parametrize("last", ["Traceback: of nothing we know", "annotations: x", "", "WrongBase"])
def test_any_other_end_is_engine_failed_with_the_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    name = module(tmp_path, monkeypatch, f"import sys; sys.stderr.write({last!r}); sys.exit(3)")
    with pytest.raises(EngineFailed, match="status 3"):
        run_module(name)


def test_threads_of_a_module_sleep_while_they_wait_unless_the_environment_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = module(tmp_path, monkeypatch, "import os; print(os.environ['OMP_WAIT_POLICY'])")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert run_module(name) == "PASSIVE\n"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert run_module(name) == "ACTIVE\n"


@pytest.mark.parametrize("said", ["expected a folder, got: none", "of\nseveral\tlines", ""])
def test_the_line_of_an_error_leads_back_to_it(said: str) -> None:
    told = named_by(one_line(Misconfigured(said)))
    assert type(told) is Misconfigured
    assert str(told) == (" ".join(said.split()) or "it says nothing")


@pytest.mark.parametrize("line", ["ValueError: no", "WrongBase", "annotations: no", "one_line: no", ""])
def test_a_line_that_names_no_error_of_ours_leads_to_none(line: str) -> None:
    assert named_by(line) is None


OWNER = (
    "import subprocess, sys; from pipeline.entrypoints.children import words_of\n"
    "subprocess.Popen(words_of('spoken')).wait()"
)
COMMAND = "from pipeline.entrypoints.cli.programs import _run; _run(None, 'spoken', [], ended='by signal {}')"
SLEEPS = (
    "import os, signal, sys, time; from pathlib import Path\n"
    "signal.signal(signal.SIGTERM, lambda *_: sys.exit(Path('told').touch()))\n"
    "Path('begun.part').write_text(str(os.getpid())); Path('begun.part').rename('begun')\n"
    "time.sleep(3600)"
)


@pytest.mark.parametrize(
    ("owner", "number", "is_told"),
    [(OWNER, signal.SIGKILL, False), (OWNER, signal.SIGTERM, False), (COMMAND, signal.SIGTERM, True),
     (COMMAND, signal.SIGHUP, False), (COMMAND, signal.SIGKILL, False)],
)  # fmt: skip
def test_a_module_ends_with_the_process_that_started_it_whatever_ends_that(
    owner: str, number: signal.Signals, is_told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module(tmp_path, monkeypatch, SLEEPS)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    with subprocess.Popen([sys.executable, "-c", owner], cwd=tmp_path, env=environment) as process:
        eventually((tmp_path / "begun").is_file, "the start of a module")
        child = process_id(int((tmp_path / "begun").read_text()))
        process.send_signal(number)
    eventually(lambda: child is None or not is_alive(child), "the end of a module")
    assert (tmp_path / "told").exists() == is_told
