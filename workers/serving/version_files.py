"""The files of model versions on this machine's disk: each once, under its SHA-256, checked before it is used.

    FOLDER/files/DIGEST.safetensors      deltas and accumulators, which versions share
    FOLDER/versions/DIGEST/              a version's manifest, and a line for each of its files
    FOLDER/live/LINEAGE.json             what was served last, to begin with while the registry is away

A version's own code and reports are fetched once to check its digest, and thrown away: nothing of them is ever run.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from editors.data.atomic_files import write_atomically
from editors.weights.serving import read_manifest
from pipeline.adapters.mlflow.fetching import MANIFEST
from pipeline.adapters.mlflow.versions import FollowedVersion
from pipeline.domain.errors import IntegrityBroken
from pipeline.domain.formats.canonical import sha256_file, sha256_text
from pipeline.domain.formats.packages import check_package, package_lines
from pipeline.domain.rank_api import BaseSpec, FileRef
from pipeline.domain.scratch import scratch_folder

KEPT = timedelta(days=7)
"""How long a file stays after it was used last."""
LINES = "files.sha256"


@dataclass(frozen=True, kw_only=True, slots=True)
class SnapshotFiles:
    """What a snapshot is put together from; the files lie on this machine."""

    snapshot_id: str
    """UUID of the snapshot."""
    seq: int
    """Its place in the lineage's history."""
    digest: str
    """Identity of its weights."""
    base: BaseSpec
    """The base that it stands on, where it lay when the version was made."""
    inner_params: tuple[str, ...]
    """Names of the edited weights."""
    accumulator: FileRef | None
    """The accumulators to begin with."""
    deltas: tuple[FileRef, ...]
    """The deltas above them, in order."""


class VersionFiles:
    """A cache of what versions are loaded from; several processes may share the folder.

    Args:
        folder: made when it is first needed, for this user alone.
        fetch: gets a file or a folder that MLflow names by a URI, into a folder, and returns where it lies.
    """

    def __init__(self, folder: Path, fetch: Callable[[str, Path], Path]) -> None:
        self._folder, self._fetch = folder, fetch

    def of(self, version: FollowedVersion, package_digest: str) -> SnapshotFiles:
        """Return the files of a version; what is missing is fetched, and everything is checked.

        Raises:
            IntegrityBroken: if a file is not what was registered.
            Unavailable: if MLflow does not answer.
            Misconfigured: if it has no such file.
        """
        try:
            manifest = self._manifest(package_digest)
        except (OSError, ValueError, IntegrityBroken):
            self._take_in(version.source, package_digest)
            manifest = self._manifest(package_digest)
        if any("file" in named and not self._is_here(named) for named in manifest["deltas"]):
            self._take_in(version.source, package_digest)
        accumulator = manifest["accumulator"]
        files = SnapshotFiles(
            snapshot_id=str(manifest["snapshot_id"]),
            seq=int(manifest["seq"]),
            digest=str(manifest["digest"]),
            base=BaseSpec(**manifest["base"]),
            inner_params=tuple(manifest["inner_params"]),
            accumulator=self._file(accumulator) if accumulator else None,
            deltas=tuple(self._file(named) for named in manifest["deltas"]),
        )
        self.touch([files])
        return files

    def remember(self, version: FollowedVersion, package_digest: str) -> None:
        """Note down what is served now, for a start while the registry is away."""
        said = json.dumps({"version": asdict(version), "package_digest": package_digest})
        _write(self._folder / "live" / f"{version.lineage}.json", said.encode())

    def remembered(self, lineage: str) -> tuple[FollowedVersion, str] | None:
        """Return what was served last; None if nothing was."""
        try:
            said = json.loads((self._folder / "live" / f"{lineage}.json").read_bytes())
            return FollowedVersion(**said["version"]), str(said["package_digest"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def touch(self, used: Iterable[SnapshotFiles]) -> None:
        """Note that files are in use; to be called more often than `KEPT`, as others who share the folder prune it."""
        for files in used:
            for file in (*files.deltas, *((files.accumulator,) if files.accumulator else ())):
                with suppress(OSError):
                    os.utime(file.path)

    def prune(self) -> None:
        """Delete files that nobody has used for a week."""
        oldest = time.time() - KEPT.total_seconds()
        for path in (self._folder / "files").glob("*"):
            with suppress(OSError):
                if path.stat().st_mtime < oldest:
                    path.unlink()

    def _manifest(self, package_digest: str) -> dict[str, Any]:
        """Return a manifest that was kept, checked by the lines that the version's digest is made of."""
        folder = self._folder / "versions" / package_digest
        lines = (folder / LINES).read_text(encoding="utf-8")
        said = f"{sha256_file(folder / 'manifest.json')}  {MANIFEST}"
        if sha256_text(lines) != package_digest or said not in lines.splitlines():
            raise IntegrityBroken(f"expected the manifest of the version with the digest {package_digest}, got another")
        return read_manifest(folder)

    def _take_in(self, source: str, package_digest: str) -> None:
        """Fetch a version, check all of it, and keep its manifest and its own delta."""
        with scratch_folder("version") as scratch:
            fetched = self._fetch(source, Path(scratch))
            check_package(fetched, package_digest)
            lines = package_lines(fetched)
            manifest_path = fetched / MANIFEST
            for named in json.loads(manifest_path.read_bytes())["deltas"]:
                if "file" in named:
                    self._keep(manifest_path.parent / str(named["file"]), str(named["digest"]))
            kept = self._folder / "versions" / package_digest
            _write(kept / LINES, lines.encode())
            _write(kept / "manifest.json", manifest_path.read_bytes())

    def _file(self, named: dict[str, Any]) -> FileRef:
        """Return a file of a manifest; one that other versions need too is fetched if it is not here yet."""
        digest = str(named["digest"])
        if not self._is_here(named):
            with scratch_folder("fetched") as scratch:
                self._keep(self._fetch(str(named["uri"]), Path(scratch)), digest)
        return FileRef(path=str(self._path(digest)), digest=digest)

    def _is_here(self, named: dict[str, Any]) -> bool:
        path = self._path(str(named["digest"]))
        return path.is_file() and sha256_file(path) == named["digest"]

    def _keep(self, path: Path, digest: str) -> None:
        if (found := sha256_file(path)) != digest:
            raise IntegrityBroken(f"expected {path.name} to have the digest {digest}, got {found}")
        target = self._path(digest)
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}.part")
        shutil.move(path, partial)
        partial.replace(target)

    def _path(self, digest: str) -> Path:
        return self._folder / "files" / f"{digest}.safetensors"


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(path, content)
