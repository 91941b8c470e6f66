"""Starting, watching and ending rank processes, with a small program in place of the rank's."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from pipeline.domain.errors import EngineFailed
from workers.commands import PROTOCOL_VERSION
from workers.controller.group import RankGroup
from workers.controller.rank_processes import RankProcesses, RankSpec

SECONDS = 30

# Says hello and answers every command with nothing but its number.
OBEDIENT = """
import argparse, os, socket
from workers.commands import Hello, Reply
from workers.protocol import HELLOS, REPLIES, REQUESTS, receive_frame, send_frame
from workers.rank.__main__ import tie_to_parent
parser = argparse.ArgumentParser()
parser.add_argument("--socket"); parser.add_argument("--parent", type=int)
options = parser.parse_args()
tie_to_parent(options.parent)
if os.environ["RANK"] != "0":
    import signal; signal.pause()
connection = socket.socket(socket.AF_UNIX)
connection.connect(options.socket)
send_frame(connection, HELLOS.encode(Hello(pid=os.getpid(), world_size=int(os.environ["WORLD_SIZE"]), version=VERSION)))
while (body := receive_frame(connection)) is not None:
    BEHAVE
    send_frame(connection, REPLIES.encode(Reply(seq=REQUESTS.decode(body).seq + SKEW)))
"""


def spec(
    tmp_path: Path, *, behave: str = "pass", num_ranks: int = 1, version: int = PROTOCOL_VERSION, skew: int = 0
) -> RankSpec:
    """Processes that behave as told."""
    text = OBEDIENT.replace("VERSION", str(version)).replace("BEHAVE", behave).replace("SKEW", str(skew))
    return RankSpec(num_ranks=num_ranks, log=tmp_path / "ranks.log", program=(sys.executable, "-c", text))


def group(spec: RankSpec, *, seconds: float = SECONDS) -> RankGroup:
    return RankGroup(spec, command_timeout=timedelta(seconds=seconds))


def eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + SECONDS
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_group_answers_and_leaves_no_process(tmp_path: Path) -> None:
    with group(spec(tmp_path, num_ranks=3)) as ranks:
        assert ranks.weights_digest() == ""
        pids = ranks.pids
        assert len(set(pids)) == 3
        assert {os.getpgid(pid) for pid in pids} == {pids[0]}
    assert all(is_gone(pid) for pid in pids)


def test_ranks_outlive_the_thread_that_asked_for_them(tmp_path: Path) -> None:
    with group(spec(tmp_path)) as ranks:
        asking = threading.Thread(target=ranks.weights_digest)
        asking.start()
        asking.join()
        (pid,) = ranks.pids
        ranks.weights_digest()
        assert ranks.pids == (pid,)


def test_a_rank_that_is_killed_while_idle_is_replaced_at_the_next_command(tmp_path: Path) -> None:
    with group(spec(tmp_path, num_ranks=2)) as ranks:
        ranks.weights_digest()
        first = ranks.pids
        os.kill(first[1], signal.SIGKILL)
        assert eventually(lambda: is_gone(first[1]))
        with pytest.raises(EngineFailed, match=r"rank 1 .* ended with status -9"):
            ranks.weights_digest()
        assert eventually(lambda: is_gone(first[0]))
        ranks.weights_digest()
        assert not set(ranks.pids) & set(first)


def test_a_rank_that_ends_over_a_command_is_engine_failed(tmp_path: Path) -> None:
    with group(spec(tmp_path, behave="raise SystemExit('no more')")) as ranks:
        with pytest.raises(EngineFailed, match="no more"):
            ranks.weights_digest()
        assert ranks.pids == ()


def test_a_rank_that_does_not_answer_in_time_is_killed(tmp_path: Path) -> None:
    behave = "import signal; os.kill(os.getpid(), signal.SIGSTOP)"
    with group(spec(tmp_path, behave=behave), seconds=3) as ranks:
        ranks.start()
        (pid,) = ranks.pids if eventually(lambda: bool(ranks.pids)) else ()
        with pytest.raises(EngineFailed, match=r"within 3 s, got none|connect before the deadline"):
            ranks.weights_digest()
        assert is_gone(pid)


def test_a_rank_of_another_protocol_version_is_refused(tmp_path: Path) -> None:
    other = PROTOCOL_VERSION + 1
    refusal = rf"version {PROTOCOL_VERSION} .* got {other}"
    with group(spec(tmp_path, version=other)) as ranks, pytest.raises(EngineFailed, match=refusal):
        ranks.weights_digest()


def test_an_answer_to_another_command_is_refused(tmp_path: Path) -> None:
    with group(spec(tmp_path, skew=1)) as ranks, pytest.raises(EngineFailed, match="answer to command 1"):
        ranks.weights_digest()


def test_a_program_that_cannot_start_is_named(tmp_path: Path) -> None:
    missing = RankSpec(program=(str(tmp_path / "no-such-program"),))
    with group(missing) as ranks, pytest.raises(EngineFailed, match="no-such-program"):
        ranks.weights_digest()


def test_a_program_that_ends_at_once_shows_its_last_words(tmp_path: Path) -> None:
    program = (sys.executable, "-c", "raise SystemExit('cannot import')")
    broken = RankSpec(log=tmp_path / "log", program=program)
    with group(broken) as ranks, pytest.raises(EngineFailed, match="cannot import"):
        ranks.weights_digest()


def test_killing_twice_does_no_harm(tmp_path: Path) -> None:
    processes = RankProcesses(spec(tmp_path))
    processes.kill()
    processes.kill()
    assert processes.failure() is not None


def test_the_controller_never_imports_torch() -> None:
    import subprocess

    modules = "sys, workers.controller.group, workers.rank.__main__"
    text = f"import {modules}; print([m for m in ('torch', 'deepspeed') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
