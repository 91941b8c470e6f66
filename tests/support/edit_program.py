"""An edit worker of a test: the real task on the real stores, around a fake of the ranks. A failpoint kills it.

Works as a worker that hears the doorbell again and again, until its lineage has nothing that anybody could do without
a person. Its last line is JSON: the digest and the facts that a fresh group loads for the head. With `--registry` it is
the relay instead, and a file is the registry.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pipeline.bootstrap import Stores, stores
from pipeline.config import load_settings
from pipeline.domain.errors import EngineFailed
from pipeline.services.ports import OutboxItem
from pipeline.services.registry.champion_alias import ChampionAlias
from pipeline.services.registry.mirroring import RegistryMirror
from pipeline.services.registry.registry_ports import RegistryEntry, Seal
from pipeline.services.relaying import OutboxRelay
from tests.support.fake_editor import FakeEditorGroup
from tests.support.fake_registry import FakeRegistry
from tests.support.waiting import patience
from workers import tasks

POLL_SECONDS = 0.05


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("lineage")
    parser.add_argument("--rings", type=int, default=1, help="how often the doorbell rings at least")
    parser.add_argument("--pause", type=Path, help="folder: before the first candidate leave `reached`, wait for `go`")
    parser.add_argument("--engine-failures", type=int, default=0, help="so many trials end with dead ranks")
    parser.add_argument("--registry", type=Path, help="relay the outbox to this file instead")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    kept = stores(load_settings())
    if asked.registry:
        return relay(kept, asked.registry)
    return work(kept, asked)


def work(kept: Stores, asked: argparse.Namespace) -> int:
    failures = asked.engine_failures

    def before_trial() -> None:
        nonlocal failures
        if asked.pause:
            pause(asked.pause)
        if failures:
            failures -= 1
            raise EngineFailed("expected an answer of rank 0, got none")

    group = FakeEditorGroup(before_trial)
    tasks.rank_group = lambda: group  # type: ignore[assignment]
    deadline = time.monotonic() + patience()
    rings = 0
    while rings < asked.rings or not is_settled(kept, asked.lineage):
        if time.monotonic() > deadline:
            print(f"expected a settled lineage, got {kept.lineages.counts(asked.lineage)}")
            return 1
        rings += 1
        tasks.edit_lineage(asked.lineage)
        time.sleep(POLL_SECONDS if rings >= asked.rings else 0)
    print(json.dumps(loaded(kept, asked.lineage)))
    return 0


def is_settled(kept: Stores, lineage: str) -> bool:
    """Whether nothing is left to do; what a held lineage has in its queue waits for a person."""
    found = kept.lineages.lineage(lineage)
    counts = kept.lineages.counts(lineage)
    open_ones = counts.get("claimed", 0) + (0 if found.hold else counts.get("received", 0))
    return not open_ones and lineage not in kept.leases.waiting()


def loaded(kept: Stores, lineage: str) -> dict[str, Any]:
    """What a group that starts now gets from the files."""
    group = FakeEditorGroup()
    head_id = kept.lineages.lineage(lineage).head_id
    ledger = kept.snapshots.ledger_plan(lineage, snapshot_id=head_id)
    group.load(replace(kept.snapshots.load_plan(lineage, snapshot_id=head_id), ledger=ledger), epoch=0)
    return {"digest": group.digest, "facts": group.facts}


def pause(folder: Path) -> None:
    """Wait in the middle of the first candidate until the test says so."""
    (folder / "reached").touch()
    deadline = time.monotonic() + patience()
    while not (folder / "go").exists():
        if time.monotonic() > deadline:
            raise TimeoutError("nobody said go")
        time.sleep(POLL_SECONDS)


class FileRegistry(FakeRegistry):
    """A registry that outlives the process."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        for name, model in json.loads(path.read_text()).items() if path.exists() else ():
            for tags in model["tags"].values():
                self.add_version(name, tags)
            for alias, version in model["aliases"].items():
                self.set_alias(name, alias, version)

    def register(self, entry: RegistryEntry, *, seal: Seal) -> str:
        version = super().register(entry, seal=seal)
        self._save()
        return version

    def point_champion(self, lineage: str, version: str | None) -> None:
        super().point_champion(lineage, version)
        self._save()

    def _save(self) -> None:
        self._path.write_text(json.dumps({name: asdict(model) for name, model in self._models.items()}))


def relay(kept: Stores, path: Path) -> int:
    """Carry out what is owed to the registry; nobody listens to the rest."""
    registry = FileRegistry(path)
    mirror = RegistryMirror(mirror=kept.mirror, registry=registry)
    alias = ChampionAlias(mirror=kept.mirror, registry=registry)

    def register(item: OutboxItem) -> None:
        mirror.register(item.payload["snapshot_id"])

    def champion(item: OutboxItem) -> None:
        alias.point(item.payload["lineage"])

    def unheard(item: OutboxItem) -> None:
        pass

    handlers = {"register": register, "champion": champion, "doorbell": unheard, "result": unheard}
    carrier = OutboxRelay(outbox=kept.outbox, handlers=handlers)
    for kind in carrier.kinds:
        carrier.run_once(kind)
    return 0


if __name__ == "__main__":
    sys.exit(main())
