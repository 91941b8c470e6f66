"""Replacing a file or a folder, so that a crash at any moment leaves the old one or the new one, whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path


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
