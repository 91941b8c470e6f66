"""Files of a model version, fetched from MLflow and checked; nothing of them is unpickled, imported or run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.domain.errors import IntegrityBroken
from pipeline.domain.formats.canonical import sha256_file
from pipeline.domain.formats.packages import check_package
from pipeline.domain.scratch import scratch_folder

MANIFEST = "artifacts/snapshot/manifest.json"


def check_files(source: str, expected: str, *, tracking_uri: str) -> None:
    """Fetch the files of a version, and those that its manifest names, and check every one.

    Args:
        source: where MLflow keeps them.
        expected: digest of the files together.
        tracking_uri: of the server.

    Raises:
        IntegrityBroken: if a file is not what it was when the version was registered.
    """
    with _fetched(source, tracking_uri) as folder:
        check_package(folder, expected)
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    for named in _shared(manifest):
        # One at a time: they are tens of megabytes each.
        with _fetched(str(named["uri"]), tracking_uri) as path:
            if (found := sha256_file(path)) != named["digest"]:
                raise IntegrityBroken(f"expected {named['uri']} to have the digest {named['digest']}, got {found}")


@contextmanager
def _fetched(uri: str, tracking_uri: str) -> Iterator[Path]:
    from mlflow.artifacts import download_artifacts

    with scratch_folder("check") as folder:
        yield Path(download_artifacts(artifact_uri=uri, dst_path=folder, tracking_uri=tracking_uri))


def _shared(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what the manifest says of files that other versions need too."""
    accumulator = manifest["accumulator"]
    return [named for named in (accumulator, *manifest["deltas"]) if named is not None and "uri" in named]
