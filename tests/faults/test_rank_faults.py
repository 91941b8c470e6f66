"""Ranks and controllers that die: nothing stays behind, nothing half done is held, and the next load works."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from editors.solve.prior import Prior
from pipeline.domain.errors import EngineFailed, Misconfigured
from pipeline.domain.rank_api import LoadPlan
from tests.support.paths import ROOT
from tests.support.processes import environment_of, is_gone, listening
from tests.support.tiny_lineage import candidate, edits, file_ref, make_tiny_lineage
from tests.support.waiting import eventually, patience
from workers.controller.group import RankGroup
from workers.controller.rank_processes import RankSpec

CONTROLLER = """
import sys, time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from workers.controller.group import RankGroup
from workers.controller.rank_processes import RankSpec
group = RankGroup(RankSpec(num_ranks=2, log=Path(sys.argv[1])), command_timeout=timedelta(seconds=120))
group.start()
while len(group.pids) < 2:
    time.sleep(0.02)
print(*group.pids, flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def tiny_lineage(tmp_path_factory: pytest.TempPathFactory) -> LoadPlan:
    """A lineage without a snapshot."""
    return make_tiny_lineage(tmp_path_factory.mktemp("lineage"))


@pytest.fixture
def plan(tiny_lineage: LoadPlan, request: pytest.FixtureRequest) -> LoadPlan:
    """The lineage under a name of this test's own, so that no lease epoch of another test is in the way."""
    return replace(tiny_lineage, lineage=request.node.name)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankGroup]:
    """A group of one real rank that tests share: what they kill, the next load starts anew.

    Ranks see the environment in which they are started: a test that changes it closes the group first.
    """
    yield from group_of(1, tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankGroup]:
    """A group of two real ranks, shared in the same way."""
    yield from group_of(2, tmp_path_factory.mktemp("two"))


def group_of(num_ranks: int, folder: Path) -> Iterator[RankGroup]:
    """A group that is not started yet, and its end."""
    spec = RankSpec(num_ranks=num_ranks, log=folder / "ranks.log")
    with RankGroup(spec, command_timeout=timedelta(seconds=patience())) as group:
        yield group


def until_it_fails(group: RankGroup) -> None:
    """Trials until a kill falls into one of them, wherever that is."""
    while True:
        group.try_edits(candidate("t", edits(3)))


@pytest.mark.slow
@pytest.mark.usefixtures("forks_ranks")
def test_a_rank_killed_in_a_trial_is_engine_failed_and_the_next_load_starts_another(
    ranks: RankGroup, plan: LoadPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks.close()
    monkeypatch.setenv("CORRIGENDA_FAILPOINT", "rank:before_apply")
    ranks.load(plan, epoch=1)
    before, (pid,) = ranks.weights_digest(), ranks.pids
    with pytest.raises(EngineFailed, match="ended with status -9"):
        ranks.try_edits(candidate("t", edits(1)))
    assert is_gone(pid)
    assert ranks.pids == ()
    with pytest.raises(EngineFailed, match="loaded first"):
        ranks.try_edits(candidate("t", edits(1)))
    monkeypatch.delenv("CORRIGENDA_FAILPOINT")
    ranks.load(plan, epoch=1)
    assert ranks.weights_digest() == before
    assert ranks.try_edits(candidate("t", edits(1))).num_rows == 1


@pytest.mark.slow
@pytest.mark.usefixtures("forks_ranks")
@pytest.mark.parametrize(("rank", "delay"), [(0, 0.4), (1, 0.05), (1, 0.4)])
def test_either_of_two_ranks_killed_in_a_trial_ends_both_and_the_next_load_starts_two_others(
    two_ranks: RankGroup, plan: LoadPlan, rank: int, delay: float
) -> None:
    two_ranks.load(plan, epoch=1)
    before, pids = two_ranks.weights_digest(), two_ranks.pids
    killer = threading.Timer(delay, os.kill, (pids[rank], signal.SIGKILL))
    killer.start()
    with pytest.raises(EngineFailed, match="ended with status"):
        until_it_fails(two_ranks)
    killer.join()
    eventually(lambda: all(is_gone(pid) for pid in pids), "the end of both ranks")
    two_ranks.load(plan, epoch=1)
    assert not set(two_ranks.pids) & set(pids)
    assert two_ranks.weights_digest() == before
    assert two_ranks.try_edits(candidate("t", edits(3))).num_rows == 3


@pytest.mark.slow
@pytest.mark.usefixtures("forks_ranks")
def test_ranks_killed_before_a_candidate_has_files_leave_none_and_the_next_load_holds_the_parent(
    two_ranks: RankGroup, plan: LoadPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_ranks.close()
    monkeypatch.setenv("CORRIGENDA_FAILPOINT", "rank:before_files")
    two_ranks.load(plan, epoch=1)
    before, pids = two_ranks.weights_digest(), two_ranks.pids
    two_ranks.try_edits(candidate("t", edits(3)))
    with pytest.raises(EngineFailed, match="ended with status"):
        two_ranks.keep("t", folder=tmp_path, with_accumulator=True)
    eventually(lambda: all(is_gone(pid) for pid in pids), "the end of both ranks")
    assert not list(tmp_path.glob("*.safetensors"))
    monkeypatch.delenv("CORRIGENDA_FAILPOINT")
    two_ranks.load(plan, epoch=1)
    assert two_ranks.weights_digest() == before


@pytest.mark.slow
def test_ranks_at_work_listen_on_the_loopback_interface_only_and_hold_no_secret(
    two_ranks: RankGroup, plan: LoadPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_ranks.close()
    monkeypatch.setenv("CORRIGENDA_DATABASE_URL", "postgresql://u:hunter2@db/x")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    two_ranks.load(plan, epoch=1)
    two_ranks.try_edits(candidate("t", edits(3)))
    for pid in two_ranks.pids:
        addresses = listening(pid)
        assert addresses
        assert all(address.is_loopback for address in addresses), addresses
        assert "hunter2" not in "".join(environment_of(pid).values())


BEFORE_THEY_MEET = {
    "more ranks than devices": (
        "import torch; torch.cuda.is_available = lambda: True; torch.cuda.device_count = lambda: 1",
        Misconfigured,
        r"^expected at most a rank for each of 1 devices, got 2 ranks$",
    ),
    "a library that is missing": ("sys.modules['deepspeed'] = None", EngineFailed, "ModuleNotFoundError.*deepspeed"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("fails", "kind", "said"), BEFORE_THEY_MEET.values(), ids=BEFORE_THEY_MEET)
@pytest.mark.parametrize("is_warm", [True, False])
def test_what_ranks_say_before_they_meet_reaches_the_user(
    plan: LoadPlan, tmp_path: Path, fails: str, kind: type[Exception], said: str, is_warm: bool
) -> None:
    program = f"import sys; {fails}; import workers.rank.__main__ as rank; rank.main()"
    spec = RankSpec(num_ranks=2, log=tmp_path / "ranks.log", program=(sys.executable, "-c", program))
    with RankGroup(spec, command_timeout=timedelta(seconds=patience())) as group:
        if is_warm:
            group.start()
            eventually(lambda: len(group.pids) == 2, "two ranks")
            eventually(lambda: all(is_gone(pid) for pid in group.pids), "the end of both")
        with pytest.raises(kind, match=said):
            group.load(plan, epoch=1)


@pytest.mark.slow
@pytest.mark.usefixtures("forks_ranks")
def test_what_fails_on_one_rank_is_an_answer_of_both(two_ranks: RankGroup, plan: LoadPlan, tmp_path: Path) -> None:
    """The rank that solves for the second inner parameter has no prior of it: the other one waits for its factors."""
    second = plan.editor.inner_params[1]
    assert plan.ledger is not None
    prior = Prior.load(Path(plan.ledger.prior.path))
    del prior.moments[second]
    prior.save(tmp_path / "prior.safetensors")
    assert plan.ledger is not None
    ledger = replace(plan.ledger, prior=file_ref(tmp_path / "prior.safetensors"))
    two_ranks.load(replace(plan, ledger=ledger), epoch=1)
    with pytest.raises(Misconfigured, match=f"expected a prior of inner parameter {second}"):
        two_ranks.try_edits(candidate("t", edits(2)))
    two_ranks.load(plan, epoch=1)
    assert two_ranks.try_edits(candidate("t", edits(2))).num_rows == 2


@pytest.mark.slow
@pytest.mark.usefixtures("forks_ranks")
def test_a_rank_killed_while_idle_is_replaced_by_the_next_load(ranks: RankGroup, plan: LoadPlan) -> None:
    ranks.load(plan, epoch=1)
    before, (pid,) = ranks.weights_digest(), ranks.pids
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: is_gone(pid), "the end of the rank")
    ranks.load(plan, epoch=2)
    assert ranks.pids not in ((), (pid,))
    assert ranks.weights_digest() == before


@pytest.mark.parametrize("is_stopped", [False, True], ids=["running", "stopped"])
def test_no_rank_outlives_a_controller_that_is_killed(tmp_path: Path, is_stopped: bool) -> None:
    command = [sys.executable, "-c", CONTROLLER, str(tmp_path / "ranks.log")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as controller:
        try:
            assert controller.stdout is not None
            pids = [int(pid) for pid in controller.stdout.readline().split()]
            assert len(pids) == 2
            eventually(
                lambda: all("workers.rank" in Path(f"/proc/{pid}/cmdline").read_text() for pid in pids), "two ranks"
            )
            if is_stopped:
                eventually(lambda: all(_dies_with_its_parent(pid) for pid in pids), "ranks tied to their parent")
                for pid in pids:
                    os.kill(pid, signal.SIGSTOP)
        finally:
            controller.kill()
    eventually(lambda: all(is_gone(pid) for pid in pids), "the end of both ranks")


def _dies_with_its_parent(pid: int) -> bool:
    """Whether the rank has come as far as torch: its first act was to tie itself to its parent."""
    return "torch" in Path(f"/proc/{pid}/maps").read_text()
