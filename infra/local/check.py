"""Knows how to hold the migrations and the schema files equal to the code (part of ``make check``).

Does not know any table or field: Alembic and the wire contract tell.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from infra.local.ephemeral import ephemeral_stack
from infra.local.errors import LocalStackError
from infra.local.records import Service

REPOSITORY = Path(__file__).resolve().parent.parent.parent
SCHEMA = Path("pipeline", "schemas", "edits.requests.v1.json")


def main() -> int:
    """Says what differs; exit status 1 if anything does."""
    problems = schema_differences()
    try:
        problems += migration_differences()
    except LocalStackError as error:
        problems.append(str(error))
    for problem in problems:
        print(f"check: {problem}", file=sys.stderr)
    if not problems:
        print("check: the migrations make the tables of the code, and the schema file is the wire contract's")
    return 1 if problems else 0


def schema_differences() -> list[str]:
    """What is wrong with the JSON Schema kept in the repository, compared with the one the code gives."""
    from pipeline.domain.wire import json_schema

    path = REPOSITORY / SCHEMA
    if not path.is_file():
        return [f"expected the schema of the wire contract at {SCHEMA}, found none"]
    if json.loads(path.read_text()) != json_schema():
        return [f"{SCHEMA} is not what pipeline.domain.wire.json_schema() gives; write it anew and say so in CHANGELOG"]
    return []


def migration_differences() -> list[str]:
    """What is wrong between the tables that the migrations make and those in the code, on a fresh PostgreSQL."""
    with ephemeral_stack([Service.POSTGRES]) as stack:
        environment = {**os.environ, "CORRIGENDA_DATABASE_URL": stack.endpoints().database_url}
        for command in (("upgrade", "head"), ("check",)):
            finished = subprocess.run(
                [sys.executable, "-m", "alembic", *command],
                cwd=REPOSITORY,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            if finished.returncode != 0:
                said = (finished.stderr + finished.stdout).strip()
                return [f"alembic {' '.join(command)} failed:\n{said}"]
    return []


if __name__ == "__main__":
    raise SystemExit(main())
