"""The settings of a command: the environment's, completed from the embedded stack where that runs in `home`.

What only some of these functions need is imported in them: most commands ask for one or two.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.adapters.login_names import Login
from pipeline.domain.errors import Misconfigured

if TYPE_CHECKING:
    from infra.local.records import Endpoints
    from pipeline.config import Settings
    from pipeline.storage import Stores

OF_PEOPLE = ("failpoint", "reviewer_token", "reviewer_token_file", "api_token", "api_token_file")
"""Settings that no child process is given: they are of the person at the command line."""
OF_STORE_FAMILIES = ("PG", "AWS_")
"""Beginnings of the names of variables that clients of PostgreSQL and of object stores read."""
OF_STORES = frozenset(
    {"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"}
    | {"REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"}
)
"""Other variables that they read."""


def load_settings() -> Settings:
    """Read the settings from all their sources; what reads them is imported now, and not to show a command's help.

    Raises:
        Misconfigured: naming each setting that is wrong.
    """
    from pipeline.config import load_settings as load

    return load()


def current_settings(login: Login = Login.console) -> Settings:
    """Return the settings for a command.

    Args:
        login: who it is in the database of the embedded stack; elsewhere the database's URL says that.

    Raises:
        Misconfigured: if a setting is wrong, or neither the environment nor a stack in `home` says where things are.
    """
    settings = load_settings()
    if settings.database_url.get_secret_value():
        return settings
    from infra.local import LocalStack, LocalStackError

    try:
        endpoints = LocalStack(settings.home).endpoints()
    except LocalStackError as error:
        expected = f"expected CORRIGENDA_DATABASE_URL or an embedded stack in {settings.home} (`corrigenda up`)"
        raise Misconfigured(f"{expected}, got neither; {error}") from error
    return with_endpoints(settings, endpoints, login)


def with_endpoints(settings: Settings, endpoints: Endpoints, login: Login = Login.console) -> Settings:
    """Return the settings of a process that uses the embedded stack with a login of its own."""
    from pydantic import SecretStr

    return settings.model_copy(
        update={
            "database_url": SecretStr(endpoints.login_url(login)),
            "database_role": "",
            "redis_url": SecretStr(endpoints.redis_url),
            "kafka_bootstrap": endpoints.kafka_bootstrap,
            "kafka_incarnation": endpoints.kafka_incarnation,
            "mlflow_uri": endpoints.mlflow_uri,
            "mlflow_username": endpoints.mlflow_username,
            "mlflow_password": SecretStr(endpoints.mlflow_password),
            "mlflow_tells_actor": True,
            "artifact_root": (settings.home / "artifacts").absolute(),
        }
    )


def environment_of(settings: Settings) -> dict[str, str]:
    """Return the variables that give a child process the same settings."""
    from pydantic import SecretStr

    found: dict[str, str] = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if value is None or name in OF_PEOPLE:
            continue
        plain = value.get_secret_value() if isinstance(value, SecretStr) else value
        found[f"CORRIGENDA_{name.upper()}"] = _text(plain)
    return found


def serving_environment(settings: Settings) -> dict[str, str]:
    """Return the variables of a process that serves models: where it reads, and no login that writes anything."""
    wanted = (
        *("home", "database_url", "database_role", "mlflow_uri", "mlflow_username", "mlflow_password"),
        *("log_format", "traces_endpoint"),
    )
    return _some_of(settings, wanted)


def asking_environment(settings: Settings) -> dict[str, str]:
    """Return the variables of the process behind `ask`: where it looks snapshots up, and where their files are.

    What the libraries of the database and the object store read is among them, as it is in the command's environment.
    """
    wanted = ("home", "database_url", "database_role", "artifact_root", "artifact_bucket", "artifact_endpoint")
    given = {
        name: value for name, value in os.environ.items() if name in OF_STORES or name.startswith(OF_STORE_FAMILIES)
    }
    # The process may be started in one folder and asked in another.
    folders = {"home": settings.home.absolute(), "artifact_root": settings.artifact_root.absolute()}
    return given | _some_of(settings.model_copy(update=folders), wanted)


def mlflow_login(settings: Settings) -> dict[str, str]:
    """Return the variables by which MLflow's own client logs in as Corrigenda; none where no user is named."""
    if not settings.mlflow_username:
        return {}
    password = settings.mlflow_password.get_secret_value()
    return {"MLFLOW_TRACKING_USERNAME": settings.mlflow_username, "MLFLOW_TRACKING_PASSWORD": password}


def page_of(settings: Settings, lineage: str, version: str | None) -> str | None:
    """Return the address of a model version's page in MLflow; None where there is no version or no server yet."""
    from pipeline.services.registry.links import version_link

    return version_link(settings.mlflow_pages, lineage, version) if version and settings.mlflow_pages else None


def reviewing_settings() -> Settings:
    """Return the settings for a command that decides: with the database login of the reviewer whose token is given.

    Raises:
        Misconfigured: if a setting or the token cannot be right.
    """
    from pydantic import SecretStr

    from pipeline.adapters.people import as_reviewer, token_from

    settings = current_settings()
    token = settings.reviewer_token.get_secret_value()
    if not token and settings.reviewer_token_file is not None:
        token = token_from(settings.reviewer_token_file)
    if not token:
        return settings
    url = as_reviewer(settings.database_url.get_secret_value(), token)
    return settings.model_copy(update={"database_url": SecretStr(url), "database_role": ""})


def owner_url() -> str:
    """Return the URL of the schema's owner: that of the settings, else that of the embedded stack.

    Raises:
        Misconfigured: if there is neither.
    """
    settings = load_settings()
    if settings.database_url.get_secret_value():
        return settings.database_url.get_secret_value()
    from infra.local import LocalStack, LocalStackError

    try:
        return LocalStack(settings.home).endpoints().database_url
    except LocalStackError as error:
        raise Misconfigured(f"expected CORRIGENDA_DATABASE_URL or an embedded stack, got neither; {error}") from error


def tokens_folder() -> Path:
    """Return where tokens of people are written if nobody says where."""
    return load_settings().home / "people"


def reviewers_folder() -> Path:
    """Return where tokens of reviewers are written if nobody says where."""
    return load_settings().home / "reviewers"


def deciding_actor(kept: Stores) -> str:
    """Return who decides: the reviewer who logged in to the database, or a name that is only claimed."""
    from pipeline.domain.review.approvals import REVIEWER

    name = kept.review.reviewer()
    return f"{REVIEWER}{name}" if name else cli_actor()


def cli_actor() -> str:
    """Return who runs this command, as the audit trail names them: the user of the process, whom nobody checked."""
    from pipeline.domain.review.approvals import claimed_actor

    try:
        return claimed_actor("cli", pwd.getpwuid(os.getuid()).pw_name)
    except KeyError:
        return claimed_actor("cli", str(os.getuid()))


def _some_of(settings: Settings, wanted: Iterable[str]) -> dict[str, str]:
    every = environment_of(settings)
    return {name: every[name] for name in (f"CORRIGENDA_{one.upper()}" for one in wanted) if name in every}


def _text(value: object) -> str:
    total_seconds = getattr(value, "total_seconds", None)
    return str(total_seconds()) if total_seconds is not None else str(value)
