"""Runs a program of a test as the ranks of one group, and collects what each of them prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NoReturn

from tests.support.paths import ROOT
from tests.support.waiting import patience
from workers.lifetime import RENDEZVOUS


def run_ranks(program: str, *words: str, num_ranks: int) -> list[Any]:
    """Start the ranks of a module that prints a line of JSON; what each found, by rank."""
    folder = tempfile.TemporaryDirectory(prefix="corrigenda-")
    shared = {"WORLD_SIZE": str(num_ranks), RENDEZVOUS: f"{folder.name}/rendezvous", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", program, *words],
            cwd=ROOT,
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(num_ranks)
    ]
    found: list[Any] = []
    with ExitStack() as ended:
        ended.enter_context(folder)
        for process in processes:
            ended.enter_context(process)
            ended.callback(process.kill)
        for process in processes:
            out, err = process.communicate(timeout=patience(240))
            assert process.returncode == 0, err[-3000:]
            found.append(json.loads(out.splitlines()[-1]))
    return found


def report(main: Callable[..., Any], *arguments: Any) -> NoReturn:
    """What a rank's program does: print a line of JSON, whatever libraries print, and end as `workers.rank` does.

    An interpreter that takes itself down beside gloo's threads aborts now and then (pytorch issue 190489; here in 4 of
    40 groups of two).
    """
    stdout, sys.stdout = sys.stdout, sys.stderr
    print(json.dumps(main(*arguments)), file=stdout, flush=True)
    sys.stderr.flush()
    os._exit(0)
