"""Anchors of audit chains in an object store: where each chain stood, with the time at which the store took it.

One object an anchor. Its name says all, so that reading is listing; its time is the store's own, not that of whoever
wrote it. Give the control worker a key that may write and list, and the bucket versions with a retention (S3's object
lock): then nobody can change what was noted, not even we.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import UTC
from typing import Any
from urllib.parse import quote, unquote

from pipeline.adapters.bucket import InBucket
from pipeline.domain.audit import Anchor, AnchorNote, parse_anchor
from pipeline.domain.errors import Misconfigured

FOLDER = "anchors/"


class AnchorBucket(InBucket):
    """Objects `anchors/TIME/CHAIN/SEQ:HASH` below a prefix of a bucket.

    Args:
        bucket_url: s3://bucket or s3://bucket/prefix.
        endpoint: address of a store that is not Amazon's.
    """

    where = "the bucket of anchors"

    def __init__(self, bucket_url: str, *, endpoint: str = "") -> None:
        super().__init__(bucket_url, endpoint=endpoint, setting="CORRIGENDA_ANCHOR_BUCKET")
        self._folder = self._prefix + FOLDER

    def append(self, notes: Iterable[AnchorNote]) -> None:
        """Add an object for each note.

        Raises:
            Unavailable, Misconfigured: if the store does not take them; those before may be there.
        """
        for note in notes:
            key = f"{self._folder}{note.at}/{quote(note.chain, safe='')}/{note.anchor}"
            line = json.dumps({"at": note.at, "chain": note.chain, "anchor": str(note.anchor)})
            with self._answering(key):
                self._client.put_object(Bucket=self._bucket, Key=key, Body=line.encode())

    def notes(self) -> Iterator[AnchorNote]:
        """Yield what was noted, oldest first, each with the time of the store; a thousand to a request.

        Raises:
            Unavailable, Misconfigured: if the store cannot be asked, or an object's name is no anchor.
        """
        with self._answering(self._bucket):
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._folder):
                yield from map(self._note, page.get("Contents", ()))

    def _note(self, entry: Any) -> AnchorNote:
        parts = str(entry["Key"]).removeprefix(self._folder).split("/")
        anchor = parse_anchor(parts[2]) if len(parts) == 3 else None
        if not isinstance(anchor, Anchor):
            raise Misconfigured(f"expected an anchor in the bucket {self._bucket!r}, got {entry['Key']!r:.200}")
        at = entry["LastModified"].astimezone(UTC).isoformat(timespec="seconds")
        return AnchorNote(at=at, chain=unquote(parts[1]), anchor=anchor)
