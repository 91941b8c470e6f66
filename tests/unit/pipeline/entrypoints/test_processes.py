"""What is said of a process of the stack."""

from __future__ import annotations

import socket
import threading
from datetime import timedelta
from pathlib import Path

import pytest

from infra.local import ProcessState, ProcessStatus
from pipeline.entrypoints.processes import SUPERVISOR, is_answering, told_of


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


def test_an_address_is_waited_for_until_a_process_answers_there_or_the_time_is_over() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # nobody is let in before it listens
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert not is_answering(address, within=timedelta(0))
        later = threading.Timer(0.2, listener.listen)
        later.start()
        assert is_answering(address, within=timedelta(minutes=1))
        later.join()
