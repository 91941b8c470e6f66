"""The files that set the project up: what is pinned, what is found, what the words of the Makefile do."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from infra import install
from tests.support.paths import ROOT

WORDS = ("demo", "test", "check", "bench", "setup", "clean", "help", "train-editor")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def requirements(project: dict[str, Any]) -> list[Requirement]:
    declared = project["project"]
    extras = declared["optional-dependencies"].values()
    return [Requirement(text) for text in (*declared["dependencies"], *(text for extra in extras for text in extra))]


def test_every_dependency_is_pinned_inside_its_range(project: dict[str, Any], pins: dict[str, str]) -> None:
    for requirement in requirements(project):
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} has no exact version in constraints.txt"
        assert requirement.specifier.contains(pin), f"{requirement} excludes the pinned {pin}"


def test_constraints_name_each_package_once_and_exactly() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    names = [canonicalize_name(line.split("==")[0]) for line in lines]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line) for line in lines)


def test_torch_is_pinned_without_naming_a_build(pins: dict[str, str]) -> None:
    assert pins["torch"] == "2.13.0"


def test_no_file_of_the_setup_names_an_index() -> None:
    files = ("Makefile", "constraints.txt", "pyproject.toml", "infra/install.py", ".ci/run", "infra/compose.yaml")
    for name in files:
        assert not re.search(r"https?://[^\s]*(simple|whl)|--(extra-)?index-url", (ROOT / name).read_text()), name


def test_the_makefile_has_its_words_and_help_lists_them() -> None:
    command = ["make", "--no-print-directory", "help"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {line.split()[0] for line in said.splitlines()} == set(WORDS)


def test_an_old_python_gets_one_clear_sentence(tmp_path: Path) -> None:
    code = (
        "import sys, runpy; sys.version_info = (3, 9, 1, 'final', 0);"
        f"runpy.run_path({str(ROOT / 'infra' / 'install.py')!r}, run_name='__main__')"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 1
    assert finished.stderr.startswith("setup: expected Python 3.11 or newer, got 3.9.1")
    assert finished.stderr.count("\n") == 1


def test_a_long_step_of_the_setup_tells_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log, told = tmp_path / "install.log", tmp_path / "told"
    log.write_text("Collecting before==1\n")
    monkeypatch.setattr(install, "LOG", log)
    monkeypatch.setattr(install, "TOLD_EVERY", 0.05)
    begin = log.stat().st_size

    def progress() -> str:
        said = install.progress_of_pip(begin)
        told.touch() if said.startswith("installing") else None
        return said

    # It ends once the last step was told, so that no line of it depends on the time.
    steps = "Collecting torch==2", "Collecting numpy==2", "Installing collected packages: numpy, torch"
    program = f"""
import pathlib, sys, time
print(*{steps!r}, sep="\\n", flush=True)
while not pathlib.Path({str(told)!r}).exists():
    time.sleep(0.01)
sys.exit(3)
"""
    assert not install.run_told([sys.executable, "-c", program], progress)
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"setup: installing 2, which takes longest, \d+ s", lines[-1])
    assert all(line.startswith("setup: ") for line in lines)
    assert "before" not in "".join(lines)


def test_a_missing_python_gets_one_clear_sentence(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / "infra").mkdir()
    (tmp_path / "infra" / "install.py").touch()
    command = ["make", "setup", "PYTHON=no-such-python"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert finished.returncode != 0
    assert "setup: expected Python 3.11 or newer as no-such-python, found none" in finished.stderr


def test_every_top_level_package_is_shipped(project: dict[str, Any]) -> None:
    shipped = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert set(shipped) == {"pipeline", "editors", "workers", "migrations", "infra"}


def test_ci_runs_the_words_that_everybody_runs() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert "set -euo pipefail" in script
    assert script.index("make check") < script.index("make test")
