"""Files by their content in an object store that speaks S3, with a folder of this machine as cache.

What loads a model reads files, so each object is fetched once into the folder and checked there. The folder may be
emptied at any time: whatever is missing is fetched again.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from pipeline.adapters.bucket import GONE, InBucket, code_of
from pipeline.adapters.file_artifacts import FileArtifacts
from pipeline.domain.errors import IntegrityBroken
from pipeline.domain.formats.canonical import sha256_file
from pipeline.domain.snapshots import Artifact
from pipeline.services.pruning import StoredFile


class ObjectArtifacts(InBucket, FileArtifacts):
    """Keeps files at `PREFIX/sha256/ab/abcd….ext` of a bucket; the URI is the part from `sha256` on, as in a folder."""

    def __init__(self, bucket_url: str, *, cache: Path, endpoint: str = "") -> None:
        """Connect at the first use; credentials come from where boto3 looks for them.

        Args:
            bucket_url: s3://bucket or s3://bucket/prefix.
            cache: folder for what was fetched.
            endpoint: address of a store that is not Amazon's.

        Raises:
            Misconfigured: if the URL names no bucket.
        """
        FileArtifacts.__init__(self, cache)
        InBucket.__init__(self, bucket_url, endpoint=endpoint, setting="CORRIGENDA_ARTIFACT_BUCKET")

    def put(self, path: Path) -> Artifact:
        """Keep a file's bytes under their digest, here and in the bucket; new to `older_than` when it returns."""
        artifact = super().put(path)
        key = self._prefix + artifact.uri
        with self._answering(artifact.uri):
            if self._num_bytes(key) == artifact.num_bytes:
                # Copied onto itself, an object is as new as one just stored, so that nobody prunes it meanwhile.
                source = {"Bucket": self._bucket, "Key": key}
                self._client.copy_object(Bucket=self._bucket, Key=key, CopySource=source, MetadataDirective="REPLACE")
            else:
                self._client.upload_file(str(self._root / artifact.uri), self._bucket, key)
        return artifact

    def path(self, artifact: Artifact, *, is_checked: bool = True) -> Path:
        """Return where the file is on this machine, fetched if it is not there.

        Raises:
            IntegrityBroken: if the bucket does not hold it, or holds other bytes.
            Unavailable: if the store does not answer.
        """
        if not (self._root / artifact.uri).is_file():
            self._fetch(artifact)
        return super().path(artifact, is_checked=is_checked)

    def older_than(self, moment: datetime) -> tuple[StoredFile, ...]:
        """Return the objects that nobody has stored, for the first time or again, since a moment."""
        found = []
        with self._answering(self._bucket):
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=f"{self._prefix}sha256/"):
                for entry in page.get("Contents", ()):
                    if entry["LastModified"] < moment:
                        uri = str(entry["Key"]).removeprefix(self._prefix)
                        found.append(StoredFile(uri=uri, num_bytes=int(entry["Size"])))
        return tuple(found)

    def remove(self, file: StoredFile, *, older_than: datetime) -> bool:
        """Remove an object unless somebody has stored it again meanwhile; return whether it is gone.

        S3 cannot do both in one step: bytes that nobody has wanted for the whole age of `prune`, and that are stored
        again between the look and the removal, are lost, which whoever loads them is told.
        """
        key = self._prefix + file.uri
        with self._answering(file.uri):
            try:
                found = self._client.head_object(Bucket=self._bucket, Key=key)
            except self._errors.ClientError as error:
                if code_of(error) in GONE:
                    return False
                raise
            if found["LastModified"] >= older_than:
                return False
            self._client.delete_object(Bucket=self._bucket, Key=key)
        (self._root / file.uri).unlink(missing_ok=True)
        return True

    def _fetch(self, artifact: Artifact) -> None:
        """Download an object beside its place, and move it there once its bytes are those of its digest."""
        target = self._root / artifact.uri
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=".incoming-")
        os.close(handle)
        incoming = Path(name)
        try:
            with self._answering(artifact.uri):
                self._client.download_file(self._bucket, self._prefix + artifact.uri, name)
            if (digest := sha256_file(incoming)) != artifact.digest:
                where = f"s3://{self._bucket}/{self._prefix}{artifact.uri}"
                raise IntegrityBroken(
                    f"expected bytes with digest {artifact.digest[:12]} at {where}, got {digest[:12]}"
                )
            incoming.chmod(0o644)
            incoming.replace(target)
        finally:
            with suppress(FileNotFoundError):
                incoming.unlink()

    def _num_bytes(self, key: str) -> int | None:
        try:
            return int(self._client.head_object(Bucket=self._bucket, Key=key)["ContentLength"])
        except self._errors.ClientError as error:
            if code_of(error) in GONE:
                return None
            raise
