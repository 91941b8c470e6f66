"""The artifact store as a folder and as a bucket of an S3 server keep the same promises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from pipeline.adapters.file_artifacts import FileArtifacts
from pipeline.adapters.object_artifacts import ObjectArtifacts
from pipeline.bootstrap import artifacts_of
from pipeline.config import Settings
from pipeline.domain.errors import IntegrityBroken, Misconfigured, Unavailable
from pipeline.domain.snapshots import Artifact

Open = Callable[[str], FileArtifacts]
"""Opens the same store on a machine with this name."""


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Address of an S3 server with the bucket `facts`."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    _, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("ACCESS_KEY_ID", "k"), ("SECRET_ACCESS_KEY", "s"), ("DEFAULT_REGION", "us-east-1")):
            patch.setenv(f"AWS_{name}", value)
        store = ObjectArtifacts("s3://facts", cache=Path("unused"), endpoint=f"http://127.0.0.1:{port}")
        for _ in range(2):
            store.make_bucket()
        store._client.close()
        yield f"http://127.0.0.1:{port}"
    server.stop()


@pytest.fixture(params=["folder", "bucket"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    if request.param == "folder":
        return lambda machine: FileArtifacts(tmp_path / "store")
    endpoint = request.getfixturevalue("s3")
    return lambda machine: ObjectArtifacts(f"s3://facts/{tmp_path.name}", cache=tmp_path / machine, endpoint=endpoint)


def put(store: FileArtifacts, folder: Path, content: str) -> Artifact:
    source = folder / "source.safetensors"
    source.write_text(content)
    return store.put(source)


def soon() -> datetime:
    return datetime.now(UTC) + timedelta(minutes=1)


def test_what_one_machine_stores_another_reads(opened: Open, tmp_path: Path) -> None:
    artifact = put(opened("a"), tmp_path, "rows")
    assert artifact.num_bytes == 4
    assert artifact.uri.endswith(f"{artifact.digest}.safetensors")
    other = opened("b")
    assert other.path(artifact).read_text() == "rows"
    assert other.path(artifact, is_checked=False).read_text() == "rows"


def test_the_same_bytes_are_one_file(opened: Open, tmp_path: Path) -> None:
    first, second = put(opened("a"), tmp_path, "same"), put(opened("b"), tmp_path, "same")
    assert first == second
    assert [file.uri for file in opened("a").older_than(soon())] == [first.uri]


def test_what_is_not_there_is_said(opened: Open, tmp_path: Path) -> None:
    store = opened("a")
    artifact = put(store, tmp_path, "short-lived")
    [file] = store.older_than(soon())
    assert store.remove(file, older_than=soon())
    assert not store.remove(file, older_than=soon())
    assert store.older_than(soon()) == ()
    with pytest.raises(IntegrityBroken, match="expected"):
        opened("c").path(artifact)
    assert put(store, tmp_path, "short-lived") == artifact
    assert opened("d").path(artifact).read_text() == "short-lived"


def test_what_was_stored_again_is_not_removed(opened: Open, tmp_path: Path) -> None:
    store = opened("a")
    put(store, tmp_path, "wanted")
    [file] = store.older_than(soon())
    assert not store.remove(file, older_than=datetime.now(UTC) - timedelta(hours=1))
    assert len(store.older_than(soon())) == 1
    assert store.older_than(datetime.now(UTC) - timedelta(hours=1)) == ()


def test_other_bytes_under_a_digest_never_reach_who_asks(s3: str, tmp_path: Path) -> None:
    store = ObjectArtifacts("s3://facts/changed", cache=tmp_path / "a", endpoint=s3)
    artifact = put(store, tmp_path, "right")
    store._client.put_object(Bucket="facts", Key=f"changed/{artifact.uri}", Body=b"wrong")
    other = ObjectArtifacts("s3://facts/changed", cache=tmp_path / "b", endpoint=s3)
    with pytest.raises(
        IntegrityBroken, match=f"expected bytes with digest {artifact.digest[:12]} at s3://facts/changed/"
    ):
        other.path(artifact, is_checked=False)
    assert not [path for path in (tmp_path / "b").rglob("*") if path.is_file()], "nothing of it is kept"
    assert store.path(artifact).read_text() == "right", "who has it does not ask again"


def test_a_store_that_is_away_or_refuses_is_told_apart(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.adapters.bucket.ATTEMPTS", 1)
    away = ObjectArtifacts("s3://facts", cache=tmp_path / "a", endpoint="http://127.0.0.1:1")
    with pytest.raises(Unavailable, match="does not answer for sha256/"):
        put(away, tmp_path, "x")
    with pytest.raises(Misconfigured, match="NoSuchBucket"):
        ObjectArtifacts("s3://nobody-made-this", cache=tmp_path / "b", endpoint=s3).older_than(soon())
    with pytest.raises(Misconfigured, match="expected s3://bucket"):
        ObjectArtifacts("gs://facts", cache=tmp_path / "c")


def test_the_settings_say_which_store_it_is(s3: str, tmp_path: Path) -> None:
    folder = artifacts_of(Settings(artifact_root=tmp_path))
    bucket = artifacts_of(Settings(artifact_root=tmp_path, artifact_bucket="s3://facts", artifact_endpoint=s3))
    assert not isinstance(folder, ObjectArtifacts)
    assert isinstance(bucket, ObjectArtifacts)
    assert bucket.path(put(bucket, tmp_path, "kept")).is_relative_to(tmp_path)
