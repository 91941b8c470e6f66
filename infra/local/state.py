"""What a stack remembers between commands: ports, password, processes."""

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from infra.local.errors import LocalStackError, said
from infra.local.ports import PORT_RANGE, free_port, port_is_free
from infra.local.processes import ProcessId
from infra.local.records import ALL, Service, derived_password

STATE_FILE = "state.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessRecord:
    """A process that the stack started and has to end."""

    name: str
    """Name of the service or of the spawned process, unique in the stack."""
    process: ProcessId
    """Process id and birth, which no later process has."""
    stop_signal: int
    """The signal that asks it to end."""
    grace_seconds: float
    """How long it may take to end before it is killed."""
    log: str
    """Path of its log."""
    argv: tuple[str, ...] = ()
    """How it is started again; empty for a service, whose recipe says that."""
    env: dict[str, str] = field(default_factory=dict, repr=False)
    """Variables that it was started with, on top of those of the program that started it; they may hold secrets."""
    restarts: int = 0
    """How often it was started again after it had ended by itself."""
    restarted_at: float | None = None
    """When that was last, in seconds since 1970; None if never."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StackState:
    """Everything that a stack remembers."""

    password: str = field(repr=False)
    """Password of PostgreSQL's owner; others are derived from it."""
    ports: dict[str, int]
    """One for each service and for each process that asked for one, chosen at the first start and kept."""
    kafka_incarnation: str = ""
    """Cluster id of the broker that was started last."""
    redis_password: str = field(default="", repr=False)
    """Password of the Redis that was started last; empty where an earlier version did, with the owner's."""
    processes: tuple[ProcessRecord, ...] = field(default=())
    """In the order of starting."""

    def with_process(self, record: ProcessRecord) -> "StackState":
        """Return this state with one process more, in place of an earlier one of that name."""
        return replace(self, processes=(*self.without(record.name).processes, record))

    def without(self, name: str) -> "StackState":
        """Return this state without the process of that name."""
        return replace(self, processes=tuple(p for p in self.processes if p.name != name))

    def find(self, name: str) -> ProcessRecord | None:
        """Return the process of that name; None if none was started."""
        return next((p for p in self.processes if p.name == name), None)


class StateFolder:
    """The folder of one stack: its state file, its lock, its logs."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def load(self) -> StackState | None:
        """Return what the stack remembers; None if it was never started."""
        path = self.root / STATE_FILE
        try:
            return _decode(path.read_text())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise LocalStackError(service="stack", reason=f"cannot read its state: {said(error)}") from error
        except (ValueError, KeyError, TypeError) as error:
            reason = f"cannot read its state from {path}, which is not as it was written: {error!r}"
            raise LocalStackError(service="stack", reason=reason) from error

    def load_or_create(self) -> StackState:
        """Return what the stack remembers, or fresh ports and a fresh password, which are written down."""
        known = self.load()
        if known is not None:
            return known
        password = secrets.token_urlsafe(24)
        redis_password = derived_password(password, Service.REDIS)
        state = StackState(password=password, ports=_free_ports(self.root), redis_password=redis_password)
        self.save(state)
        return state

    def save(self, state: StackState) -> None:
        """Replace the state file, readable by its owner only."""
        fresh = self.root / f".{STATE_FILE}.{os.getpid()}"
        try:
            fresh.touch(mode=0o600)
            fresh.write_text(json.dumps(asdict(state), indent=1))
            fresh.replace(self.root / STATE_FILE)
        except OSError as error:
            raise LocalStackError(service="stack", reason=f"cannot write to its folder: {said(error)}") from error

    def log(self, name: str) -> Path:
        """Return the path of the log of the process of that name."""
        return self.root / "logs" / f"{name}.log"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let one starter or stopper at a time into the folder, which is made if it is missing."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            # Others may pass through (PostgreSQL runs as somebody else when we are root) and see nothing.
            self.root.chmod(0o711)
            (self.root / "logs").mkdir(mode=0o700, exist_ok=True)
            handle = (self.root / "lock").open("a")
        except OSError as error:
            raise LocalStackError(service="stack", reason=f"cannot use its folder: {said(error)}") from error
        with handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield


def _free_ports(root: Path) -> dict[str, int]:
    """Return a port for each service; that of MLflow follows from the folder, so that bookmarks live on."""
    first, last = PORT_RANGE
    kept = first + int.from_bytes(sha256(str(root.resolve()).encode()).digest()) % (last - first)
    ports: dict[str, int] = {}
    for service in ALL:
        ports[service] = free_port([kept, *ports.values()])
    return ports | ({Service.MLFLOW: kept} if port_is_free(kept) else {})


def _decode(text: str) -> StackState:
    raw = json.loads(text)
    processes = tuple(
        ProcessRecord(**{**record, "process": ProcessId(**record["process"]), "argv": tuple(record.get("argv", ()))})
        for record in raw.pop("processes")
    )
    return StackState(**{**raw, "processes": processes, "ports": {str(k): int(v) for k, v in raw["ports"].items()}})
