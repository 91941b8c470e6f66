"""Runs a program of a test as the ranks of one group, and collects what each of them prints."""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

from tests.support.forked import forked
from tests.support.waiting import patience
from workers.lifetime import RENDEZVOUS


def run_ranks(program: str, arguments: str, *, num_ranks: int) -> list[Any]:
    """Start the ranks of a module and return what its `main` found on each, by rank.

    Args:
        program: name of the module.
        arguments: JSON of what `main` takes.
        num_ranks: processes in the group.
    """
    with ExitStack() as ended:
        folder = Path(ended.enter_context(tempfile.TemporaryDirectory(prefix="corrigenda-")))
        shared = {"WORLD_SIZE": str(num_ranks), RENDEZVOUS: f"{folder}/rendezvous", "OMP_NUM_THREADS": "1"}
        logs = [folder / f"{rank}.log" for rank in range(num_ranks)]
        processes = [
            ended.enter_context(
                forked(
                    "tests.support.ranks_of_tests",
                    *(program, arguments),
                    environment=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                    log=log,
                )
            )
            for rank, log in enumerate(logs)
        ]
        for process, log in zip(processes, logs, strict=True):
            assert process.wait(patience(240)) == 0, log.read_text()[-3000:]
        return [json.loads(log.read_text().splitlines()[-1]) for log in logs]


def main() -> NoReturn:
    """Print a line of JSON with what a rank found, and end as `workers.rank` does.

    An interpreter that takes itself down beside gloo's threads aborts now and then (pytorch issue 190489; here in 4 of
    40 groups of two).
    """
    _, program, arguments = sys.argv
    found = importlib.import_module(program).main(json.loads(arguments))
    sys.stderr.flush()
    print(json.dumps(found), flush=True)
    os._exit(0)
