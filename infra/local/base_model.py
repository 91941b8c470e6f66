"""The folder of the embedded base model, made on first use.

``infra.local.model`` makes it in a process of its own, so that nothing here imports torch.
"""

import os
import subprocess
import sys
from pathlib import Path

from infra.local.errors import LocalStackError

MODEL_NAME = "smollm2-135m-instruct"
COMPLETE_MARK = "model.safetensors"


def cache_folder() -> Path:
    """Return the folder for what is costly to make, shared by every stack of this user; $CORRIGENDA_CACHE moves it."""
    chosen = os.environ.get("CORRIGENDA_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "corrigenda"


def default_model_folder() -> Path:
    """Return where the embedded base model is, or will be after :func:`ensure_base_model`."""
    return cache_folder() / "models" / MODEL_NAME


def is_ready(folder: Path) -> bool:
    """Return whether ``folder`` holds a complete conversion."""
    return (folder / COMPLETE_MARK).is_file()


def ensure_base_model(folder: Path | None = None) -> Path:
    """Return the folder of the embedded base model, converting it first (some twenty seconds) if it is not there.

    Raises:
        LocalStackError: the conversion failed; the text is its last line.
    """
    target = folder or default_model_folder()
    if is_ready(target):
        return target
    # The child's own module name, and this interpreter: nothing here comes from outside.
    command = [sys.executable, "-m", "infra.local.model", "--out", str(target)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        last_line = (finished.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise LocalStackError(service="model", reason=last_line.removeprefix("model: "))
    return target
