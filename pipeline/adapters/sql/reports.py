"""Gate reports as rows. Knows nothing of what follows from a verdict."""

from __future__ import annotations

from sqlalchemy import Connection, insert

from pipeline.adapters.sql.rows import report_json
from pipeline.adapters.sql.tables import gate_reports
from pipeline.domain.gates import GateReport


def insert_report(connection: Connection, lineage_id: str, report: GateReport, *, snapshot_digest: str | None) -> str:
    """Keep a report; returns its id.

    Args:
        connection: an open transaction.
        lineage_id: UUID of the lineage.
        report: what was measured, and the verdict.
        snapshot_digest: the digest of the snapshot that the report is bound to; None for a refusal.
    """
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
