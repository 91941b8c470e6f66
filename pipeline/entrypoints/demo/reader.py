"""A reader of models in a process of its own, outside the checkout: it is given the URL of MLflow and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.computing import computing_environment
from pipeline.config import Settings
from pipeline.domain.errors import EngineFailed
from pipeline.domain.scratch import scratch_folder
from pipeline.entrypoints.demo.asking import Answers, Asked, Way
from pipeline.entrypoints.local_settings import mlflow_login

SCRIPT = Path(__file__).resolve().parents[3] / "infra" / "local" / "ask_model.py"


class ModelReader:
    """Context manager around `infra/local/ask_model.py`."""

    def __init__(self, settings: Settings, lineage: str) -> None:
        self._argv = [sys.executable, str(SCRIPT), settings.mlflow_uri]
        self._login = mlflow_login(settings)
        self._lineage = lineage
        self._folder = scratch_folder("reader")
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> ModelReader:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=30)
        self._folder.cleanup()

    def ask_base(self, folder: str, asked: Sequence[Asked]) -> Answers:
        """Return what the base says to each.

        Raises:
            EngineFailed: with the reader's last words, if it ended.
        """
        return self._ask({"base": folder}, asked)

    def ask_champion(self, asked: Sequence[Asked], *, package_digest: str) -> Answers:
        """Return what the champion says to each now.

        Args:
            asked: the questions.
            package_digest: what the database says of the champion's files.

        Raises:
            EngineFailed: with the reader's last words, if it ended.
        """
        return self._ask({"champion": self._lineage, "package_digest": package_digest}, asked)

    def _ask(self, model: dict[str, str], asked: Sequence[Asked]) -> Answers:
        process = self._started()
        if process.stdin is None or process.stdout is None:
            raise EngineFailed("expected pipes to the reader of models, got none")
        stems = [one for one in asked if one.way is not Way.chat]
        chats = [one for one in asked if one.way is Way.chat]
        texts = {"stems": [one.text for one in stems], "chats": [one.text for one in chats]}
        process.stdin.write(json.dumps(model | texts) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise EngineFailed(f"the reader of models ended: {self._last_words()}")
        said = json.loads(line)
        return dict(zip([*stems, *chats], [*said["stems"], *said["chats"]], strict=True))

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
                    env=computing_environment() | self._login,
                )
        return self._process

    @property
    def _log(self) -> Path:
        return Path(self._folder.name) / "reader.log"

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"
