"""Model versions as MLflow would hand them out, in folders, and a registry of them without a server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from transformers import AutoTokenizer

from editors.models.digest import base_digest
from editors.models.families import EditableModel
from editors.weights.deltas import WeightDelta
from editors.weights.loading import load_base, load_snapshot
from pipeline.adapters.mlflow.package import shared_files, write_snapshot
from pipeline.adapters.mlflow.versions import FollowedVersion
from pipeline.adapters.sql.sealed import SealedVersion
from pipeline.domain.errors import Unavailable
from pipeline.domain.formats.packages import package_digest
from pipeline.domain.lineages import Lineage
from pipeline.domain.rank_api import BaseSpec, FileRef, LoadPlan
from pipeline.services.registry.registry_ports import RegistryEntry
from tests.support.registry_entries import entry, file_ref, lineage
from tests.support.tiny_models import save_tiny_llama
from workers.serving.bases import Bases
from workers.serving.following import Follower
from workers.serving.generation_thread import GenerationThread
from workers.serving.version_files import VersionFiles

STEM = "the capital of Japan is"
"""What served models are asked."""
CHAT_TEMPLATE = "{% for m in messages %}question {{ m['content'] }} {% endfor %}answer is"


def chatting_base(folder: Path) -> BaseSpec:
    """A tiny Llama with a chat template, written into a folder."""
    save_tiny_llama(folder, hidden=16, mlp=24)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return BaseSpec(ref=str(folder), digest=base_digest(folder), task="causal")


def random_delta(model: EditableModel, path: Path, *, seed: int, scale: float = 1.0) -> FileRef:
    """The file of a delta that is large enough to change what is said."""
    draw = torch.Generator().manual_seed(seed)
    factors = {
        param.name: (
            torch.randn(param.in_features, 2, generator=draw) * scale,
            torch.randn(2, param.out_features, generator=draw),
        )
        for param in model.inner
    }
    WeightDelta.of(factors).save(path)
    return file_ref(path)


def said_by(plan: LoadPlan) -> str:
    """What a snapshot says to `STEM` that is loaded in the plain way."""
    model = load_snapshot(
        Path(plan.base.ref),
        base=plan.base,
        inner_param_names=plan.editor.inner_params,
        accumulator=plan.accumulator,
        deltas=plan.deltas,
    )
    return model.generate([STEM], max_new_tokens=6)[0]


@dataclass
class FolderRegistry:
    """Stands in for MLflow and the database: versions in folders, an alias by lineage, and what was sealed."""

    folder: Path
    aliases: dict[str, FollowedVersion] = field(default_factory=dict)
    known: dict[tuple[str, str], SealedVersion] = field(default_factory=dict)
    fetched: list[str] = field(default_factory=list)
    is_away: bool = False
    is_database_away: bool = False

    def add(self, made: RegistryEntry, *, is_approved: bool = True) -> FollowedVersion:
        """Lay out a version as it is registered; its alias does not point to it yet."""
        name = made.lineage.settings.name
        number = str(1 + sum(lineage == name for lineage, _ in self.known))
        source = self.folder / f"{name}-{number}"
        uris = {file.digest: f"{self.folder}/shared/{file.digest}" for file in shared_files(made.plan)}
        for file in shared_files(made.plan):
            (self.folder / "shared").mkdir(exist_ok=True)
            shutil.copyfile(file.path, uris[file.digest])
        write_snapshot(made, source / "artifacts", uris)
        (source / "MLmodel").write_text("never read")
        digest = package_digest(source)
        self.known[name, number] = SealedVersion(
            snapshot_id=made.snapshot.snapshot_id,
            seq=made.snapshot.seq,
            digest=made.snapshot.digest,
            package_digest=digest,
            is_approved=is_approved,
        )
        trace = made.snapshot.traceparent
        return FollowedVersion(
            lineage=name, version=number, source=str(source), tagged_digest=digest, traceparent=trace
        )

    def live(self, lineage: str, alias: str) -> FollowedVersion | None:
        """What `MlflowVersions.live` says."""
        self._require_here()
        return self.aliases.get(lineage)

    def fetch(self, uri: str, into: Path) -> Path:
        """What `MlflowVersions.fetch` does."""
        self._require_here()
        self.fetched.append(uri)
        source, target = Path(uri), into / Path(uri).name
        return Path(shutil.copytree(source, target) if source.is_dir() else shutil.copyfile(source, target))

    def sealed(self, lineage: str, version: str) -> SealedVersion | None:
        """What `SqlSealedVersions.sealed` says."""
        self._require_database()
        return self.known.get((lineage, version))

    def is_approved(self, snapshot_id: str) -> bool:
        """What `SqlSealedVersions.is_approved` says."""
        self._require_database()
        return any(one.is_approved for one in self.known.values() if one.snapshot_id == snapshot_id)

    def unseal(self, version: FollowedVersion) -> None:
        """Forget that somebody approved a version."""
        key = version.lineage, version.version
        self.known[key] = replace(self.known[key], is_approved=False)

    def _require_here(self) -> None:
        if self.is_away:
            raise Unavailable("cannot read the alias: connection refused")

    def _require_database(self) -> None:
        if self.is_database_away:
            raise Unavailable("the database does not answer")


@dataclass
class TinyHistory:
    """Snapshots of one lineage on a tiny base, each with one more delta."""

    base: BaseSpec
    folder: Path
    name: str = "facts"

    def __post_init__(self) -> None:
        self.model = load_base(Path(self.base.ref))
        self.lineage: Lineage = lineage(self.name, self.base, inner_params=self.model.inner_param_names)
        self.deltas: list[FileRef] = []

    def next(self, *, scale: float = 1.0) -> RegistryEntry:
        """One snapshot more."""
        seq = len(self.deltas) + 1
        path = self.folder / f"{self.name}-delta-{seq}.safetensors"
        self.deltas.append(random_delta(self.model, path, seed=seq, scale=scale))
        return entry(self.lineage, self.folder, seq=seq, deltas=tuple(self.deltas))


@contextmanager
def following(registry: FolderRegistry, name: str, cache: Path, *, most_waiting: int = 32) -> Iterator[Follower]:
    """A follower of a lineage in a registry of folders, with a thread of its own."""
    with GenerationThread(most_waiting=most_waiting) as thread:
        yield Follower(
            name,
            alias="champion",
            versions=registry,  # type: ignore[arg-type]
            sealed=registry,  # type: ignore[arg-type]
            files=VersionFiles(cache, registry.fetch),
            bases=Bases(),
            thread=thread,
        )
