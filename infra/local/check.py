"""The check that the migrations make the tables of the code, on a fresh PostgreSQL; part of ``make check``."""

import os
import subprocess
import sys
from pathlib import Path

from infra.local.ephemeral import ephemeral_stack
from infra.local.errors import LocalStackError
from infra.local.records import Service

REPOSITORY = Path(__file__).resolve().parent.parent.parent


def main() -> int:
    """Say what differs; exit status 1 if anything does."""
    try:
        problems = migration_differences()
    except LocalStackError as error:
        problems = [str(error)]
    for problem in problems:
        print(f"check: {problem}", file=sys.stderr)
    if not problems:
        print("check: the migrations make the tables of the code")
    return 1 if problems else 0


def migration_differences() -> list[str]:
    """Return what is wrong between the tables that the migrations make and those in the code, on a fresh PostgreSQL."""
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
