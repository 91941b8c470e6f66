"""How a program of ours says on standard error how far it is, so that the command that started it can show it."""

from __future__ import annotations

_MARK = "progress: "


def progress_line(sentence: str) -> str:
    """Return the line that says how far a program is."""
    return _MARK + sentence


def progress_in(line: str) -> str | None:
    """Return what such a line says; None of a line that says something else."""
    return line.removeprefix(_MARK).strip() if line.startswith(_MARK) else None
