"""Every metric of our processes, declared once.

Names follow Prometheus' conventions: a unit as suffix, `_total` for what only grows. A process exposes what it counts.
Gauges of what the database knows are at the end; the control worker sets them (`pipeline.services.standing`). Where
several control workers run they all say the same, so queries take the largest. What serves models has metrics of its
own (`workers.serving.metrics`).
"""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
"""Bounds of histograms of time: from a page to the longest command of the ranks."""

MESSAGES = Counter(
    "corrigenda_messages",
    "Messages of the topic of requests, by what became of them: received, duplicate or refused.",
    ["outcome"],
)
INTAKE_LAG = Gauge(
    "corrigenda_intake_lag_messages", "Messages in a partition that intake has not recorded yet.", ["partition"]
)
INTAKE_RECORD_SECONDS = Histogram(
    "corrigenda_intake_record_seconds", "Time to record one poll in the database.", buckets=SECONDS
)

BATCH_EDITS = Histogram(
    "corrigenda_batch_edits", "Edits in a batch when it is claimed.", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
)
PHASE_SECONDS = Histogram(
    "corrigenda_phase_seconds", "Time of one phase of one trial, as the ranks measured it.", ["phase"], buckets=SECONDS
)
VERDICTS = Counter("corrigenda_verdicts", "Candidates that were judged, by verdict.", ["lineage", "verdict"])
EDITS_SETTLED = Counter(
    "corrigenda_edits_settled", "Edits that got their answer: snapshotted or rejected.", ["lineage", "outcome"]
)
LOCALITY_MARGIN = Gauge(
    "corrigenda_locality_margin_ratio",
    "How far locality of the candidate that was judged last lies above its bound; below 0 it fails.",
    ["lineage"],
)
BATCHES_GIVEN_BACK = Counter(
    "corrigenda_batches_given_back", "Batches that went back to the queue without a verdict, by error.", ["error"]
)
LEASES_LOST = Counter("corrigenda_leases_lost", "Leases that passed to another worker while this one worked.")

OUTBOX_HANDLED = Counter(
    "corrigenda_outbox_handled",
    "Side effects that were tried, by kind and outcome: reached, postponed, failed or given_up.",
    ["kind", "outcome"],
)
CHORES = Counter("corrigenda_chore_runs", "Runs of periodic work, by outcome: done or failed.", ["chore", "outcome"])
REGISTRY_REQUESTS = Counter(
    "corrigenda_registry_requests", "Decisions asked for in MLflow that were answered.", ["lineage"]
)
REGISTRY_REPAIRS = Counter(
    "corrigenda_registry_repairs",
    "What was put right in MLflow: champion_moved or version_missing.",
    ["lineage", "kind"],
)
PROCESS_RESTARTS = Counter(
    "corrigenda_process_restarts",
    "Processes that the supervisor started again, by reason: ended or stuck.",
    ["process", "reason"],
)

HTTP_REQUESTS = Counter("corrigenda_http_requests", "Requests answered over HTTP.", ["route", "method", "status"])
HTTP_SECONDS = Histogram("corrigenda_http_request_seconds", "Time to answer a request.", ["route"], buckets=SECONDS)

QUEUE_EDITS = Gauge(
    "corrigenda_queue_edits", "Edits without an answer yet, by status: received or claimed.", ["lineage", "status"]
)
QUEUE_AGE = Gauge(
    "corrigenda_queue_oldest_seconds", "How long the edit that has waited longest for its answer waits.", ["lineage"]
)
SNAPSHOTS_WAITING = Gauge(
    "corrigenda_snapshots_waiting", "Candidates above the champion that nobody has decided about.", ["lineage"]
)
SNAPSHOTS_AGE = Gauge(
    "corrigenda_snapshots_waiting_oldest_seconds", "How long the oldest of those candidates waits.", ["lineage"]
)
LINEAGE_HELD = Gauge("corrigenda_lineage_held", "1 while no batch may start until a person resumes.", ["lineage"])
OUTBOX_OWED = Gauge("corrigenda_outbox_owed", "Side effects that are owed.", ["kind"])
OUTBOX_AGE = Gauge("corrigenda_outbox_oldest_seconds", "How long the oldest of those is owed.", ["kind"])
OUTBOX_FAILING = Gauge(
    "corrigenda_outbox_failing", "Owed side effects that were tried in vain and will be tried again.", ["kind"]
)
OUTBOX_GIVEN_UP = Gauge(
    "corrigenda_outbox_given_up", "Side effects that failed too often and wait for a person.", ["kind"]
)
AUDIT_VERIFIED_AT = Gauge(
    "corrigenda_audit_verified_timestamp_seconds",
    "When the control worker last came to the end of a chain with every line as it was written.",
    ["chain"],
)
AUDIT_BROKEN = Gauge("corrigenda_audit_broken", "1 if a line of a chain does not follow from those before.", ["chain"])

HEARTBEAT_AGE: Final = "corrigenda_heartbeat_age_seconds"
"""Time since a loop of the process last went on; label: loop. Reckoned when it is asked for (`health`)."""
