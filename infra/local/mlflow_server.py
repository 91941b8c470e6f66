"""The recipe of the MLflow tracking server on SQLite and a folder, and what makes it start quickly.

``mlflow server`` imports MLflow twice, once to start the program that it runs, and makes its
tables at every first start: thirteen seconds on two cores. Here that program is started directly, with the
environment that ``mlflow server`` gives it, on a copy of an empty database that is made once: four seconds.
"""

import json
import os
import shutil
import signal
import sqlite3
import sys
import urllib.error
import urllib.request
from contextlib import closing
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from infra.local.base_model import cache_folder
from infra.local.recipe import HOST, Command, Plan

APPLICATION = "mlflow.server.fastapi_app:app"
COUNTS = ("SELECT count(*) FROM experiments", "SELECT count(*) FROM registered_models")
PROBE = "/api/2.0/mlflow/experiments/search?max_results=1"


class MlflowServer:
    """Tracking server, registry and artifacts in one process with one worker."""

    stop_signal = signal.SIGTERM

    def command(self, plan: Plan) -> Command:
        """Lay out the database from the template if there is one, and starts the server."""
        try:
            template = _template()
        except PackageNotFoundError as error:
            raise plan.failed("the wheel mlflow is not installed; `make setup` installs it") from error
        database = plan.folder / "mlflow.db"
        if template.is_file() and not database.exists():
            shutil.copyfile(template, database)
        server = ("--host", HOST, "--port", str(plan.port), "--log-level", "warning", "--no-access-log")
        return Command(
            argv=(sys.executable, "-W", "ignore", "-m", "uvicorn", *server, APPLICATION),
            env={
                "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{database}",
                "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
                "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
                "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(plan.folder / "artifacts"),
                "_MLFLOW_SGI_NAME": "uvicorn",
                # Seven more processes for work that we never ask for.
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "DO_NOT_TRACK": "true",
            },
        )

    def is_ready(self, plan: Plan) -> bool:
        """Return whether it answers a question that needs its database."""
        try:
            with urllib.request.urlopen(f"http://{HOST}:{plan.port}{PROBE}", timeout=30) as answer:
                return "experiments" in json.load(answer)
        except (OSError, urllib.error.URLError, ValueError):
            return False

    def settle(self, plan: Plan) -> None:
        """Keep a copy of the database as the template for the next stack, if it is still empty."""
        template = _template()
        if template.is_file():
            return
        with closing(sqlite3.connect(plan.folder / "mlflow.db")) as source:
            counts = [source.execute(query).fetchone()[0] for query in COUNTS]
            if counts == [1, 0]:
                _keep(source, template)


def _template() -> Path:
    return cache_folder() / "mlflow" / f"empty-{version('mlflow')}.db"


def _keep(source: sqlite3.Connection, template: Path) -> None:
    try:
        template.parent.mkdir(parents=True, exist_ok=True)
        fresh = template.with_name(f".{template.name}.{os.getpid()}")
        with closing(sqlite3.connect(fresh)) as target:
            source.backup(target)
        fresh.replace(template)
    except (OSError, sqlite3.Error):
        return  # without a template the next start is slower, and that is all
