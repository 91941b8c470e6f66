"""Replacing a file or a folder, so that a crash at any moment leaves the old one or the new one, whole.

Whether there is a place to write to is found out here too, long before the work is done that is written there.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from pipeline.domain.errors import Misconfigured


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file's content: a reader, or a restart after a crash, finds the old content or the new one, whole."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def require_folder(folder: Path, option: str) -> None:
    """Make sure that a folder can be made, or written to if it is there; nothing is left of the trial.

    Args:
        folder: the folder.
        option: of a command line, which named it.

    Raises:
        Misconfigured: if it cannot.
    """
    _try(_there(folder), f"expected a folder that can be written for {option}, got {folder}")


def require_file(path: Path, option: str) -> None:
    """Make sure that a file can be written into the folder that it names; as `require_folder`."""
    wrong = f"expected a file that can be written for {option}, got {path}"
    if path.is_dir() or (path.exists() and not os.access(path, os.W_OK)):
        raise Misconfigured(wrong)
    if not path.exists() or path.is_file():  # else a pipe or a terminal
        _try(path.absolute().parent, wrong)


def _there(folder: Path) -> Path:
    """Return the folder, or what is there of the path to it."""
    absolute = folder.absolute()
    return next(path for path in (absolute, *absolute.parents) if os.path.lexists(path))


def _try(folder: Path, wrong: str) -> None:
    """Write into a folder and take it away again."""
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".trial-"):
            pass
    except OSError as error:
        raise Misconfigured(f"{wrong}: {error.strerror}") from error


def replace_folder(new: Path, target: Path) -> None:
    """Put the folder `new` in the place of `target`.

    This takes two renames. After a crash between them, `recover_folder` puts the old folder back.
    """
    old = _aside(target)
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def partial_of(target: Path) -> Path:
    """Return where to write a folder that is then renamed to `target`, so that it appears whole."""
    return target.with_name(f".{target.name}.partial")


def recover_folder(target: Path) -> None:
    """Undo a `replace_folder` that a crash has cut in two; does nothing otherwise."""
    if not target.exists() and _aside(target).exists():
        _aside(target).rename(target)


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")
