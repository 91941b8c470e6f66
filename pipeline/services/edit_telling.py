"""What an edit worker tells of its work while it does it: metrics, a trace, and ids on every log line."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import structlog

from pipeline.domain.batches import EditBatch
from pipeline.domain.edits import Edit
from pipeline.domain.gates import GateReport
from pipeline.telemetry import tracing
from pipeline.telemetry.metrics import BATCH_EDITS, EDITS_SETTLED, LOCALITY_MARGIN, PHASE_SECONDS, VERDICTS

NEIGHBOURS = "locality"
"""The row of a report whose margin is shown."""


@contextmanager
def telling_of_batch(batch: EditBatch) -> Iterator[None]:
    """Record a batch as a part of the oldest edit's trace, and as one that the traces of the others lead to."""
    BATCH_EDITS.observe(len(batch.edits))
    first, *others = [edit.traceparent for edit in batch.edits] or [None]
    about = {"lineage": batch.lineage, "batch": batch.batch_id}
    with (
        structlog.contextvars.bound_contextvars(**about),
        tracing.span("edit.batch", parent=first, links=others, edits=len(batch.edits), **about) as span,
    ):
        for edit in batch.edits[1:]:
            tracing.mark("edit.batched", parent=edit.traceparent, links=[span.context], edit=edit.edit_id)
        yield


@contextmanager
def telling_of_trial(
    lineage: str, edits: Sequence[Edit]
) -> Iterator[Callable[[GateReport, Mapping[str, float]], None]]:
    """Record one trial; the block is given what to call once there is a verdict.

    Phases alternate while a candidate is made. They become spans of their whole time, one after the other.
    """
    began = time.time_ns()
    with tracing.span("edit.trial", lineage=lineage, edits=len(edits)) as span:

        def judged(report: GateReport, seconds: Mapping[str, float]) -> None:
            at = began
            for phase, spent in seconds.items():
                ends = at + int(spent * 1e9)
                tracing.past_span(f"edit.phase.{phase}", began=at, ended=ends)
                at = ends
            span.set(verdict=report.verdict.value, summary=report.summary)
            _count(lineage, report, seconds)

        yield judged


def tell_settled(lineage: str, *, snapshotted: int, rejected: int) -> None:
    """Count edits that got their answer."""
    EDITS_SETTLED.labels(lineage=lineage, outcome="snapshotted").inc(snapshotted)
    EDITS_SETTLED.labels(lineage=lineage, outcome="rejected").inc(rejected)


def _count(lineage: str, report: GateReport, seconds: Mapping[str, float]) -> None:
    VERDICTS.labels(lineage=lineage, verdict=report.verdict.value).inc()
    for phase, spent in seconds.items():
        PHASE_SECONDS.labels(phase=phase).observe(spent)
    for row in report.rows:
        if row.metric == NEIGHBOURS and row.value is not None and row.threshold is not None:
            LOCALITY_MARGIN.labels(lineage=lineage).set(row.value - row.threshold)
