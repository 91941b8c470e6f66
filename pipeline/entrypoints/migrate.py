"""The job that brings a deployment's database and topics up to date: `python -m pipeline.entrypoints.migrate`.

It alone logs in as the owner of the schema, and lets the others in: with the URL in the file `intake_database_url` of
/run/secrets, and so on for each login, and MLflow, if it is to have a database beside ours, with `mlflow_store_url`.
"""

import sys
from pathlib import Path

from pipeline.adapters.logins import Login, give_database, let_in
from pipeline.adapters.schema import upgrade
from pipeline.bootstrap import create_topics, make_bucket
from pipeline.config import SECRETS_FOLDER, load_settings
from pipeline.domain.errors import CorrigendaError

MLFLOW_STORE = "mlflow_store_url"


def main() -> int:
    """Migrate the database, let logins in, then make the topics and the bucket that are missing; may be run again.

    Returns:
        The exit status: 0, or 1 after one sentence on standard error.
    """
    try:
        settings = load_settings()
        settings.require("database_url", "kafka_bootstrap")
        owner_url = settings.database_url.get_secret_value()
        upgrade(owner_url)
        let_in_from(SECRETS_FOLDER, owner_url)
        create_topics(settings)
        make_bucket(settings)
    except CorrigendaError as error:
        print(f"migrate: {error}", file=sys.stderr)
        return 1
    return 0


def let_in_from(folder: Path, owner_url: str) -> None:
    """Let those logins in whose URLs lie in the folder; those of an outside keeper of logins have none there."""
    found = [folder / f"{login.name}_database_url" for login in Login]
    let_in(owner_url, [path.read_text(encoding="utf-8").strip() for path in found if path.is_file()])
    if (store := folder / MLFLOW_STORE).is_file():
        give_database(owner_url, store.read_text(encoding="utf-8").strip())


if __name__ == "__main__":
    raise SystemExit(main())
