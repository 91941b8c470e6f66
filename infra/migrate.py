"""Brings the database and the topics of a deployment up to date: ``python -m infra.migrate``.

Knows the order of the two. Does not know any table or topic.
"""

import sys

from migrations import upgrade
from pipeline.bootstrap import create_topics
from pipeline.config import load_settings
from pipeline.domain.errors import CorrigendaError


def main() -> int:
    """Migrates and makes missing topics; may be run again; exit status 1 and one sentence when it cannot."""
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
