"""Knows how to replace a file or a folder so that a crash leaves the old or the new one. Knows no content."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file's content at once: whoever reads, or comes back after a crash, finds the old or the new one."""
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
    """Put a folder in the place of another by renaming; between the two renames only `recover_folder` finds one."""
    old = _aside(target)
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def partial_of(target: Path) -> Path:
    """Where a folder that is to appear whole is written first."""
    return target.with_name(f".{target.name}.partial")


def recover_folder(target: Path) -> None:
    """Undo a `replace_folder` that a crash cut in two; does nothing otherwise."""
    if not target.exists() and _aside(target).exists():
        _aside(target).rename(target)


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")
