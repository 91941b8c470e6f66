"""A reader of models in a process of its own, outside the checkout: it is given the URL of MLflow and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from pipeline.domain.errors import EngineFailed

SCRIPT = Path(__file__).resolve().parents[3] / "infra" / "local" / "ask_model.py"


class ModelReader:
    """Context manager around `infra/local/ask_model.py`."""

    def __init__(self, mlflow_uri: str, lineage: str) -> None:
        self._argv = [sys.executable, str(SCRIPT), mlflow_uri]
        self._lineage = lineage
        self._folder = tempfile.TemporaryDirectory(prefix="corrigenda-reader-")
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> ModelReader:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=30)
        self._folder.cleanup()

    def ask_base(self, folder: str, prompts: list[str]) -> list[str]:
        """Return what the base says.

        Raises:
            EngineFailed: with the reader's last words, if it ended.
        """
        return self._ask({"base": folder, "prompts": prompts})

    def ask_champion(self, prompts: list[str]) -> list[str]:
        """Return what the champion says now.

        Raises:
            EngineFailed: with the reader's last words, if it ended.
        """
        return self._ask({"champion": self._lineage, "prompts": prompts})

    def _ask(self, question: dict[str, object]) -> list[str]:
        process = self._started()
        if process.stdin is None or process.stdout is None:
            raise EngineFailed("expected pipes to the reader of models, got none")
        process.stdin.write(json.dumps(question) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise EngineFailed(f"the reader of models ended: {self._last_words()}")
        answers: list[str] = json.loads(line)
        return answers

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            with self._log.open("w") as log:
                self._process = subprocess.Popen(
                    self._argv,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    cwd=self._folder.name,
                )
        return self._process

    @property
    def _log(self) -> Path:
        return Path(self._folder.name) / "reader.log"

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"
