"""A failpoint kills the process at its boundary, and nowhere else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.support.paths import ROOT
from tests.support.waiting import patience

PROGRAM = """
from pipeline.domain.failpoints import failpoint
for step in range(3):
    failpoint("other:boundary")
    failpoint("this:boundary")
    print(step, flush=True)
"""


@pytest.mark.parametrize(
    ("armed", "printed", "status"),
    [
        (None, "0\n1\n2\n", 0),
        ("", "0\n1\n2\n", 0),
        ("this", "0\n1\n2\n", 0),
        ("elsewhere", "0\n1\n2\n", 0),
        ("this:boundary", "", -signal.SIGKILL),
        ("this:boundary:3", "0\n1\n", -signal.SIGKILL),
    ],
)
def test_a_process_dies_at_the_boundary_it_is_told_and_only_there(armed: str | None, printed: str, status: int) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "CORRIGENDA_FAILPOINT"}
    if armed is not None:
        environment["CORRIGENDA_FAILPOINT"] = armed
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=patience()
    )
    assert (done.stdout, done.returncode) == (printed, status)
