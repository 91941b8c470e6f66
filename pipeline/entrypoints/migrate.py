"""The job that brings a deployment's database and topics up to date: `python -m pipeline.entrypoints.migrate`."""

import sys

from pipeline.adapters.schema import upgrade
from pipeline.bootstrap import create_topics
from pipeline.config import load_settings
from pipeline.domain.errors import CorrigendaError


def main() -> int:
    """Migrate the database, then make the topics that are missing; may be run again.

    Returns:
        The exit status: 0, or 1 after one sentence on standard error.
    """
    try:
        settings = load_settings()
        settings.require("database_url", "kafka_bootstrap")
        upgrade(settings.database_url.get_secret_value())
        create_topics(settings)
    except CorrigendaError as error:
        print(f"migrate: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
