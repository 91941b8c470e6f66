"""Programs that need torch, run in the process of a test that is not about how they start."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout

from editors.folding.__main__ import main as fold
from editors.prepare.__main__ import main as prepare
from pipeline.domain.errors import CorrigendaError, named_by
from pipeline.domain.formats.progress import progress_in


def in_this_process(module: str, *arguments: str, tell: Callable[[str], None] | None = None) -> str:
    """Run a program as `run_module` does, without starting Python and torch; how far it was is told at its end."""
    said, complaint = io.StringIO(), io.StringIO()
    with redirect_stdout(said), redirect_stderr(complaint):
        status = fold(*arguments) if module == "editors.folding" else prepare(arguments)
    lines = complaint.getvalue().strip().splitlines()
    for sentence in filter(None, map(progress_in, lines)) if tell else ():
        tell(sentence)
    if status:
        error = named_by(lines[-1])
        assert isinstance(error, CorrigendaError), complaint.getvalue()
        raise error
    return said.getvalue()
