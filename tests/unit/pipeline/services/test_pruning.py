"""What `prune` takes away and what it leaves, beside somebody who stores and commits at the same time."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.adapters.file_artifacts import FileArtifacts
from pipeline.domain.errors import InvalidInput, Unavailable
from pipeline.domain.formats.sizes import parse_age
from pipeline.domain.snapshots import Artifact
from pipeline.services.pruning import GRACE, Pruner

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
DAY, MONTH = timedelta(days=1), timedelta(days=30)


class Rows:
    """The database: which artifacts are named, and what was audited."""

    def __init__(self) -> None:
        self.named: set[str] = set()
        self.lines: list[Mapping[str, Any]] = []
        self.on_read: Callable[[], None] = lambda: None
        self.on_prune: Callable[[], None] = lambda: None

    def now(self) -> datetime:
        """Always the same."""
        return NOW

    def artifact_uris(self) -> frozenset[str]:
        """Those that are named, after what somebody else does first."""
        self.on_read()
        return frozenset(self.named)

    def prune(
        self, before: datetime, *, actor: str, artifacts: Mapping[str, Any], is_dry_run: bool
    ) -> Mapping[str, int]:
        """Remembers the audit line."""
        self.on_prune()
        if not is_dry_run:
            self.lines.append({"before": before, "actor": actor, **artifacts})
        return {"num_outbox": 4, "num_dead_letters": 2, "num_submissions": 3}


@pytest.fixture
def rows() -> Rows:
    return Rows()


@pytest.fixture
def files(tmp_path: Path) -> FileArtifacts:
    return FileArtifacts(tmp_path / "store")


def stored(files: FileArtifacts, folder: Path, content: str, *, age: timedelta) -> Artifact:
    """A file of the store that was put there some time ago."""
    source = folder / "source.safetensors"
    source.write_text(content)
    artifact = files.put(source)
    at = (NOW - age).timestamp()
    os.utime(folder / "store" / artifact.uri, (at, at))
    return artifact


def is_there(folder: Path, artifact: Artifact) -> bool:
    return (folder / "store" / artifact.uri).exists()


def test_old_files_that_no_row_names_go_and_the_rest_stays(rows: Rows, files: FileArtifacts, tmp_path: Path) -> None:
    orphan = stored(files, tmp_path, "orphan", age=2 * MONTH)
    young = stored(files, tmp_path, "young", age=MONTH)  # old enough, but for the grace
    named = stored(files, tmp_path, "named", age=2 * MONTH)
    rows.named = {named.uri}

    found = Pruner(store=rows, files=files).prune(MONTH, actor="cli:ada")

    assert [is_there(tmp_path, artifact) for artifact in (orphan, young, named)] == [False, True, True]
    assert (found.num_outbox, found.num_dead_letters, found.num_artifacts, found.num_bytes) == (4, 2, 1, 6)
    assert rows.lines == [{"before": NOW - MONTH, "actor": "cli:ada", "num_artifacts": 1, "num_bytes": 6}]


def test_a_dry_run_counts_and_touches_nothing(rows: Rows, files: FileArtifacts, tmp_path: Path) -> None:
    orphan = stored(files, tmp_path, "orphan", age=2 * MONTH)
    found = Pruner(store=rows, files=files).prune(MONTH, actor="cli:ada", is_dry_run=True)
    assert (found.num_artifacts, found.num_bytes, found.is_dry_run) == (1, 6, True)
    assert is_there(tmp_path, orphan)
    assert rows.lines == []


def test_a_row_that_is_committed_while_files_are_listed_keeps_its_file(
    rows: Rows, files: FileArtifacts, tmp_path: Path
) -> None:
    late = stored(files, tmp_path, "late", age=2 * MONTH)
    rows.on_read = lambda: rows.named.add(late.uri)
    assert Pruner(store=rows, files=files).prune(MONTH, actor="cli:ada").num_artifacts == 0
    assert is_there(tmp_path, late)


def test_a_file_that_is_stored_again_meanwhile_is_kept_though_no_row_names_it_yet(
    rows: Rows, files: FileArtifacts, tmp_path: Path
) -> None:
    again = stored(files, tmp_path, "again", age=2 * MONTH)
    rows.on_prune = lambda: put(files, tmp_path, "again")
    found = Pruner(store=rows, files=files).prune(MONTH, actor="cli:ada")
    assert found.num_artifacts == 0
    assert is_there(tmp_path, again)


def test_a_file_that_is_stored_again_after_it_went_is_there_again(
    rows: Rows, files: FileArtifacts, tmp_path: Path
) -> None:
    gone = stored(files, tmp_path, "gone", age=2 * MONTH)
    Pruner(store=rows, files=files).prune(MONTH, actor="cli:ada")
    put(files, tmp_path, "gone")
    assert files.path(gone).read_text() == "gone"


def test_no_file_goes_while_somebody_makes_sure_that_it_is_there(files: FileArtifacts, tmp_path: Path) -> None:
    held = stored(files, tmp_path, "held", age=2 * MONTH)
    (old,) = files.older_than(NOW - MONTH)
    assert old.uri == held.uri
    other = FileArtifacts(tmp_path / "store")  # as in another process
    put(other, tmp_path, "held")
    assert not files.remove(old, older_than=NOW - MONTH)
    assert files.path(held).read_text() == "held"


def test_a_file_that_goes_between_the_listing_and_the_look_at_it_is_passed_over(
    files: FileArtifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = stored(files, tmp_path, "held", age=2 * MONTH)
    (listed,) = files.older_than(NOW - MONTH)
    vanished = tmp_path / "store" / "sha256" / "ab" / ".incoming-x"
    glob = Path.glob
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [vanished, *glob(self, pattern)])
    assert [file.uri for file in files.older_than(NOW - MONTH)] == [held.uri]
    assert files.remove(listed, older_than=NOW - MONTH)
    assert not files.remove(listed, older_than=NOW - MONTH)


def test_what_a_killed_upload_left_goes_too(rows: Rows, files: FileArtifacts, tmp_path: Path) -> None:
    folder = tmp_path / "store" / "sha256" / "ab"
    folder.mkdir(parents=True)
    left = folder / ".incoming-x"
    left.write_text("half")
    os.utime(left, (0, 0))
    assert Pruner(store=rows, files=files).prune(MONTH, actor="cli:ada").num_artifacts == 1
    assert not left.exists()


def test_nothing_goes_if_the_audit_line_cannot_be_written(rows: Rows, files: FileArtifacts, tmp_path: Path) -> None:
    orphan = stored(files, tmp_path, "orphan", age=2 * MONTH)

    def down() -> None:
        raise Unavailable("the database does not answer")

    rows.on_prune = down
    with pytest.raises(Unavailable):
        Pruner(store=rows, files=files).prune(MONTH, actor="cli:ada")
    assert is_there(tmp_path, orphan)


@pytest.mark.parametrize("age", [timedelta(0), -DAY, timedelta(minutes=59), timedelta(days=40_000)])
def test_an_age_that_makes_no_sense_is_refused(age: timedelta, rows: Rows, files: FileArtifacts) -> None:
    with pytest.raises(InvalidInput, match="expected an age from an hour to a hundred years"):
        Pruner(store=rows, files=files).prune(age, actor="cli:ada")
    assert rows.lines == []


@pytest.mark.parametrize(
    ("text", "age"), [("90m", GRACE * 1.5), ("12h", DAY / 2), (" 30 d ", MONTH), ("2w", timedelta(days=14))]
)
def test_ages_are_read_as_people_write_them(text: str, age: timedelta) -> None:
    assert parse_age(text) == age


@pytest.mark.parametrize("text", ["", "30", "d", "-3d", "1.5h", "3 months", "9999999d", "٣d"])
def test_nonsense_is_no_age(text: str) -> None:
    with pytest.raises(InvalidInput, match="expected an age such as 12h, 30d or 8w"):
        parse_age(text)


def put(files: FileArtifacts, folder: Path, content: str) -> None:
    source = folder / "source.safetensors"
    source.write_text(content)
    files.put(source)
