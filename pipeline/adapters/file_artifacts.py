"""Files by their content in one folder (a shared volume when deployed). Knows nothing of what is in them."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from pipeline.domain.canonical import sha256_file
from pipeline.domain.errors import IntegrityBroken, Unavailable
from pipeline.domain.snapshots import Artifact


class FileArtifacts:
    """Implements `ArtifactStore`: `sha256/ab/abcd….ext` under a root; the URI is that relative path."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._verified: dict[str, tuple[int, int]] = {}

    def put(self, path: Path) -> Artifact:
        """Keep a file's bytes under their digest; durable when it returns."""
        try:
            digest = sha256_file(path)
            uri = f"sha256/{digest[:2]}/{digest}{path.suffix}"
            target = self._root / uri
            if not target.exists() or target.stat().st_size != path.stat().st_size:
                _copy_durably(path, target)
            return Artifact(uri=uri, digest=digest, num_bytes=target.stat().st_size)
        except OSError as error:
            raise Unavailable(f"expected to store {path.name} under {self._root}, got: {error.strerror}") from error

    def path(self, artifact: Artifact, *, is_checked: bool = True) -> Path:
        """Where the file is; its bytes are checked once for each state of the file, or left to who opens it."""
        path = self._root / artifact.uri
        if not is_checked:
            return path
        try:
            stat = path.stat()
            state = (stat.st_size, stat.st_mtime_ns)
            if self._verified.get(artifact.digest) == state:
                return path
            found = sha256_file(path)
        except OSError as error:
            raise IntegrityBroken(f"expected {artifact.digest[:12]} at {path}, got: {error.strerror}") from error
        if found != artifact.digest:
            raise IntegrityBroken(f"expected bytes with digest {artifact.digest[:12]} at {path}, got {found[:12]}")
        self._verified[artifact.digest] = state
        return path


def _copy_durably(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".incoming-")
    try:
        with os.fdopen(handle, "wb") as out, source.open("rb") as into:
            shutil.copyfileobj(into, out, 1 << 20)
            out.flush()
            os.fsync(out.fileno())
        Path(name).chmod(0o644)
        Path(name).rename(target)
        _sync_folder(target.parent)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
