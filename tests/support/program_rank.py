"""One rank of `corrigenda train` or `evaluate --ranks N`, for `run_ranks`: no command, no launcher, no imports."""

from __future__ import annotations

import os
from typing import Any

from workers.on_ranks import LAUNCHER
from workers.on_ranks import main as run


def main(given: dict[str, Any]) -> int:
    """Run a program in a folder with the words of `workers.on_ranks`; return the exit status."""
    os.environ[LAUNCHER] = str(os.getppid())  # whoever forked this rank is who it ends with
    os.environ["LOCAL_WORLD_SIZE"] = os.environ["WORLD_SIZE"]
    os.chdir(given["folder"])
    return run(given["words"])
