"""Rows into records and back, where more than one store needs it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, TypeVar

from sqlalchemy import Connection, Row, insert

from pipeline.adapters.sql.database.tables import gate_reports
from pipeline.domain.conflicts import Claimant
from pipeline.domain.edits import Edit, EditRequest, Probe
from pipeline.domain.formats.canonical import finite
from pipeline.domain.gates import GateReport
from pipeline.domain.lifecycle import SnapshotStatus
from pipeline.domain.prompts import ChatTurn
from pipeline.domain.snapshots import Artifact, Basis, DigestForm, Snapshot

Record = TypeVar("Record")


def record_of(kind: type[Record], row: Row[Any], **given: Any) -> Record:
    """Return a record whose fields are the row's columns of the same names, but for those that are given."""
    names = [field.name for field in fields(kind) if field.name not in given]  # type: ignore[arg-type]
    return kind(**{name: getattr(row, name) for name in names}, **given)


def edit_of(row: Row[Any], lineage: str) -> Edit:
    """Return a row of `edit_requests` as an edit."""
    request = record_of(
        EditRequest,
        row,
        lineage=lineage,
        rephrases=tuple(row.rephrases),
        locality=_probes(row.locality),
        portability=_probes(row.portability),
        messages=tuple(ChatTurn(**turn) for turn in row.messages),
        aliases=tuple(row.aliases),
    )
    return record_of(Edit, row, request=request)


def claimant_of(row: Row[Any]) -> Claimant:
    """Return a row of `edit_requests` as a side of a conflict."""
    return record_of(Claimant, row, origin=(row.topic, row.partition, row.offset))


def snapshot_of(row: Row[Any], lineage: str) -> Snapshot:
    """Return a row of `snapshots` as a snapshot."""
    return record_of(
        Snapshot,
        row,
        lineage=lineage,
        basis=Basis(row.basis),
        delta=artifact_of(row.delta),
        accumulator=artifact_of(row.accumulator) if row.accumulator is not None else None,
        digest_form=DigestForm(row.digest_form),
        status=SnapshotStatus(row.status),
    )


def artifact_of(value: Mapping[str, Any]) -> Artifact:
    """Return an artifact as it is kept in JSON."""
    return Artifact(**value)


def artifact_json(artifact: Artifact) -> dict[str, Any]:
    """Return the JSON that `artifact_of` reads."""
    return asdict(artifact)


def report_json(report: GateReport) -> dict[str, Any]:
    """Return a gate report as JSON. Figures that are not finite, which JSON cannot hold, become null."""
    document: dict[str, Any] = finite(asdict(report))
    return document


def insert_report(connection: Connection, lineage_id: str, report: GateReport, *, snapshot_digest: str | None) -> str:
    """Keep a report, bound to the digest of its snapshot or, for a refusal, to None; return its id."""
    row = {
        "lineage_id": lineage_id,
        "snapshot_digest": snapshot_digest,
        "verdict": report.verdict.value,
        "policy_digest": report.policy_digest,
        "probe_set_digest": report.measurements.probe_set_digest,
        "report": report_json(report),
    }
    report_id: str = connection.execute(
        insert(gate_reports).values(row).returning(gate_reports.c.gate_report_id)
    ).scalar_one()
    return report_id


def is_uuid(text: str) -> bool:
    """Return whether a text can be an id of ours; PostgreSQL refuses to compare anything else with one."""
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True


def _probes(values: list[Mapping[str, Any]]) -> tuple[Probe, ...]:
    return tuple(Probe(prompt=value["prompt"], target=value.get("target")) for value in values)
