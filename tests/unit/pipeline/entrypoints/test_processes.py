"""What is said of a process of the stack."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.local import ProcessState, ProcessStatus
from pipeline.entrypoints.processes import SUPERVISOR, told_of


@pytest.mark.parametrize(
    ("name", "state", "said"),
    [
        ("web", ProcessState.RUNNING, "web"),
        ("web", ProcessState.DIED, "web died, see web.log"),
        (SUPERVISOR, ProcessState.DIED, "supervisor died, see web.log; `corrigenda up` starts it again"),
    ],
)
def test_a_process_that_died_is_told_with_its_log_and_what_nobody_starts_again(
    name: str, state: ProcessState, said: str
) -> None:
    status = ProcessStatus(name=name, state=state, pid=1, port=None, log=Path("web.log"), restarts=0, restarted_at=None)
    assert told_of(status) == said
