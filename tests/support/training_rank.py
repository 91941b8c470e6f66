"""One rank of `corrigenda train --ranks N`, for `run_ranks`: no command, no launcher, no imports."""

from __future__ import annotations

import os
from typing import Any

from workers.training import LAUNCHER
from workers.training import main as train


def main(given: dict[str, Any]) -> int:
    """Train in a folder with the words of the command; return the exit status."""
    os.environ[LAUNCHER] = str(os.getppid())  # whoever forked this rank is who it ends with
    os.environ["LOCAL_WORLD_SIZE"] = os.environ["WORLD_SIZE"]
    os.chdir(given["folder"])
    return train(given["words"])
