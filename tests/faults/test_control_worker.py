"""The real control worker: its clock, what hangs beside it, and how it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.adapters.sql.database.engine import transaction
from pipeline.adapters.sql.outbox import Debt, SqlOutboxStore, owe_all
from tests.support.paths import ROOT
from tests.support.store_rig import LINEAGE, StoreRig
from tests.support.waiting import eventually, patience

CONTROL = "pipeline.entrypoints.control"


@pytest.fixture
def rig(postgres_url: str, tmp_path: Path) -> Iterator[StoreRig]:
    """Every store on a fresh database, with one lineage."""
    rig = StoreRig(url=postgres_url, folder=tmp_path)
    rig.new_lineage()
    yield rig
    rig.close()


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Address of a server that takes connections and never answers, as a process does that was stopped."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(100)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def environment(
    postgres_url: str, redis_url: str, kafka_bootstrap: str, silent_server: str, new_topic: Callable[..., str]
) -> dict[str, str]:
    """Variables of a control worker whose registry hangs."""
    return os.environ | {
        "CORRIGENDA_DATABASE_URL": postgres_url,
        "CORRIGENDA_DATABASE_ROLE": "corrigenda_control",
        "CORRIGENDA_REDIS_URL": redis_url,
        "CORRIGENDA_KAFKA_BOOTSTRAP": kafka_bootstrap,
        "CORRIGENDA_MLFLOW_URI": silent_server,
        "CORRIGENDA_RESULTS_TOPIC": new_topic("results"),
        "CORRIGENDA_DEAD_LETTER_TOPIC": new_topic("dlq"),
    }


@contextmanager
def control_worker(environment: dict[str, str], log: Path, *argv: str) -> Iterator[subprocess.Popen[bytes]]:
    """A control worker, killed at the end if it still runs."""
    with log.open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", *(argv or (CONTROL,))], cwd=ROOT, env=environment, stdout=said, stderr=said
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def owe_some(rig: StoreRig, wave: str) -> set[str]:
    """Owe one side effect of each kind and two results of an edit; return the keys of those that need no registry."""
    edit_id = rig.correct(wave)
    result = {
        "edit_id": edit_id, "request_id": wave, "lineage": LINEAGE, "status": "rejected", "reason": None,
        "at": "2026-06-01T12:00:00+00:00",
    }  # fmt: skip
    debts = [
        Debt(kind="register", dedup_key=f"register:{wave}", payload={"snapshot_id": "0", "lineage": LINEAGE}),
        Debt(kind="champion", dedup_key=f"champion:{wave}", payload={"lineage": LINEAGE}),
        Debt(kind="doorbell", dedup_key=f"bell:{wave}", payload={"lineage": LINEAGE}),
        Debt(kind="result", dedup_key=f"result:{wave}:1", payload=result, stream=f"result:{edit_id}"),
        Debt(kind="result", dedup_key=f"result:{wave}:2", payload=result, stream=f"result:{edit_id}"),
    ]
    with transaction(rig.engine) as connection:
        owe_all(connection, debts)
    return {debt.dedup_key for debt in debts[2:]}


def done(rig: StoreRig) -> set[str]:
    return {row["dedup_key"] for row in rig.query("SELECT dedup_key FROM outbox WHERE done_at IS NOT NULL")}


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [2, 3600, -3600])
def test_a_control_worker_with_another_clock_does_all_its_work(
    seconds: int, rig: StoreRig, environment: dict[str, str], tmp_path: Path
) -> None:
    log = tmp_path / "control.log"
    with control_worker(environment, log, "tests.support.shifted_clock", str(seconds), CONTROL):
        for wave in ("a", "b"):
            wanted = owe_some(rig, wave)
            eventually(lambda wanted=wanted: wanted <= done(rig), lambda: f"the side effects; {log.read_text()}")


@pytest.mark.slow
def test_a_registry_that_hangs_delays_no_doorbell_and_no_result(
    rig: StoreRig, environment: dict[str, str], tmp_path: Path
) -> None:
    log = tmp_path / "control.log"
    with control_worker(environment, log):
        for wave in ("a", "b", "c"):
            wanted = owe_some(rig, wave)
            eventually(lambda wanted=wanted: wanted <= done(rig), lambda: f"the side effects; {log.read_text()}")
        assert not any(key.startswith("champion") for key in done(rig)), "the registry did answer"
    assert SqlOutboxStore(rig.engine).counts()["given_up"] == 0


@pytest.mark.slow
def test_a_control_worker_holds_no_torch_and_ends_when_it_is_told_to(
    rig: StoreRig, environment: dict[str, str], tmp_path: Path
) -> None:
    log = tmp_path / "control.log"
    with control_worker(environment, log) as process:
        wanted = owe_some(rig, "a")
        eventually(lambda: wanted <= done(rig), lambda: f"the side effects; {log.read_text()}")
        assert "torch" not in Path(f"/proc/{process.pid}/maps").read_text()
        process.send_signal(signal.SIGTERM)
        assert process.wait(patience()) == 0, log.read_text()


@pytest.mark.slow
def test_a_control_worker_without_a_broker_says_which_setting_is_missing(
    environment: dict[str, str], tmp_path: Path
) -> None:
    log = tmp_path / "control.log"
    del environment["CORRIGENDA_REDIS_URL"]
    with control_worker(environment, log) as process:
        assert process.wait(patience()) == 3
    assert "CORRIGENDA_REDIS_URL" in log.read_text()
