"""Starting, watching and ending rank processes, with a small program in place of the rank's."""

from __future__ import annotations

import os
import signal
import sys
import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from pipeline.domain.errors import CorrigendaError, EngineFailed, Misconfigured
from tests.support.processes import is_gone
from tests.support.waiting import eventually, patience
from workers.commands import PROTOCOL_VERSION, Generate
from workers.controller import rank_processes
from workers.controller.group import RankGroup
from workers.controller.rank_processes import RankProcesses, RankSpec

# Says hello and answers every command with nothing but its number.
OBEDIENT = """
import argparse, os
from multiprocessing.connection import Connection
from pathlib import Path
from pipeline.tied import tie_to_parent
from pipeline.domain.errors import *
from workers.commands import Hello, Reply
from workers.lifetime import RENDEZVOUS, leave_last_words
from workers.protocol import HELLOS, REPLIES, REQUESTS, receive, send
parser = argparse.ArgumentParser()
parser.add_argument("--connection", type=int); parser.add_argument("--parent", type=int)
options = parser.parse_args()
tie_to_parent(options.parent)
rank, folder = int(os.environ["RANK"]), Path(os.environ[RENDEZVOUS]).parent
START
if rank != 0:
    import signal; signal.pause()
connection = Connection(options.connection)
send(connection, HELLOS.encode(Hello(pid=os.getpid(), world_size=int(os.environ["WORLD_SIZE"]), version=VERSION)))
while (body := receive(connection)) is not None:
    BEHAVE
    send(connection, REPLIES.encode(Reply(seq=REQUESTS.decode(body).seq + SKEW)))
"""


def spec(
    tmp_path: Path,
    *,
    start: str = "",
    behave: str = "pass",
    num_ranks: int = 1,
    version: int = PROTOCOL_VERSION,
    skew: int = 0,
) -> RankSpec:
    """Processes that behave as told."""
    text = OBEDIENT.replace("VERSION", str(version)).replace("BEHAVE", behave).replace("SKEW", str(skew))
    text = text.replace("START", start)
    return RankSpec(num_ranks=num_ranks, log=tmp_path / "ranks.log", program=(sys.executable, "-c", text))


def group(spec: RankSpec, *, seconds: float | None = None) -> RankGroup:
    return RankGroup(spec, command_timeout=timedelta(seconds=seconds or patience()))


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
        eventually(lambda: is_gone(first[1]), "the end of rank 1")
        with pytest.raises(EngineFailed, match=r"rank 1 .* ended with status -9"):
            ranks.weights_digest()
        eventually(lambda: is_gone(first[0]), "the end of rank 0")
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
        eventually(lambda: ranks.pids, "a rank")
        (pid,) = ranks.pids
        with pytest.raises(EngineFailed, match=r"expected an answer to ping within 3 s, got none"):
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


LEAVE_WORDS = """
if rank == {first}:
    leave_last_words(folder, rank, {error})
    os._exit(1)
else:
    while not (folder / "last-words-{first}.json").exists(): pass
    leave_last_words(folder, rank, RuntimeError("Connection reset by peer"))
    os._exit(1)
"""


@pytest.mark.parametrize("first", [0, 1])
def test_what_the_first_rank_to_fail_said_reaches_the_user_and_not_that_the_others_lost_it(
    tmp_path: Path, first: int
) -> None:
    no_memory = spec(tmp_path, start=LEAVE_WORDS.format(first=first, error="MemoryError('3 GB')"), num_ranks=2)
    with group(no_memory) as ranks, pytest.raises(EngineFailed, match=rf"rank {first} .* status 1: MemoryError: 3 GB"):
        ranks.weights_digest()


def test_a_rank_that_was_killed_says_what_kills_most_often(tmp_path: Path) -> None:
    start = "import signal; os.kill(os.getpid(), signal.SIGKILL)"
    killed = pytest.raises(EngineFailed, match=r"status -9 \(SIGKILL, as the kernel sends it when memory runs out\)")
    with group(spec(tmp_path, start=start)) as ranks, killed:
        ranks.weights_digest()


def test_the_rank_that_spoke_first_is_the_cause_also_if_it_ends_last(tmp_path: Path) -> None:
    # Their group has the process id of rank 0, which is there until somebody has seen that it ended.
    start = """
words = folder / "last-words-1.json"
if rank == 1:
    leave_last_words(folder, rank, MemoryError("3 GB"))
    while Path(f"/proc/{os.getpgrp()}").exists(): pass
    os._exit(1)
while not words.exists(): pass
leave_last_words(folder, rank, RuntimeError("Connection reset by peer"))
os._exit(1)
"""
    lost = pytest.raises(EngineFailed, match=r"rank 1 .* status 1: MemoryError: 3 GB")
    with group(spec(tmp_path, start=start, num_ranks=2)) as ranks, lost:
        ranks.weights_digest()


def test_a_library_that_aborts_for_a_lost_peer_hides_nothing_of_what_that_peer_said(tmp_path: Path) -> None:
    start = """
if rank == 1:
    leave_last_words(folder, rank, MemoryError("3 GB"))
    os._exit(1)
while not (folder / "last-words-1.json").exists(): pass
os.abort()
"""
    with group(spec(tmp_path, start=start, num_ranks=2)) as ranks, pytest.raises(EngineFailed, match="3 GB"):
        ranks.weights_digest()


REAL = "import workers.rank.__main__ as rank\ndef broken(_):\n    {}\nrank._warm_base = broken\nrank.main()"
"""The real program of a rank, of which something fails before it serves."""
BEGINNINGS = {
    "an import": ("import no_such_library", "no_such_library"),
    "a text that is none": (r"raise RuntimeError('half a pair \ud800')", "half a pair"),
    "the end of an interpreter": ("raise SystemExit('expected a card, got none')", "expected a card, got none"),
    "a setting": ("raise rank.sys.modules['pipeline.domain.errors'].Misconfigured('1 device')", "^1 device$"),
}


@pytest.mark.parametrize(("fails", "said"), BEGINNINGS.values(), ids=BEGINNINGS)
def test_what_a_rank_says_before_it_serves_reaches_the_user(tmp_path: Path, fails: str, said: str) -> None:
    program = (sys.executable, "-c", REAL.format(fails))
    real = RankSpec(log=tmp_path / "log", program=program)
    with group(real) as ranks, pytest.raises(CorrigendaError, match=said):
        ranks.weights_digest()


SECRETS = {
    "CORRIGENDA_DATABASE_URL": "postgresql://u:hunter2@db/x",
    "CORRIGENDA_REDIS_URL": "redis://:hunter2@r/0",
    "CORRIGENDA_KAFKA_SASL_PASSWORD": "hunter2",
    "MLFLOW_TRACKING_PASSWORD": "hunter2",
    "MLFLOW_TRACKING_URI": "http://u:hunter2@m",
    "AWS_SECRET_ACCESS_KEY": "hunter2",
    "PGPASSWORD": "hunter2",
    "HF_TOKEN": "hunter2",
    "SOMEBODYS_OWN_SECRET": "hunter2",
}


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_no_rank_inherits_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_ranks: int) -> None:
    for name, value in {**SECRETS, "NCCL_DEBUG": "INFO", "LD_LIBRARY_PATH": "/usr/lib/cuda"}.items():
        monkeypatch.setenv(name, value)
    with group(spec(tmp_path, num_ranks=num_ranks)) as ranks:
        ranks.weights_digest()
        environments = [Path(f"/proc/{pid}/environ").read_text() for pid in ranks.pids]
    for environment in environments:
        names = {line.partition("=")[0] for line in environment.split("\0")}
        assert "hunter2" not in environment
        assert not names & SECRETS.keys()
        assert names >= {"NCCL_DEBUG", "LD_LIBRARY_PATH", "PATH", "RANK"}


def test_an_error_of_ours_that_a_rank_ended_with_is_raised_as_its_class(tmp_path: Path) -> None:
    words = LEAVE_WORDS.format(first=1, error="Misconfigured('expected at most a rank for each of 2 devices')")
    with group(spec(tmp_path, start=words, num_ranks=2)) as ranks:
        with pytest.raises(Misconfigured, match=r"^expected at most a rank for each of 2 devices$"):
            ranks.weights_digest()
        assert ranks.pids == ()


def test_a_rank_that_was_killed_is_the_cause_whatever_the_others_said(tmp_path: Path) -> None:
    start = """
import signal
if rank == 1:
    while not (folder / "last-words-0.json").exists(): pass
    os.kill(os.getpid(), signal.SIGKILL)
leave_last_words(folder, rank, RuntimeError("Connection reset by peer"))
signal.pause()
"""
    lost = pytest.raises(EngineFailed, match=r"rank 1 .* ended with status -9")
    with group(spec(tmp_path, start=start, num_ranks=2)) as ranks, lost:
        ranks.weights_digest()


def test_time_in_which_a_rank_waits_for_a_processor_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now, waited = [100.0], {1: {1: 0.0}, 2: {2: 0.0, 3: 50.0}}  # by process and thread
    monkeypatch.setattr("workers.controller.rank_processes.time.monotonic", lambda: now[0])
    monkeypatch.setattr(rank_processes, "_waited_for_processor", lambda pid: waited[pid])
    limit = rank_processes._Limit("load", 10.0)
    assert limit.exceeded((1, 2)) is None
    for _ in range(100):  # what rank 2 waits for gets a tenth of a processor: 90 of 100 seconds do not count
        now[0] += 1.0
        waited[2][3] += 0.9
        assert limit.exceeded((1, 2)) is None
    now[0] += 1.0
    assert "expected an answer to load within 10 s" in str(limit.exceeded((1, 2)))


def test_a_command_may_take_longer_than_the_limit_as_long_as_it_tells_steps(tmp_path: Path) -> None:
    steps = "from pipeline.domain.rank_api import Step; from time import sleep"
    told = "send(connection, REPLIES.encode(Reply(seq=1, step=Step(name='reading'))))"
    with group(spec(tmp_path, start=steps, behave=f"for _ in range(4): sleep(1.0); {told}"), seconds=3) as ranks:
        assert ranks.weights_digest() == ""
    silent = f"{told}; sleep(60)"
    late = pytest.raises(EngineFailed, match="expected an answer to ping or another step of it within 3 s, got none")
    with group(spec(tmp_path, start=steps, behave=silent), seconds=3) as ranks, late:
        ranks.weights_digest()


def test_the_kernel_says_how_long_this_process_has_waited_for_a_processor() -> None:
    told = rank_processes._waited_for_processor(os.getpid())
    assert threading.get_native_id() in told
    assert all(spent >= 0.0 for spent in told.values())
    assert rank_processes._waited_for_processor(2**22 + 1) == {}  # above the highest process id


def test_a_command_longer_than_the_bound_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    with group(spec(tmp_path)) as ranks, pytest.raises(EngineFailed, match="at most 67108864 bytes"):
        ranks._command(Generate(prompts=("x" * 2**26,), max_new_tokens=1))


def test_a_rank_that_does_not_read_a_long_command_is_killed_in_time(tmp_path: Path) -> None:
    stopped = spec(tmp_path, start="import signal")
    text = stopped.program[-1].replace("while (body", "signal.pause()\nwhile (body")  # after the hello
    with group(replace(stopped, program=(*stopped.program[:-1], text)), seconds=3) as ranks:
        with pytest.raises(EngineFailed, match="expected an answer to generate within 3 s, got none"):
            ranks._command(Generate(prompts=("x" * 2**25,), max_new_tokens=1))
        assert ranks.pids == ()


def test_what_a_killed_rank_leaves_among_temporary_files_goes_with_the_group(tmp_path: Path) -> None:
    named = tmp_path / "named"
    leave = f"import tempfile; Path({str(named)!r}).write_text(tempfile.mkdtemp())"
    with group(spec(tmp_path, start=leave)) as ranks:
        ranks.weights_digest()
        left = Path(named.read_text())
        assert left.is_dir()
        os.kill(ranks.pids[0], signal.SIGKILL)
    assert not left.exists()


def test_killing_twice_does_no_harm(tmp_path: Path) -> None:
    processes = RankProcesses(spec(tmp_path))
    processes.kill()
    processes.kill()
    assert processes.failure() is not None


def test_the_controller_never_imports_torch() -> None:
    import subprocess

    modules = "sys, workers.controller.group, workers.rank.__main__"
    text = f"import {modules}; print([m for m in ('torch', 'deepspeed') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=patience(), check=True)
    assert done.stdout.strip() == "[]"


NOTE_THREADS = "Path(FOLDER, str(rank)).write_text(' '.join(f'{os.environ.get(name)}' for name in NAMES))"


def threads_of_rank(tmp_path: Path, num_ranks: int) -> str:
    """Return the number of threads and how they wait, as the environment of the first rank has them."""
    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")
    start = NOTE_THREADS.replace("FOLDER", repr(str(tmp_path))).replace("NAMES", repr(names))
    with group(spec(tmp_path, num_ranks=num_ranks, start=start)) as ranks:
        ranks.weights_digest()
        return (tmp_path / "0").read_text()


def test_a_rank_by_itself_uses_every_core_several_share_them_and_threads_that_wait_sleep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(6)))
    assert threads_of_rank(tmp_path, 1) == "None PASSIVE"
    assert threads_of_rank(tmp_path, 2) == "3 PASSIVE"


def test_what_the_environment_says_of_threads_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert threads_of_rank(tmp_path, 2) == "5 ACTIVE"
