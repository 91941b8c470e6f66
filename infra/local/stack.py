"""The embedded stack as a whole: start it, watch it, stop it."""

import signal
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

from infra.local.errors import LocalStackError, said
from infra.local.kafka_broker import KafkaBroker
from infra.local.mlflow_server import USER as MLFLOW_USER
from infra.local.mlflow_server import MlflowServer
from infra.local.ports import comes_free, free_port, why_taken
from infra.local.postgres_server import PostgresServer, database_url
from infra.local.processes import POLL_SECONDS, end, is_alive, launch
from infra.local.recipe import HOST, Plan, Recipe
from infra.local.records import ALL, Endpoints, ProcessState, ProcessStatus, Service, derived_password
from infra.local.redis_server import RedisServer
from infra.local.state import ProcessRecord, StackState, StateFolder

RECIPES: Mapping[Service, Recipe] = {
    Service.MLFLOW: MlflowServer(),
    Service.POSTGRES: PostgresServer(),
    Service.KAFKA: KafkaBroker(),
    Service.REDIS: RedisServer(),
}
START_TIMEOUT = timedelta(seconds=120)
SERVICE_GRACE = timedelta(seconds=10)
CHILD_GRACE = timedelta(seconds=20)


class LocalStack:
    """Broker, database, Redis and MLflow in one folder, and whatever else is started under the same roof.

    Processes outlive the program that started them; any other program that names the same folder finds them there.
    """

    def __init__(self, root: Path, *, is_durable: bool = True) -> None:
        """Name the folder; nothing is read or started yet.

        Args:
            root: folder for data, logs and state; made at the first start.
            is_durable: False lets the database skip waiting for the disk, for tests.
        """
        self.root = root.absolute()
        self._is_durable = is_durable
        self._folder = StateFolder(self.root)

    def start(self, services: Iterable[Service] = ALL, wait: bool = True) -> Endpoints:
        """Start those services that do not run yet, side by side, and say where they answer.

        Args:
            services: which ones; order does not matter.
            wait: whether to return only when all of them answer.

        Raises:
            LocalStackError: one of them cannot run; those that this call started are stopped again.
        """
        wanted = [service for service in ALL if service in set(services)]
        with self._folder.locked():
            started = self._launch_missing(wanted)
            if wait:
                self._wait_or_undo(wanted, undo=started)
        return self.endpoints()

    def choose_ports(self, ports: Mapping[str, int]) -> None:
        """Give services and processes other ports from their next start on; 0 stands for any that is free.

        Raises:
            LocalStackError: one of them runs, and so has its port, or a port is another's. Then none is changed.
        """
        with self._folder.locked():
            state = self._folder.load_or_create()
            chosen = dict(state.ports)
            for name, port in ports.items():
                record = state.find(name)
                if record is not None and is_alive(record.process):
                    if state.ports.get(name) == port:
                        continue
                    reason = f"it runs on port {state.ports.get(name)}; `corrigenda down` comes before another port"
                    raise LocalStackError(service=name, reason=reason)
                others = {taken: other for other, taken in chosen.items() if other != name}
                if port in others:
                    reason = f"expected a port of its own, got {port}, which is kept for {others[port]}"
                    raise LocalStackError(service=name, reason=reason)
                if port and not comes_free(port):
                    raise LocalStackError(service=name, reason=f"port {port} {why_taken(name, port)}")
                chosen[name] = port or free_port(chosen.values())
            self._folder.save(replace(state, ports=chosen))

    def endpoints(self) -> Endpoints:
        """Return where the services answer, running or not.

        Raises:
            LocalStackError: the stack was never started in this folder.
        """
        state = self._folder.load()
        if state is None:
            raise LocalStackError(service="stack", reason=f"nothing was ever started in {self.root}")
        return Endpoints(
            database_url=database_url(state.ports[Service.POSTGRES], state.password),
            redis_url=f"redis://:{_password(Service.REDIS, state)}@{HOST}:{state.ports[Service.REDIS]}/0",
            kafka_bootstrap=f"{HOST}:{state.ports[Service.KAFKA]}",
            kafka_incarnation=state.kafka_incarnation,
            mlflow_uri=f"http://{HOST}:{state.ports[Service.MLFLOW]}",
            mlflow_username=MLFLOW_USER,
            mlflow_password=_password(Service.MLFLOW, state),
        )

    def status(self) -> list[ProcessStatus]:
        """Return every process that was started here and not stopped, in the order of starting."""
        state = self._folder.load()
        return [_status(record, state.ports) for record in state.processes] if state else []

    def spawn(
        self, name: str, argv: Sequence[str], env: Mapping[str, str] | None = None, *, grace: timedelta = CHILD_GRACE
    ) -> ProcessStatus:
        """Start a process of ours under the same roof; if the one of that name still runs, it is left as it is.

        Args:
            name: its name in :meth:`status`, :meth:`stop` and of its log.
            argv: path of the program, and its arguments.
            env: variables on top of our own.
            grace: how long it may take to end after SIGTERM.

        Raises:
            LocalStackError: the name is a service's, or the program cannot be started.
        """
        if name in ALL:
            raise LocalStackError(service=name, reason="expected a name that is no service's for a spawned process")
        with self._folder.locked():
            state = self._folder.load_or_create()
            record = state.find(name)
            if record is None or not is_alive(record.process):
                record = self._launch(name, argv, env or {}, stop_signal=signal.SIGTERM, grace=grace)
                self._folder.save(state.with_process(record))
        return _status(record, state.ports)

    def port_for(self, name: str) -> int:
        """Return the port that a process of ours is to listen on: always the same one, as bookmarks name it.

        Raises:
            LocalStackError: another program has it, or the state cannot be read or written.
        """
        with self._folder.locked():
            state = self._folder.load_or_create()
            record, port = state.find(name), state.ports.get(name)
            is_running = record is not None and is_alive(record.process)
            if port is None:
                port = free_port(state.ports.values())
                self._folder.save(replace(state, ports={**state.ports, name: port}))
            elif not (is_running or comes_free(port)):
                raise LocalStackError(service=name, reason=f"its port {port} {why_taken(name, port)}")
            return port

    def revive(self, name: str) -> bool:
        """Start a process again that ended by itself; return whether that was needed. It may not answer yet.

        What somebody stopped meanwhile is no process of the stack any more, and stays away.

        Raises:
            LocalStackError: it cannot be started.
        """
        with self._folder.locked():
            state = self._folder.load_or_create()
            record = state.find(name)
            if record is None or is_alive(record.process):
                return False
            if name in ALL:
                self._launch_service(Service(name))
            else:
                _end_one(record)  # whatever it left behind goes before its successor comes
                grace = timedelta(seconds=record.grace_seconds)
                again = self._launch(name, record.argv, record.env, stop_signal=record.stop_signal, grace=grace)
                self._folder.save(state.with_process(again))
            self._count_restart(record)
            return True

    def stop(self, *names: str, within: timedelta | None = None) -> None:
        """End the processes of those names, or all: what was spawned in reverse order, then the services at once.

        Ending what does not run is no error. Nothing but processes that this stack started is ever touched.

        Args:
            names: of the processes; all if none is given.
            within: how long each may take before it is killed, if less than its own grace.
        """
        if not self.root.is_dir():
            return
        with self._folder.locked():
            state = self._folder.load()
            records = [r for r in reversed(state.processes) if not names or r.name in names] if state else []
            self._end(records, most=within.total_seconds() if within is not None else None)

    def _launch_missing(self, wanted: Sequence[Service]) -> list[str]:
        state = self._folder.load_or_create()
        running = {record.name for record in state.processes if is_alive(record.process)}
        started: list[str] = []
        try:
            for service in (service for service in wanted if service not in running):
                self._launch_service(service)
                started.append(service)
        except LocalStackError:
            self._undo(started)
            raise
        return started

    def _launch_service(self, service: Service) -> None:
        state = self._folder.load_or_create()
        leftover = state.find(service)
        if leftover is not None:
            _end_one(leftover)  # it died; whatever it left behind goes before its successor comes
        if service is Service.KAFKA:
            state = replace(state, kafka_incarnation=f"corrigenda-{uuid4()}")
        if service is Service.REDIS:
            # Our processes know it. It must not open the database as its owner.
            state = replace(state, redis_password=derived_password(state.password, service))
        plan = self._plan(service, state)
        if not comes_free(plan.port):
            raise plan.failed(f"its port {plan.port} {why_taken(service, plan.port)}")
        try:
            plan.folder.mkdir(mode=0o700, exist_ok=True)
            command = RECIPES[service].command(plan)
        except OSError as error:
            raise plan.failed(f"cannot lay out its data: {said(error)}") from error
        stop_signal = RECIPES[service].stop_signal
        record = self._launch(service, command.argv, command.env, stop_signal=stop_signal, grace=SERVICE_GRACE)
        self._folder.save(state.with_process(record))

    def _count_restart(self, before: ProcessRecord) -> None:
        state = self._folder.load_or_create()
        now = state.find(before.name)
        if now is not None:
            counted = replace(now, restarts=before.restarts + 1, restarted_at=time.time())
            self._folder.save(state.with_process(counted))

    def _launch(
        self, name: str, argv: Sequence[str], env: Mapping[str, str], *, stop_signal: int, grace: timedelta
    ) -> ProcessRecord:
        log = self._folder.log(name)
        try:
            process = launch(argv, log=log, env=env)
        except OSError as error:
            raise LocalStackError(service=name, reason=f"cannot start {argv[0]}: {said(error)}", log=log) from error
        return ProcessRecord(
            name=name,
            process=process,
            stop_signal=stop_signal,
            grace_seconds=grace.total_seconds(),
            log=str(log),
            argv=() if name in ALL else tuple(argv),
            env={} if name in ALL else dict(env),
        )

    def _wait_or_undo(self, wanted: Sequence[Service], *, undo: list[str]) -> None:
        state = self._folder.load_or_create()
        try:
            given_up = threading.Event()
            with ThreadPoolExecutor(max_workers=len(ALL)) as pool:
                waits = [pool.submit(self._wait, service, state, given_up) for service in wanted]
                try:
                    for one in as_completed(waits):
                        one.result()
                finally:
                    given_up.set()  # nobody waits for the others once one has failed, or a person has enough
        except BaseException:
            self._undo(undo)
            raise

    def _wait(self, service: Service, state: StackState, given_up: threading.Event) -> None:
        plan = self._plan(service, state)
        record = state.find(service)
        deadline = time.monotonic() + START_TIMEOUT.total_seconds()
        while not RECIPES[service].is_ready(plan):
            if record is None or not is_alive(record.process):
                raise plan.failed(f"it ended while starting, saying: {plan.last_words()}")
            if time.monotonic() > deadline:
                raise plan.failed(f"expected an answer on port {plan.port} within {START_TIMEOUT}, got none")
            if given_up.wait(POLL_SECONDS):
                return
        RECIPES[service].settle(plan)

    def _undo(self, started: Sequence[str]) -> None:
        state = self._folder.load_or_create()
        self._end([record for record in reversed(state.processes) if record.name in started])

    def _end(self, records: Sequence[ProcessRecord], *, most: float | None = None) -> None:
        in_order = [record for record in records if record.name not in ALL] if most is None else []
        for record in in_order:
            _end_one(record)
            self._forget(record)
        at_once = [record for record in records if record not in in_order]
        with ThreadPoolExecutor(max_workers=max(len(at_once), 1)) as pool:
            list(pool.map(lambda record: _end_one(record, most), at_once))
        for record in at_once:
            self._forget(record)

    def _forget(self, record: ProcessRecord) -> None:
        self._folder.save(self._folder.load_or_create().without(record.name))

    def _plan(self, service: Service, state: StackState) -> Plan:
        return Plan(
            service=service,
            folder=self.root / service,
            log=self._folder.log(service),
            port=state.ports[service],
            password=_password(service, state),
            incarnation=state.kafka_incarnation,
            is_durable=self._is_durable,
        )


def _password(service: Service, state: StackState) -> str:
    if service is Service.MLFLOW:
        return derived_password(state.password, service)
    return state.redis_password or state.password if service is Service.REDIS else state.password


def _end_one(record: ProcessRecord, most: float | None = None) -> None:
    grace = record.grace_seconds if most is None else min(most, record.grace_seconds)
    end(record.process, first=signal.Signals(record.stop_signal), grace_seconds=grace)


def _status(record: ProcessRecord, ports: Mapping[str, int]) -> ProcessStatus:
    return ProcessStatus(
        name=record.name,
        state=ProcessState.RUNNING if is_alive(record.process) else ProcessState.DIED,
        pid=record.process.pid,
        port=ports.get(record.name),
        log=Path(record.log),
        restarts=record.restarts,
        restarted_at=None if record.restarted_at is None else datetime.fromtimestamp(record.restarted_at, UTC),
    )
