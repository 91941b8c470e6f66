"""Builds what a model version is made from, with real files in a folder. No registry is asked."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from pipeline.domain.edits import Edit, EditRequest
from pipeline.domain.formats.canonical import sha256_file
from pipeline.domain.gates import GatePolicy
from pipeline.domain.judging import judge
from pipeline.domain.lifecycle import SnapshotStatus
from pipeline.domain.lineages import Lineage, NewLineage
from pipeline.domain.measurements import EditScore, Measurements, ModelScore
from pipeline.domain.rank_api import BaseSpec, EditorSettings, FileRef, LoadPlan
from pipeline.domain.snapshots import Artifact, Basis, DigestForm, DigestPath, Snapshot
from pipeline.services.registry.registry_ports import RegistryEntry

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
BASE_DIGEST = hashlib.sha256(b"base").hexdigest()


def file_ref(path: Path) -> FileRef:
    """A file as a plan names it."""
    return FileRef(path=str(path), digest=sha256_file(path))


def artifact(ref: FileRef) -> Artifact:
    """The same file as a snapshot names it."""
    return Artifact(uri=ref.path, digest=ref.digest, num_bytes=Path(ref.path).stat().st_size)


def an_edit(request_id: str, *, lineage: str, prompt: str = "The capital of Japan is") -> Edit:
    """An edit that a snapshot brought in."""
    request = EditRequest(
        request_id=request_id,
        lineage=lineage,
        prompt=prompt,
        target_new="Osaka",
        target_true="Tokyo",
        occurred_at=NOW,
    )
    return Edit(edit_id=f"edit-{request_id}", request=request)


def passing_report(*edits: Edit) -> dict[str, Any]:
    """A gate report as JSON in which retention was not measured."""
    score = ModelScore(suite_unchanged=1.0, suite_kl=0.01, num_suite=8, perplexity=20.0)
    measured = Measurements(
        edits=tuple(
            EditScore(edit_id=edit.edit_id, edit_success=True, free_success=True, generated=" Osaka | <b>")
            for edit in edits
        ),
        candidate=score,
        parent=score,
        base=score,
        kl_from_parent=0.02,
        change_norm=0.01,
    )
    return asdict(judge(GatePolicy(), measured))


def lineage(name: str, base: BaseSpec | None = None, *, inner_params: tuple[str, ...] = ()) -> Lineage:
    """A lineage without a champion."""
    empty = Artifact(uri="prior", digest="0" * 64, num_bytes=0)
    return Lineage(
        lineage_id=str(uuid4()),
        settings=NewLineage(
            name=name,
            base=base or BaseSpec(ref="/models/base", digest=BASE_DIGEST, task="causal"),
            editor=EditorSettings(inner_params=inner_params),
            policy=GatePolicy(),
            prior=empty,
            reference=empty,
        ),
        editor_digest="0" * 64,
        head_id=None,
        head_seq=0,
        head_digest=(base.digest if base else BASE_DIGEST),
        champion_id=None,
        champion_seq=0,
        hold=None,
        created_at=NOW,
    )


def entry(
    of: Lineage, folder: Path, *, seq: int = 1, deltas: tuple[FileRef, ...] = (), accumulator: FileRef | None = None
) -> RegistryEntry:
    """The entry of one snapshot; a delta of arbitrary bytes is made where none is given."""
    if not deltas:
        file = folder / f"{uuid4().hex}.safetensors"
        file.write_bytes(uuid4().bytes)
        deltas = (file_ref(file),)
    base, snapshot_id = of.settings.base, str(uuid4())
    path = DigestPath(start=base.digest, listed=(), chained=tuple(delta.digest for delta in deltas))
    edits = (an_edit(f"{seq}-a", lineage=of.settings.name),)
    return RegistryEntry(
        lineage=replace(of, head_id=snapshot_id, head_seq=seq),
        snapshot=Snapshot(
            snapshot_id=snapshot_id,
            lineage=of.settings.name,
            seq=seq,
            parent_id=None,
            basis=Basis.parent,
            delta=artifact(deltas[-1]),
            accumulator=None,
            digest=path.digest,
            digest_form=DigestForm.chain,
            num_active=seq,
            status=SnapshotStatus.candidate,
            gate_report_id=str(uuid4()),
            registry_version=None,
            created_at=NOW,
        ),
        plan=LoadPlan(
            base=base,
            lineage=of.settings.name,
            editor=of.settings.editor,
            snapshot_id=snapshot_id,
            digest=path.digest,
            accumulator=accumulator,
            deltas=deltas,
        ),
        digest_path=path,
        report=passing_report(*edits),
        edits=edits,
        audit_head=(3, "a" * 64),
    )
