"""Starts `corrigenda train` as a user would, for tests that kill, interrupt and resume it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT


def start_training(folder: Path, *words: str) -> subprocess.Popen[str]:
    """The command with these words, in a working folder and a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.entrypoints.cli", "train", *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
