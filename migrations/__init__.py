"""The schema and its versions. Knows how to bring a database up to date; the application never changes its schema."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from pipeline.adapters.sql.engine import connect, transaction
from pipeline.domain.errors import Misconfigured

FOLDER = Path(__file__).parent


def upgrade(url: str, revision: str = "head") -> None:
    """Bring a database up to a revision, as the user of the URL. Does nothing if it is there already.

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
    """(revision of the database, newest revision of the code), for the doctor.

    Raises:
        Misconfigured, Unavailable: if the database cannot be asked.
    """
    newest = ScriptDirectory.from_config(_config()).get_current_head()
    engine = connect(url, "")
    try:
        with transaction(engine) as connection:
            return MigrationContext.configure(connection).get_current_revision(), newest
    finally:
        engine.dispose()


def _run(url: str, change: object, revision: str) -> None:
    engine = connect(url, "")
    try:
        # All revisions in one transaction: a failure leaves the schema as it was.
        with transaction(engine) as connection:
            config = _config()
            config.attributes["connection"] = connection
            change(config, revision)  # type: ignore[operator]
    except CommandError as error:
        raise Misconfigured(f"expected a schema that this version knows, got another: {error}") from error
    finally:
        engine.dispose()


def _config() -> Config:
    config = Config()
    # Not from pyproject.toml, which is not there once the package is installed.
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    return config
