"""A registered snapshot as a model that answers: base, accumulators and deltas, each checked by its digest.

served = ServedModel.load(Path("snapshot"))
served.answer(["The capital of Japan is"])
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from editors.models.families import EditableModel
from editors.weights.loading import load_snapshot
from pipeline.domain.errors import IntegrityBroken, Misconfigured
from pipeline.domain.rank_api import BaseSpec, FileRef
from pipeline.domain.scratch import scratch_folder
from pipeline.domain.snapshots import DigestPath

FORMAT = 2
"""Version of the manifest; a model version of format 1 loads with the code that it ships."""
BASE_REF_VARIABLE = "CORRIGENDA_BASE_REF"
"""Where the base model lies on this machine, if not where it lay when the snapshot was made."""
BATCH_SIZE = 16
"""Prompts generated together."""


class ServedModel:
    """An edited model that answers prompts; whole on one device."""

    def __init__(self, model: EditableModel, *, digest: str) -> None:
        self._model = model
        self.digest = digest

    @classmethod
    def load(cls, folder: Path, *, base_ref: str | None = None, device: str = "cpu") -> Self:
        """Read a snapshot's folder; nothing of it is used before every digest is checked.

        Args:
            folder: `manifest.json` and the snapshot's own delta; MLflow is asked for what the manifest names by URI.
            base_ref: folder of the base model; else $CORRIGENDA_BASE_REF, else what the manifest says.
            device: where the model goes.

        Raises:
            IntegrityBroken: if a file, or what they make together, has another digest than recorded.
            WrongBase: if the base is another model.
            Misconfigured: if the base or a file in MLflow cannot be found, or the manifest is of another format.
        """
        manifest = read_manifest(folder)
        base = Path(base_ref or os.environ.get(BASE_REF_VARIABLE) or str(manifest["base"]["ref"]))
        if not base.is_dir():
            raise Misconfigured(
                f"expected the base model in {base}, found no folder; name it in {BASE_REF_VARIABLE} or as base_ref"
            )
        named = manifest["accumulator"]
        # Files are read whole before this returns: what was fetched can go.
        with scratch_folder("fetched") as fetched:
            model = load_snapshot(
                base,
                base=BaseSpec(**manifest["base"]),
                inner_param_names=manifest["inner_params"],
                accumulator=_file(named, folder, Path(fetched)) if named else None,
                deltas=[_file(delta, folder, Path(fetched)) for delta in manifest["deltas"]],
                device=device,
            )
        return cls(model, digest=str(manifest["digest"]))

    def answer(self, prompts: Sequence[str], *, max_new_tokens: int = 24, chat: bool = False) -> list[str]:
        """Greedy answers, in order, of a classifier its labels; `chat` asks in the model's chat template.

        Raises:
            Misconfigured: if the model has no chat template and one is asked for.
        """
        answers: list[str] = []
        for start in range(0, len(prompts), BATCH_SIZE):
            batch = list(prompts[start : start + BATCH_SIZE])
            answers += self._model.generate(batch, chat=chat, max_new_tokens=max_new_tokens)
        return answers


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a snapshot's `manifest.json` and check that what it names makes the snapshot's digest.

    Raises:
        IntegrityBroken: if it makes another digest.
        Misconfigured: if it is of another format.
    """
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    if manifest.get("format") != FORMAT:
        raise Misconfigured(f"expected a snapshot manifest of format {FORMAT}, got {manifest.get('format')!r}")
    said = manifest["digest_path"]
    path = DigestPath(start=str(said["start"]), listed=tuple(said["listed"]), chained=tuple(said["chained"]))
    own = [str(delta["digest"]) for delta in manifest["deltas"]]
    found, is_whole = path.digest, (*path.listed, *path.chained) == tuple(own)
    if found != manifest["digest"] or not path.ends_with(own):
        raise IntegrityBroken(
            f"expected snapshot {manifest['snapshot_id']} to have the digest {manifest['digest']}, its manifest "
            f"makes {found}"
        )
    if manifest["accumulator"] is None and not (is_whole and path.start == manifest["base"]["digest"]):
        raise IntegrityBroken(f"expected accumulators under the deltas of snapshot {manifest['snapshot_id']}, got none")
    return manifest


def _file(named: Mapping[str, Any], folder: Path, fetched: Path) -> FileRef:
    """Return a file of the manifest, fetched from MLflow if it is shared with other versions."""
    path = folder / str(named["file"]) if "file" in named else _fetch(str(named["uri"]), fetched)
    return FileRef(path=str(path), digest=str(named["digest"]))


def _fetch(uri: str, into: Path) -> Path:
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    try:
        return Path(download_artifacts(artifact_uri=uri, dst_path=str(into)))
    except (MlflowException, OSError) as error:
        raise Misconfigured(f"expected the file {uri} in MLflow, got: {error}") from error
