"""Programs that need torch, run in the process of a test that is not about how they start."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout

from editors.folding.__main__ import main as fold
from editors.prepare.__main__ import main as prepare
from pipeline.domain.errors import CorrigendaError, named_by


def in_this_process(module: str, *arguments: str) -> str:
    """Run a program as `run_module` does, without starting Python and torch for it."""
    said, complaint = io.StringIO(), io.StringIO()
    with redirect_stdout(said), redirect_stderr(complaint):
        status = fold(*arguments) if module == "editors.folding" else prepare(arguments)
    if status:
        error = named_by(complaint.getvalue().strip().splitlines()[-1])
        assert isinstance(error, CorrigendaError), complaint.getvalue()
        raise error
    return said.getvalue()
