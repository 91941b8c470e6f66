"""The script that MLflow keeps as a model version's code and runs to load it; it starts what travels beside it.

MLflow runs it once when a version is logged, in a process that has no torch: everything heavy is imported in
`load_context`, from the archive of `editors` and `pipeline.domain` that travels with the version. Before that it checks
every file of the version, so the check is written out here, with the standard library alone;
`pipeline.domain.formats.packages` says the same. Whoever does not trust this file either checks the version before
MLflow runs it, as SERVING.md shows.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

DIGEST_VARIABLE = "CORRIGENDA_PACKAGE_DIGEST"
PACKAGE_TAG = "corrigenda.package_digest"
WRITTEN_BY_DOWNLOADS = "registered_model_meta"


class EditedModel(PythonModel):  # type: ignore[misc]
    """Answers stems with greedy continuations of an edited model, or claims with its labels.

    Parameters of `predict`: `max_new_tokens` (24), and `chat` (false) to ask in the model's chat template. Load with
    `model_config={"base_ref": FOLDER, "device": "cuda"}` where the base lies elsewhere or a GPU is at hand, and with
    `"package_digest"` to say what its files have to be; without it, the version's tag in the registry says so.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Build the model; refuses with one sentence if any digest differs, before anything is imported."""
        config, code = context.model_config or {}, Path(context.artifacts["code"])
        _check(code.parents[1], config.get("package_digest") or os.environ.get(DIGEST_VARIABLE))
        sys.path.insert(0, str(code))
        from editors.weights.serving import ServedModel

        self._served = ServedModel.load(
            Path(context.artifacts["snapshot"]),
            base_ref=config.get("base_ref") or None,
            device=config.get("device", "cpu"),
        )

    def predict(
        self, context: PythonModelContext, model_input: list[str], params: dict[str, Any] | None = None
    ) -> list[str]:
        """Answers in the order of the stems."""
        chosen = params or {}
        return self._served.answer(
            list(model_input),
            max_new_tokens=int(chosen.get("max_new_tokens", 24)),
            chat=bool(chosen.get("chat", False)),
        )


def _check(folder: Path, given: str | None) -> None:
    expected, found = given or _from_the_registry(folder), _package_digest(folder)
    if not expected:
        raise MlflowException(
            f"expected the digest that the version's files have to have, got none: give it as package_digest in "
            f"model_config or in {DIGEST_VARIABLE}"
        )
    if found != expected:
        raise MlflowException(
            f"expected the files of the model version to have the digest {expected}, got {found}: one of them was "
            "changed, added or taken away"
        )


def _package_digest(folder: Path) -> str:
    # Python has just compiled this script into such a folder.
    files = (path for path in folder.rglob("*") if path.is_file() and path.parent != folder / "__pycache__")
    names = sorted((str(path.relative_to(folder)) for path in files), key=os.fsencode)
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    lines = "".join(f"{digest}  {name}\n" for name, digest in digests.items() if name != WRITTEN_BY_DOWNLOADS)
    return hashlib.sha256(lines.encode()).hexdigest()


def _from_the_registry(folder: Path) -> str:
    """Return the digest in the tags of the version that MLflow says it has just fetched; empty if it says none."""
    said = folder / WRITTEN_BY_DOWNLOADS
    named = yaml.safe_load(said.read_text(encoding="utf-8")) if said.is_file() else {}
    name, version = named.get("model_name"), named.get("model_version")
    if not name or not version:
        return ""
    return str(MlflowClient().get_model_version(name, str(version)).tags.get(PACKAGE_TAG, ""))


set_model(EditedModel())
