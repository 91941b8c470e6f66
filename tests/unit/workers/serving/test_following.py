"""A lineage that is followed: what goes live, what is refused, what is fetched, and what holds while others fail."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest

from pipeline.domain.errors import Unavailable
from pipeline.services.registry.registry_ports import RegistryEntry
from tests.support.served import STEM, FolderRegistry, TinyHistory, chatting_base, following, said_by
from workers.serving import following as following_module
from workers.serving.following import Follower, require_live
from workers.serving.version_files import VersionFiles


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> TinyHistory:
    folder = tmp_path_factory.mktemp("history")
    return TinyHistory(chatting_base(folder / "base"), folder)


@pytest.fixture(scope="module")
def entries(history: TinyHistory) -> list[RegistryEntry]:
    return [history.next() for _ in range(3)]


@pytest.fixture
def registry(tmp_path: Path) -> FolderRegistry:
    folder = tmp_path / "registry"
    folder.mkdir()
    return FolderRegistry(folder)


def said(follower: Follower) -> str:
    answerable = require_live(follower).answerable
    answerable.base.use(answerable.edited)
    return answerable.base.model.generate([STEM], max_new_tokens=6)[0]


def test_what_the_alias_points_to_is_served_and_only_what_lacks_is_fetched(
    entries: list[RegistryEntry], registry: FolderRegistry, tmp_path: Path
) -> None:
    versions = [registry.add(made) for made in entries]
    with following(registry, "facts", tmp_path / "cache") as follower:
        with pytest.raises(Unavailable, match="being loaded"):
            require_live(follower)
        follower.poll()
        assert "got none yet" in str(follower.fault)
        for made, version in zip(entries, versions, strict=True):
            registry.aliases["facts"] = version
            follower.poll()
            assert follower.fault is None
            assert said(follower) == said_by(made.plan)
            # Its own delta came with it, and those below it were here.
            assert registry.fetched.pop() == version.source
            assert not registry.fetched
    assert len({said_by(made.plan) for made in entries}) == 3


def test_the_way_back_fetches_nothing_and_loads_nothing(
    entries: list[RegistryEntry], registry: FolderRegistry, tmp_path: Path
) -> None:
    first, second = (registry.add(made) for made in entries[:2])
    with following(registry, "facts", tmp_path / "cache") as follower:
        for version in (first, second):
            registry.aliases["facts"] = version
            follower.poll()
        kept = follower.previous
        registry.fetched.clear()
        registry.aliases["facts"] = first
        follower.poll()
        assert follower.serving is kept
        assert not registry.fetched
        assert said(follower) == said_by(entries[0].plan)


@pytest.mark.parametrize("wrong", ["manifest", "delta", "a file more", "unknown", "not approved", "no digest", "NaN"])
def test_a_bad_version_is_refused_and_the_one_before_goes_on(
    history: TinyHistory, entries: list[RegistryEntry], registry: FolderRegistry, tmp_path: Path, wrong: str
) -> None:
    good = registry.add(entries[0])
    if wrong == "NaN":
        bad = registry.add(TinyHistory(history.base, tmp_path).next(scale=1e38))
    else:
        bad = registry.add(entries[1], is_approved=wrong != "not approved")
    snapshot = Path(bad.source, "artifacts", "snapshot")
    if wrong in ("manifest", "delta"):
        path = snapshot / ("manifest.json" if wrong == "manifest" else "delta.safetensors")
        path.write_bytes(path.read_bytes() + b" ")
    elif wrong == "a file more":
        (snapshot / "sitecustomize.py").write_text("raise SystemExit")
    elif wrong == "unknown":
        del registry.known["facts", bad.version]
    with following(registry, "facts", tmp_path / "cache") as follower:
        if wrong == "no digest":
            follower._sealed = None
            bad = type(bad)(lineage="facts", version="2", source=bad.source, tagged_digest="")
        for version in (good, bad, bad):
            registry.aliases["facts"] = version
            follower.poll()
        assert str(follower.fault).startswith("version 2 is refused: ")
        assert follower.wanted == "2"
        assert require_live(follower).version == good
        assert said(follower) == said_by(entries[0].plan)
        assert len(registry.fetched) <= 2, "it is not tried again at once"


def test_a_registry_that_is_away_changes_nothing_not_even_across_a_restart(
    entries: list[RegistryEntry], registry: FolderRegistry, tmp_path: Path
) -> None:
    registry.aliases["facts"] = registry.add(entries[0])
    with following(registry, "facts", tmp_path / "cache") as follower:
        follower.poll()
        registry.is_away = True
        follower.poll()
        assert "connection refused" in str(follower.fault)
        assert said(follower) == said_by(entries[0].plan)
    with following(registry, "facts", tmp_path / "cache") as again:
        again.poll()
        assert said(again) == said_by(entries[0].plan)
        registry.is_away = False
        again.poll()
        assert again.fault is None


@pytest.mark.parametrize("is_away", [True, False], ids=["registry away", "alias not moved yet"])
def test_a_version_that_is_rolled_back_answers_no_more_though_its_alias_stays(
    entries: list[RegistryEntry], registry: FolderRegistry, tmp_path: Path, is_away: bool
) -> None:
    first, second = (registry.add(made) for made in entries[:2])
    with following(registry, "facts", tmp_path / "cache") as follower:
        for version in (first, second):
            registry.aliases["facts"] = version
            follower.poll()
        registry.is_away = is_away
        registry.unseal(second)
        for _ in range(2):
            follower.poll()
            assert require_live(follower).version == first
            assert said(follower) == said_by(entries[0].plan)
        registry.unseal(first)
        follower.poll()
        with pytest.raises(Unavailable, match="connection refused" if is_away else "expected an approved snapshot"):
            require_live(follower)


@pytest.mark.parametrize("is_database_away", [False, True])
def test_what_was_served_last_begins_again_unless_the_database_says_that_it_was_rolled_back(
    entries: list[RegistryEntry], registry: FolderRegistry, tmp_path: Path, is_database_away: bool
) -> None:
    registry.aliases["facts"] = version = registry.add(entries[0])
    with following(registry, "facts", tmp_path / "cache") as follower:
        follower.poll()
    registry.is_away, registry.is_database_away = True, is_database_away
    registry.unseal(version)
    with following(registry, "facts", tmp_path / "cache") as again:
        again.poll()
        if is_database_away:
            assert said(again) == said_by(entries[0].plan)
            again.poll()
            assert require_live(again).version == version
        else:
            with pytest.raises(
                Unavailable, match="version 1, served last, is refused: IntegrityBroken: expected an approved snapshot"
            ):
                require_live(again)


@pytest.mark.parametrize("of", ["files", "versions"])
def test_a_damaged_cache_is_fetched_again(
    entries: list[RegistryEntry], registry: FolderRegistry, tmp_path: Path, of: str
) -> None:
    registry.aliases["facts"] = registry.add(entries[1])
    with following(registry, "facts", tmp_path / "cache") as follower:
        follower.poll()
    for path in [path for path in (tmp_path / "cache" / of).rglob("*") if path.is_file()]:
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    with following(registry, "facts", tmp_path / "cache") as again:
        again.poll()
        assert again.fault is None
        assert said(again) == said_by(entries[1].plan)


def test_files_that_nobody_uses_go_after_a_week(
    entries: list[RegistryEntry], registry: FolderRegistry, tmp_path: Path
) -> None:
    registry.aliases["facts"] = registry.add(entries[0])
    with following(registry, "facts", tmp_path / "cache") as follower:
        follower.poll()
        unused = tmp_path / "cache" / "files" / f"{'0' * 64}.safetensors"
        unused.write_bytes(b"old")
        for path in unused.parent.iterdir():
            os.utime(path, (1, 1))
        registry.aliases["facts"] = registry.add(entries[1])
        follower.poll()
        assert {path.stem for path in unused.parent.iterdir()} == {file.digest for file in entries[1].plan.deltas}


def test_files_of_a_lineage_that_is_served_unchanged_for_a_week_stay_while_another_one_swaps(
    entries: list[RegistryEntry], registry: FolderRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.aliases["facts"] = registry.add(entries[0])
    folder = tmp_path / "cache" / "files"
    with following(registry, "facts", tmp_path / "cache") as follower:
        follower.poll()
        for path in folder.iterdir():
            os.utime(path, (1, 1))
        monkeypatch.setattr(following_module, "TOUCHED_EVERY", timedelta(0))
        follower.poll()
        VersionFiles(tmp_path / "cache", registry.fetch).prune()
        assert {path.stem for path in folder.iterdir()} == {file.digest for file in entries[0].plan.deltas}


def test_a_file_that_is_gone_is_no_fault_of_the_version_that_goes_live_next(
    entries: list[RegistryEntry], registry: FolderRegistry, tmp_path: Path
) -> None:
    """What is loaded answers from memory; its files are only for the next start."""
    registry.aliases["facts"] = registry.add(entries[0])
    with following(registry, "facts", tmp_path / "cache") as follower:
        follower.poll()
        for path in (tmp_path / "cache" / "files").iterdir():
            path.unlink()
        registry.aliases["facts"] = registry.add(entries[1])
        follower.poll()
        assert follower.fault is None
        assert said(follower) == said_by(entries[1].plan)
    registry.is_away = True
    with following(registry, "facts", tmp_path / "cache") as again:
        again.poll()
        assert said(again) == said_by(entries[1].plan), "it was noted as what is served"
