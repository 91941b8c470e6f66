"""What `up` and the demo start on one machine: the embedded stack, and our own processes beside it."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from infra.local import LocalStack, LocalStackError, ProcessState, ProcessStatus
from pipeline.adapters.login_names import Login
from pipeline.bootstrap import create_topics
from pipeline.domain.errors import Misconfigured
from pipeline.domain.rank_api import BaseSpec
from pipeline.entrypoints.liveness import health_file
from pipeline.entrypoints.local_settings import environment_of, load_settings, with_endpoints
from pipeline.services.registry.links import review_link

if TYPE_CHECKING:
    from pipeline.config import Settings

INTAKE = "intake"
CONTROL_WORKER = "control-worker"
SUPERVISOR = "supervisor"
WEB = "web"
HOST = "127.0.0.1"
EDIT_WORKER_GRACE = timedelta(seconds=60)
WEB_STARTS_WITHIN = timedelta(seconds=60)
"""After which `up` goes on without the HTTP API, and says so: a busy machine takes seconds to import it."""


def start_stack(home: Path | None, ports: Mapping[str, int] | None = None) -> tuple[LocalStack, Settings]:
    """Start the services, bring the schema up to date, let our logins in and make the topics.

    Args:
        home: folder of the stack; what the settings say if None.
        ports: other ports for what does not run; 0 for any that is free.

    Raises:
        Misconfigured: if a service cannot be started, naming it and its log.
    """
    from pipeline.adapters.logins import let_in
    from pipeline.adapters.schema import upgrade

    settings = load_settings()
    settings = settings.model_copy(update={"home": (home or settings.home).absolute()})
    stack = LocalStack(settings.home)
    try:
        if ports:
            stack.choose_ports(ports)
        endpoints = stack.start()
    except LocalStackError as error:
        raise Misconfigured(str(error)) from error
    settings = with_endpoints(settings, endpoints)
    upgrade(endpoints.database_url)
    let_in(endpoints.database_url, [endpoints.login_url(login) for login in Login])
    create_topics(settings)
    return stack, settings


def start_supervisor(stack: LocalStack, settings: Settings) -> None:
    """Start the process that starts again what ends by itself: services and our own processes."""
    from pydantic import SecretStr

    # It needs no login: it hands each process the variables that this was first started with.
    secret = [name for name in type(settings).model_fields if isinstance(getattr(settings, name), SecretStr)]
    plain = settings.model_copy(update=dict.fromkeys(secret, SecretStr("")))
    argv = [sys.executable, "-m", "pipeline.entrypoints.supervisor"]
    stack.spawn(SUPERVISOR, argv, environment_of(with_health(stack, plain, SUPERVISOR)))


def start_intake(stack: LocalStack, settings: Settings) -> None:
    """Start the process that records corrections."""
    argv = [sys.executable, "-m", "pipeline.entrypoints.consumer"]
    stack.spawn(INTAKE, argv, _environment(stack, with_health(stack, settings, INTAKE), Login.intake))


def start_control_worker(stack: LocalStack, settings: Settings, *, has_pages: bool = False) -> None:
    """Start the process that relays the outbox, rings again, and reconciles the registry.

    Args:
        stack: where it runs.
        settings: its settings.
        has_pages: whether our own pages are served beside it, so that MLflow's can link them.
    """
    if has_pages and not settings.web_public_url:
        settings = settings.model_copy(update={"web_public_url": f"http://{HOST}:{stack.port_for(WEB)}"})
    argv = [sys.executable, "-m", "pipeline.entrypoints.control"]
    stack.spawn(CONTROL_WORKER, argv, _environment(stack, with_health(stack, settings, CONTROL_WORKER), Login.control))


def start_web(stack: LocalStack, settings: Settings) -> str:
    """Start the process of the HTTP API and the pages; return its address."""
    port = stack.port_for(WEB)
    settings = with_health(stack, settings, WEB).model_copy(update={"web_host": HOST, "web_port": port})
    argv = [sys.executable, "-m", "pipeline.entrypoints.web"]
    stack.spawn(WEB, argv, _environment(stack, settings, Login.web))
    return f"http://{HOST}:{port}"


def is_answering(address: str, *, within: timedelta) -> bool:
    """Wait until a process takes connections at an address such as `http://127.0.0.1:8080`; False if it never does."""
    ends, at = time.monotonic() + within.total_seconds(), urlsplit(address)
    while True:
        try:
            socket.create_connection((at.hostname, at.port), timeout=1).close()
        except OSError:
            if time.monotonic() >= ends:
                return False
            time.sleep(0.1)
        else:
            return True


def web_address(stack: LocalStack) -> str | None:
    """Return where the HTTP API and the pages of a stack answer; None while they do not run there."""
    for process in stack.status():
        if process.name == WEB and process.state is ProcessState.RUNNING and process.port:
            return f"http://{HOST}:{process.port}"
    return None


def review_page(stack: LocalStack, lineage: str, seq: int) -> str | None:
    """Return the address of a snapshot's page for reviewers; None while no page is served there."""
    address = web_address(stack)
    return review_link(address, lineage, seq) if address else None


def start_edit_worker(stack: LocalStack, settings: Settings, base_spec: BaseSpec) -> str:
    """Start the worker whose ranks hold one base; return its name among the stack's processes."""
    base = base_spec.digest[:12]
    settings = settings.model_copy(
        update={
            "warm_base": Path(base_spec.ref),
            "warm_base_digest": base_spec.digest,
            "warm_base_task": base_spec.task,
        }
    )
    name = edit_worker_name(base_spec)
    argv = [*_celery(), "-P", "prefork", "-c", "1", "-Q", f"edits.{base}", "-n", f"edit-{base}@%h"]
    settings = with_health(stack, settings, name)
    stack.spawn(name, argv, _environment(stack, settings, Login.editor), grace=EDIT_WORKER_GRACE)
    return name


def edit_worker_name(base_spec: BaseSpec) -> str:
    """Return the name of the worker of a base among the stack's processes."""
    return f"edit-worker-{base_spec.digest[:12]}"


def with_health(stack: LocalStack, settings: Settings, name: str) -> Settings:
    """Return the settings of a process of the stack that answers `/livez` and `/metrics` at a free port."""
    return settings.model_copy(update={"health_port": 0, "health_file": health_file(stack.root, name)})


def told_of(process: ProcessStatus) -> str:
    """Return how a process is, in a few words: its name, and what happened to it if anything did."""
    # It starts the others again; nobody starts it.
    again = "; `corrigenda up` starts it again" if process.name == SUPERVISOR else ""
    died = f" died, see {process.log}{again}" if process.state is ProcessState.DIED else ""
    times = f" started again {process.restarts} times" if process.restarts > 1 else " started again once"
    last = f", last at {process.restarted_at.astimezone():%Y-%m-%d %H:%M:%S}" if process.restarted_at else ""
    return f"{process.name}{died}{times + last if process.restarts else ''}"


def _environment(stack: LocalStack, settings: Settings, login: Login) -> dict[str, str]:
    return environment_of(with_endpoints(settings, stack.endpoints(), login))


def _celery() -> list[str]:
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "INFO"]
    return [sys.executable, "-m", "celery", "-A", "workers.app", "worker", *quiet]
