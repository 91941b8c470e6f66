"""The program of one rank: `python -m workers.rank --socket PATH --parent PID`, started by `ranks.RankProcesses`.

Rank 0 says hello before anything heavy is imported, so that its controller soon knows that it lives. Writes nothing to
standard output; whatever a library prints goes to standard error.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import NoReturn

from pipeline.domain.rank_api import BaseSpec
from workers.commands import Hello
from workers.protocol import HELLOS, send_frame

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that this process gets when the thread that started it ends."""


def main() -> NoReturn:
    """Serve until the controller says shutdown or is gone."""
    options = _options()
    tie_to_parent(options.parent)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format=f"%(asctime)s %(levelname)s rank {rank} %(name)s: %(message)s"
    )
    connection = _connect(options.socket, world_size) if rank == 0 else None
    # DeepSpeed's autotuner imports MLflow if it finds it: more than a second at each start, for what no rank does.
    sys.modules["mlflow"] = None  # type: ignore[assignment]
    from workers.rank.command_loop import serve

    status = serve(connection, config_path=options.deepspeed_config, warm_base=_warm_base(options))
    logging.shutdown()
    os._exit(status)  # nothing is left to save, and torch takes seconds to take itself down


def tie_to_parent(parent: int) -> None:
    """Die with the process that started this one, also by kill -9.

    Args:
        parent: its process id; the program ends here if it is gone already.
    """
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(f"expected process {parent} as parent, got {os.getppid()}")


def _connect(path: Path, world_size: int) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(str(path))
    send_frame(connection, HELLOS.encode(Hello(pid=os.getpid(), world_size=world_size)))
    return connection


def _warm_base(options: argparse.Namespace) -> BaseSpec | None:
    if options.warm_base is None:
        return None
    ref, digest, task = options.warm_base
    return BaseSpec(ref=ref, digest=digest, task=task)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m workers.rank", description="One rank behind an edit worker.")
    parser.add_argument("--socket", type=Path, required=True, help="Unix socket on which the controller listens")
    parser.add_argument("--parent", type=int, required=True, help="process id of the controller")
    parser.add_argument("--deepspeed-config", type=Path, help="DeepSpeed JSON instead of infra/deepspeed/zero3.json")
    parser.add_argument("--warm-base", nargs=3, metavar=("FOLDER", "DIGEST", "TASK"), help="base to load at once")
    return parser.parse_args()


if __name__ == "__main__":
    main()
