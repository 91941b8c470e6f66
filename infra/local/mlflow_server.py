"""The recipe of the MLflow tracking server on SQLite and a folder, and what makes it start quickly.

``mlflow server`` imports MLflow twice, once to start the program that it runs, and makes its
tables at every first start: thirteen seconds on two cores. Here that program is started directly, with the
environment that ``mlflow server`` gives it, on a copy of an empty database that is made once: four seconds.
"""

import base64
import http.client
import json
import os
import shutil
import signal
import sqlite3
import sys
from contextlib import closing
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from infra.local.base_model import cache_folder
from infra.local.recipe import HOST, Command, Plan
from infra.local.records import derived_password

APPLICATION = "mlflow.server.auth:create_app"
USER = "corrigenda"
"""Corrigenda's own user, who may do everything there and makes the reviewers' users."""
DATABASES = {
    "mlflow.db": {"SELECT count(*) FROM experiments": 1, "SELECT count(*) FROM registered_models": 0},
    "users.db": {"SELECT count(*) FROM users": 1, "SELECT count(*) FROM roles": 0},
}
"""The files of a server, and what makes each one as good as empty."""
PROBE = "/api/2.0/mlflow/experiments/search?max_results=1"
# A password costs .1 s of a processor to check, so it is remembered for a while; nobody without one sees anything.
LOGIN_SETTINGS = """[mlflow]
default_permission = NO_PERMISSIONS
database_uri = sqlite:///{users}
authorization_function = infra.mlflow_login:authenticate
auth_cache_ttl_seconds = 300
"""


class MlflowServer:
    """Tracking server, registry and artifacts in one process with one worker."""

    stop_signal = signal.SIGTERM

    def command(self, plan: Plan) -> Command:
        """Lay out the database from the template if there is one, and starts the server."""
        try:
            templates = {name: _template(name) for name in DATABASES}
        except PackageNotFoundError as error:
            raise plan.failed("the wheel mlflow is not installed; `make setup` installs it") from error
        for name, template in templates.items():
            if template.is_file() and not (plan.folder / name).exists():
                shutil.copyfile(template, plan.folder / name)
        database, login = plan.folder / "mlflow.db", plan.folder / "login.ini"
        login.write_text(LOGIN_SETTINGS.format(users=plan.folder / "users.db"))
        server = ("--host", HOST, "--port", str(plan.port), "--log-level", "warning", "--no-access-log")
        return Command(
            argv=(sys.executable, "-W", "ignore", "-m", "uvicorn", *server, "--factory", APPLICATION),
            env={
                "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{database}",
                "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
                "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
                "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(plan.folder / "artifacts"),
                "_MLFLOW_SGI_NAME": "uvicorn",
                "MLFLOW_AUTH_CONFIG_PATH": str(login),
                "MLFLOW_AUTH_ADMIN_USERNAME": USER,
                "MLFLOW_AUTH_ADMIN_PASSWORD": plan.password,
                "MLFLOW_FLASK_SERVER_SECRET_KEY": derived_password(plan.password, "forms"),
                # Seven more processes for work that we never ask for.
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "DO_NOT_TRACK": "true",
            },
        )

    def is_ready(self, plan: Plan) -> bool:
        """Return whether it answers a question that needs its database."""
        said = base64.b64encode(f"{USER}:{plan.password}".encode()).decode()
        server = http.client.HTTPConnection(HOST, plan.port, timeout=30)
        try:
            with closing(server):
                server.request("GET", PROBE, headers={"Authorization": f"Basic {said}"})
                return "experiments" in json.load(server.getresponse())
        except (OSError, http.client.HTTPException, ValueError):
            return False

    def settle(self, plan: Plan) -> None:
        """Keep copies of the databases as templates for the next stack, if they are still empty; no user is copied."""
        for name, counts in DATABASES.items():
            template = _template(name)
            if template.is_file():
                continue
            with closing(sqlite3.connect(plan.folder / name)) as source:
                if all(source.execute(query).fetchone()[0] == count for query, count in counts.items()):
                    _keep(source, template)


def _template(name: str) -> Path:
    kind = "empty" if name == "mlflow.db" else Path(name).stem
    return cache_folder() / "mlflow" / f"{kind}-{version('mlflow')}.db"


def _keep(source: sqlite3.Connection, template: Path) -> None:
    try:
        template.parent.mkdir(parents=True, exist_ok=True)
        fresh = template.with_name(f".{template.name}.{os.getpid()}")
        with closing(sqlite3.connect(fresh)) as target:
            source.backup(target)
            if target.execute("SELECT count(*) FROM sqlite_master WHERE name = 'users'").fetchone()[0]:
                target.execute("DELETE FROM users")
                target.commit()
                target.execute("VACUUM")  # a deleted row is still in the file
        fresh.replace(template)
    except (OSError, sqlite3.Error):
        return  # without a template the next start is slower, and that is all
