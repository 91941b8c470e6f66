"""Commands that start, stop, check and clean what Corrigenda runs on."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infra.local import LocalStack, Service
from infra.local.base_model import default_model_folder, is_ready
from pipeline.bootstrap import create_topics, pruner, stores
from pipeline.domain.errors import CorrigendaError, InvalidInput, Misconfigured, Unavailable
from pipeline.domain.formats.counting import counted, spoken
from pipeline.domain.formats.sizes import parse_age, shown_size
from pipeline.domain.retries import WEBHOOK
from pipeline.entrypoints import resident
from pipeline.entrypoints.console import (
    ExitCode,
    JsonOption,
    complain,
    exits_clearly,
    note,
    print_json,
    print_record,
    print_rows,
    say,
    told,
)
from pipeline.entrypoints.liveness import asked
from pipeline.entrypoints.local_settings import cli_actor, current_settings, load_settings, page_of
from pipeline.entrypoints.processes import (
    WEB,
    WEB_STARTS_WITHIN,
    edit_worker_name,
    is_answering,
    start_control_worker,
    start_edit_worker,
    start_intake,
    start_stack,
    start_supervisor,
    start_web,
    told_of,
)
from pipeline.entrypoints.signs import SignOfLife
from pipeline.services.registry.links import model_link

if TYPE_CHECKING:
    from pipeline.config import Settings

HomeOption = Annotated[
    Path | None, typer.Option("--home", help="Folder of the stack; CORRIGENDA_HOME, or .corrigenda.")
]
FREE_BYTES_WANTED = 2 << 30
MAX_PORT = 65_535
OWED_TOO_LONG = timedelta(minutes=10)
"""A side effect that waits longer has a service that is away, or no control worker."""


def add_commands(app: typer.Typer) -> None:
    """Register the commands of this file."""
    for command in (up, down, doctor, prune, demo):
        app.command()(exits_clearly(command))


def up(
    home: HomeOption = None,
    port: Annotated[
        list[str] | None,
        typer.Option(help="NAME=PORT of 127.0.0.1, kept from now on; 0 is any free one; repeatable."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Start the embedded stack and our processes in one folder, on loopback ports, and say where they are.

    What runs already is left as it is, so it may be run again.

    Example: corrigenda up && corrigenda lineage create facts
    """
    ports = dict(_port(text) for text in port or ())
    with SignOfLife("starting Kafka, PostgreSQL, Redis and MLflow", is_quiet=as_json) as sign:
        stack, settings = start_stack(home, ports)
        sign.tell("starting intake, workers and the supervisor")
        start_intake(stack, settings)
        start_control_worker(stack, settings, has_pages=True)
        web = start_web(stack, settings)
        lineages = stores(settings).lineages.lineages()
        for lineage in lineages:
            start_edit_worker(stack, settings, lineage.settings.base)
        start_supervisor(stack, settings)
        sign.tell("waiting for the HTTP API")
        is_served = is_answering(web, within=WEB_STARTS_WITHIN)  # a script that asks it next is not turned away
    if as_json:
        print_json([asdict(process) for process in stack.status()])
        return
    _print_processes(stack)
    names = [lineage.settings.name for lineage in lineages]
    pages = [_page(settings, name) for name in names]
    say()
    print_record(_places(stack, settings, pages, web), as_json=False)
    if not is_served:
        note(f"the HTTP API does not answer yet after {spoken(WEB_STARTS_WITHIN)}; `corrigenda logs web` says why")


def _port(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    if name not in (*Service, WEB) or not number.isdigit() or int(number) > MAX_PORT:
        names = ", ".join((*Service, WEB))
        raise InvalidInput(f"expected NAME=PORT with one of {names} and a port of 0 to {MAX_PORT}; got {text!r:.80}")
    return name, int(number)


def _page(settings: Settings, lineage: str) -> str:
    """Return the address of a lineage's newest candidate or version in MLflow; of its model before the first."""
    newest = stores(settings).snapshots.newest_version(lineage)
    page = page_of(settings, lineage, newest.registry_version) if newest else None
    return page or model_link(settings.mlflow_pages, lineage)


def _places(stack: LocalStack, settings: Settings, pages: Sequence[str], web: str) -> dict[str, object]:
    """Return where everything is, and what comes next; `pages` are the lineages' in MLflow."""
    found: dict[str, object] = {"MLflow": list(pages) or settings.mlflow_uri}
    found["Kafka"] = f"{settings.kafka_bootstrap}, topic {settings.requests_topic}"
    found["HTTP API"] = web
    found["review"] = f"{web}/review; `corrigenda person add YOU --role reviewer` makes your token for it"
    found["MLflow login"] = "`corrigenda mlflow-user YOU` makes your user there and shows its password once"
    found["logs"] = f"{stack.root / 'logs'}, or `corrigenda logs --follow`"
    found["SQL"] = "`corrigenda sql` opens psql with an auditor's login"
    found["next"] = "corrigenda submit --help" if pages else "corrigenda lineage create NAME"
    return found


def down(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Stop everything that `up` started in the folder; data stay.

    Example: corrigenda down
    """
    stack = LocalStack(home or load_settings().home)
    names = [process.name for process in stack.status()]
    names += ["ask"] if resident.stop(stack.root) else []
    with SignOfLife(f"stopping {counted(len(names), 'process', 'processes')}", is_quiet=as_json or not names):
        stack.stop()
    if as_json:
        print_json({"stopped": names})
    else:
        say(f"stopped {', '.join(names)}; data stay in {stack.root}" if names else f"nothing runs in {stack.root}")


def doctor(as_json: JsonOption = False) -> None:
    """Check what Corrigenda needs, one line each; exit status 4 if something is missing.

    Example: corrigenda doctor
    """
    settings = current_settings()
    checks: dict[str, Callable[[], str]] = {
        "database": lambda: f"answers, {stores(settings).history.now():%Y-%m-%d %H:%M:%S} UTC",
        "schema": lambda: _check_schema(settings),
        "broker": lambda: _check_broker(settings),
        "celery broker": lambda: _check_redis(settings),
        "mlflow": lambda: _check_mlflow(settings),
        "side effects": lambda: _check_outbox(settings),
        "artifacts": lambda: _check_disk(settings.artifact_root),
        "embedded model": lambda: _check_model(),
        "processes": lambda: _check_processes(settings.home),
        "lineages": lambda: _check_lineages(settings),
    }
    rows = [_checked(name, check) for name, check in checks.items()]
    if as_json:
        print_json(rows)
    for row in [] if as_json else rows:
        (say if row["ok"] else complain)(f"{'ok  ' if row['ok'] else 'FAIL'} {row['check']}: {row['detail']}")
    if not all(row["ok"] for row in rows):
        raise typer.Exit(ExitCode.unavailable)


def prune(
    older_than: Annotated[str, typer.Option(help="Age of what may go: 12h, 30d, 8w; an hour at least.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Take away old done side effects, bytes of dead letters, notes of the HTTP API, and files that nothing needs.

    Snapshots, edits, the history and the reasons of dead letters stay. It may run beside the workers.

    Example: corrigenda prune --older-than 30d --dry-run
    """
    found = pruner(current_settings()).prune(parse_age(older_than), actor=cli_actor(), is_dry_run=dry_run)
    if as_json:
        print_json(asdict(found))
        return
    outbox = counted(found.num_outbox, "done side effect")
    letters, files = counted(found.num_dead_letters, "dead letter"), counted(found.num_artifacts, "file")
    notes, size = counted(found.num_submissions, "note"), shown_size(found.num_bytes)
    did = "would take" if dry_run else "took"
    say(f"{did} away {outbox}, the bytes of {letters}, {notes} of the HTTP API, and {files}, {size}")


def demo(
    home: HomeOption = None,
    keep: Annotated[bool, typer.Option(help="Leave the stack running, to look around.")] = False,
    # The eleventh is the one that is reverted.
    num_corrections: Annotated[
        int | None, typer.Option("--corrections", min=11, help="Send so many of the real corrections; all without it.")
    ] = None,
) -> None:
    """Run the main job on the embedded stack, from a topic to an approved model and back.

    Example: corrigenda demo
    """
    from pipeline.entrypoints.demo.run import run_demo

    raise typer.Exit(run_demo(home, keep=keep, num_corrections=num_corrections))


def _print_processes(stack: LocalStack) -> None:
    rows = [asdict(process) for process in stack.status()]
    columns = {"name": "process", "state": "state", "pid": "pid", "port": "port", "restarts": "restarts"}
    print_rows(rows, columns, as_json=False, empty="nothing is running")


def _checked(name: str, check: Callable[[], str]) -> dict[str, object]:
    try:
        return {"check": name, "ok": True, "detail": check()}
    except (CorrigendaError, OSError) as error:
        return {"check": name, "ok": False, "detail": told(error)[0]}


def _receivers_away(num_failing: int) -> str:
    verb = "waits" if num_failing == 1 else "wait"
    return f"{counted(num_failing, 'webhook')} {verb} for a receiver that is away: `corrigenda outbox list --failing`"


def _check_outbox(settings: Settings) -> str:
    """Say what is owed and given up. Webhooks alone fail nothing: a receiver that is dead is not ours to mend."""
    kept = stores(settings)
    counts, now = kept.outbox.counts(without=[WEBHOOK]), kept.history.now()
    if counts["given_up"]:
        since = f"{counts['given_up_since']:%Y-%m-%d %H:%M:%S}"
        raise Unavailable(
            f"{counts['given_up']} were given up since {since}: `corrigenda outbox list` says why, "
            "`corrigenda outbox resend --all` owes them again"
        )
    if counts["owed"] and now - counts["owed_since"] > OWED_TOO_LONG:
        raise Unavailable(f"{counts['owed']} are owed, the oldest since {counts['owed_since']:%Y-%m-%d %H:%M:%S}")
    found = f"{counts['owed']} are owed, none was given up"
    every = kept.outbox.counts()
    if every["given_up"]:
        found += f" but {counted(every['given_up'], 'webhook')}: `corrigenda outbox list`"
    if num_failing := every["failing"] - counts["failing"]:
        found += f"; {_receivers_away(num_failing)}"
    return found


def _check_schema(settings: Settings) -> str:
    from pipeline.adapters.schema import current

    found, newest = current(settings.database_url.get_secret_value())
    if found != newest:
        raise Misconfigured(f"expected revision {newest}, got {found or 'none'}; `corrigenda up` brings it there")
    return f"revision {found}, the newest"


def _check_lineages(settings: Settings) -> str:
    """Say which lineages are held, and on this machine's stack which base nobody edits."""
    lineages = stores(settings).lineages.lineages()
    held = [f"{one.settings.name} is held: {one.hold}" for one in lineages if one.hold is not None]
    running = {process.name for process in LocalStack(settings.home).status()}
    idle = [one.settings.name for one in lineages if edit_worker_name(one.settings.base) not in running]
    if running and idle:
        held.append(f"no edit worker for {', '.join(idle)}; `corrigenda up` starts it")
    if held:
        raise Unavailable("; ".join(held))
    return f"{counted(len(lineages), 'lineage')}, none is held"


def _check_broker(settings: Settings) -> str:
    create_topics(settings)
    return f"answers at {settings.kafka_bootstrap}, topics are there"


def _check_redis(settings: Settings) -> str:
    from pipeline.adapters import reachability

    settings.require("redis_url")
    reachability.redis(settings.redis_url.get_secret_value())()
    return "answers"


def _check_mlflow(settings: Settings) -> str:
    from pipeline.adapters import reachability

    settings.require("mlflow_uri")
    user = settings.mlflow_username
    reachability.mlflow(settings.mlflow_uri, username=user, password=settings.mlflow_password.get_secret_value())()
    return f"answers at {settings.mlflow_uri}"


def _check_disk(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < FREE_BYTES_WANTED:
        raise Misconfigured(f"expected 2 GiB free under {folder}, got {free / 2**30:.1f}")
    return f"{free / 2**30:.0f} GiB free under {folder}"


def _check_model() -> str:
    folder = default_model_folder()
    return str(folder) if is_ready(folder) else f"not converted yet; made on first use in {folder}"


def _check_processes(home: Path) -> str:
    found = LocalStack(home).status()
    died = [process for process in found if process.state != "running"]
    if died:
        raise Unavailable("; ".join(told_of(process) for process in died))
    stuck = [
        f"{process.name} makes no progress ({part}: {why}), see {process.log}"
        for process in found
        if (alive := asked(home, process.name)) is not None
        for part, why in alive.failing.items()
    ]
    # Ready means that what it depends on answers to its own login, which is not the one of this command.
    stuck += [
        f"{process.name} cannot work ({part}: {why})"
        for process in ([] if stuck else found)
        if (ready := asked(home, process.name, "/readyz")) is not None
        for part, why in ready.failing.items()
    ]
    if stuck:
        raise Unavailable("; ".join(stuck))
    return ", ".join(told_of(process) for process in found) or "none of ours on this machine"
