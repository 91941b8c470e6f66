"""The program of one rank: `python -m workers.rank --parent PID`, started by `RankProcesses`.

Rank 0 says hello before anything heavy is imported, so that its controller soon knows that it lives. Writes nothing to
standard output; whatever a library prints goes to standard error.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn

from pipeline.domain.rank_api import BaseSpec
from pipeline.tied import tie_to_parent
from workers.commands import Hello
from workers.lifetime import RENDEZVOUS, leave_last_words
from workers.protocol import HELLOS, send

NOT_FOR_RANKS = ("mlflow", "scipy", "boto3", "trio")
"""What DeepSpeed's autotuner, transformers, accelerate and an HTTP client import where they find it: nearly two seconds
at each start, for what no rank does."""


def main() -> NoReturn:
    """Serve until the controller says shutdown or is gone."""
    options = _options()
    tie_to_parent(options.parent)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    rank = int(os.environ["RANK"])
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format=f"%(asctime)s %(levelname)s rank {rank} %(name)s: %(message)s"
    )
    try:
        connection = _greeted(options.connection) if rank == 0 else None
        for name in NOT_FOR_RANKS:
            sys.modules[name] = None  # type: ignore[assignment]
        from workers.rank.command_loop import serve

        status = serve(connection, config_path=options.deepspeed_config, warm_base=_warm_base(options))
    except Exception as error:
        logging.getLogger(__name__).exception("the rank ends")
        leave_last_words(Path(os.environ[RENDEZVOUS]).parent, rank, error)
        status = 1
    logging.shutdown()
    os._exit(status)  # nothing is left to save, and torch takes seconds to take itself down


def _greeted(inherited: int) -> Connection:
    os.set_inheritable(inherited, False)  # a process that a library starts must not keep the connection open
    connection = Connection(inherited)
    send(connection, HELLOS.encode(Hello(pid=os.getpid(), world_size=int(os.environ["WORLD_SIZE"]))))
    return connection


def _warm_base(options: argparse.Namespace) -> BaseSpec | None:
    if options.warm_base is None:
        return None
    ref, digest, task = options.warm_base
    return BaseSpec(ref=ref, digest=digest, task=task)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m workers.rank", description="One rank behind an edit worker.")
    parser.add_argument("--parent", type=int, required=True, help="process id of the controller")
    parser.add_argument("--connection", type=int, help="inherited file descriptor to the controller, on rank 0")
    parser.add_argument("--deepspeed-config", type=Path, help="DeepSpeed JSON instead of infra/deepspeed/zero3.json")
    parser.add_argument("--warm-base", nargs=3, metavar=("FOLDER", "DIGEST", "TASK"), help="base to load at once")
    return parser.parse_args()


if __name__ == "__main__":
    main()
