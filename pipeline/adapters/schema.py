"""Brings a database to a version of the schema with Alembic.

The revisions are the package `migrations`. It is found by name and never imported here, because its `env.py` imports
the tables beside this module. The application itself never changes its schema.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from pipeline.adapters.sql.database.engine import connect, transaction
from pipeline.domain.errors import Misconfigured


def upgrade(url: str, revision: str = "head") -> None:
    """Bring a database up to a revision, as the user of the URL. Do nothing if it is there already.

    Raises:
        Misconfigured: if the login, the server's version or the user's rights do not allow it.
        Unavailable: if the database does not answer, or something holds a lock for too long; nothing was changed.
    """
    _run(url, command.upgrade, revision)


def downgrade(url: str, revision: str) -> None:
    """Take a database down to a revision.

    Raises:
        Misconfigured: if that would drop history.
        Unavailable: as `upgrade`.
    """
    _run(url, command.downgrade, revision)


def current(url: str) -> tuple[str | None, str | None]:
    """Return the revision of the database (None if it has none) and the newest revision of the code.

    Raises:
        Misconfigured, Unavailable: if the database cannot be asked.
    """
    newest = ScriptDirectory.from_config(alembic_config()).get_current_head()
    engine = connect(url, "")
    try:
        with transaction(engine) as connection:
            return MigrationContext.configure(connection).get_current_revision(), newest
    finally:
        engine.dispose()


def alembic_config() -> Config:
    """Return a configuration of Alembic that knows where the revisions are, also in an installed package.

    Raises:
        Misconfigured: if the package `migrations` is not installed beside `pipeline`.
    """
    spec = find_spec("migrations")
    if spec is None or not spec.submodule_search_locations:
        raise Misconfigured("expected the package migrations beside pipeline, found none")
    config = Config()
    # Alembic interpolates percent signs.
    config.set_main_option("script_location", spec.submodule_search_locations[0].replace("%", "%%"))
    return config


def _run(url: str, change: Callable[[Config, str], None], revision: str) -> None:
    engine = connect(url, "")
    try:
        # All revisions in one transaction: a failure leaves the schema as it was.
        with transaction(engine) as connection:
            config = alembic_config()
            config.attributes["connection"] = connection
            change(config, revision)
    except CommandError as error:
        raise Misconfigured(f"expected a schema that this version knows, got another: {error}") from error
    finally:
        engine.dispose()
