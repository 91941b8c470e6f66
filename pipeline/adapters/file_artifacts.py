"""Files by their content in one folder, which is a shared volume when deployed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from pipeline.domain.errors import IntegrityBroken, Unavailable
from pipeline.domain.formats.canonical import sha256_file
from pipeline.domain.snapshots import Artifact
from pipeline.services.pruning import StoredFile


class FileArtifacts:
    """Keeps files at `sha256/ab/abcd….ext` under a root; the URI is that relative path."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._verified: dict[str, tuple[int, int]] = {}

    def put(self, path: Path) -> Artifact:
        """Keep a file's bytes under their digest; durable when it returns, and new to `older_than`."""
        try:
            digest = sha256_file(path)
            uri = f"sha256/{digest[:2]}/{digest}{path.suffix}"
            target = self._root / uri
            if not self._used_again(target, num_bytes=path.stat().st_size):
                _copy_durably(path, target)
            return Artifact(uri=uri, digest=digest, num_bytes=target.stat().st_size)
        except OSError as error:
            raise Unavailable(f"expected to store {path.name} under {self._root}, got: {error.strerror}") from error

    def path(self, artifact: Artifact, *, is_checked: bool = True) -> Path:
        """Return where the file is; its bytes are checked once for each state of the file, or left to who opens it.

        Raises:
            IntegrityBroken: if it is missing or its bytes have another digest.
        """
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

    def older_than(self, moment: datetime) -> tuple[StoredFile, ...]:
        """Return the files that nobody has stored, for the first time or again, since a moment."""
        found = []
        for path in sorted(self._root.glob("sha256/*/*")):
            with suppress(FileNotFoundError):  # a file that was being stored has its own name by now
                stat = path.stat()
                if stat.st_mtime < moment.timestamp():
                    found.append(StoredFile(uri=str(path.relative_to(self._root)), num_bytes=stat.st_size))
        return tuple(found)

    def remove(self, file: StoredFile, *, older_than: datetime) -> bool:
        """Remove a file unless somebody has stored it again meanwhile; return whether it is gone."""
        path = self._root / file.uri
        with self._locked(fcntl.LOCK_EX), suppress(FileNotFoundError):
            if path.stat().st_mtime < older_than.timestamp():
                path.unlink()
                return True
        return False

    def _used_again(self, target: Path, *, num_bytes: int) -> bool:
        """Make a file that is there as new as one just stored, so that nobody prunes it before its row is committed."""
        with self._locked(fcntl.LOCK_SH):
            try:
                os.utime(target)
                return target.stat().st_size == num_bytes
            except (FileNotFoundError, PermissionError):
                return False  # stored anew, which is right in either case

    @contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        """Hold the store's lock: shared to use a file again, exclusive to remove one."""
        self._root.mkdir(parents=True, exist_ok=True)
        # Whoever came first owns the file; for a lock the others only have to open it.
        handle = os.open(self._root / ".lock", os.O_RDONLY | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, kind)
            yield
        finally:
            os.close(handle)


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
