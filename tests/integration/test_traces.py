"""A correction is followed from its producer through intake, batch, gates, registration and approval to live."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from pipeline.adapters.kafka.publisher import KafkaPublisher
from pipeline.adapters.logins import Login
from pipeline.adapters.mlflow.tags import TRACE_TAG, tags_of
from pipeline.adapters.sql.history import SqlHistoryStore
from pipeline.domain.review.approvals import Channel, Decision
from pipeline.services.registry.champion_alias import ChampionAlias
from pipeline.services.registry.mirroring import RegistryMirror
from pipeline.services.review import ReviewService
from pipeline.telemetry import tracing
from tests.support.edit_parts import work_here
from tests.support.fake_registry import FakeRegistry
from tests.support.intake_parts import correction, encoded, intake_of, intake_settings, run_until
from tests.support.store_rig import LINEAGE, StoreRig

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PRODUCER = f"00-{TRACE_ID}-b7ad6b7169203331-01"


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    tracing.record_traces("test", SimpleSpanProcessor(exporter))
    yield exporter
    tracing.stop_traces()


@pytest.fixture
def rig(postgres_url: str, tmp_path: Path) -> Iterator[StoreRig]:
    rig = StoreRig(url=postgres_url, folder=tmp_path)
    rig.new_lineage()
    yield rig
    rig.close()


def test_one_trace_leads_from_the_producer_to_the_champion(
    rig: StoreRig, spans: InMemorySpanExporter, kafka_bootstrap: str, new_topic: Callable[..., str]
) -> None:
    settings = intake_settings(rig.url, kafka_bootstrap, new_topic("requests"))
    with KafkaPublisher(settings) as publisher:
        for request_id, headers in (
            ("traced", [("traceparent", PRODUCER.encode())]),
            ("alone", [("traceparent", b"none of W3C's")]),
        ):
            value = encoded(correction(request_id, lineage=LINEAGE))
            publisher.publish(settings.requests_topic, key=LINEAGE, value=value, headers=headers)
    with intake_of(settings) as (intake, _, _):
        run_until(intake, 2)
    work_here(rig)
    registry = FakeRegistry()
    head = rig.snapshots.snapshot(LINEAGE, "head")
    RegistryMirror(mirror=rig.mirror, registry=registry).register(head.snapshot_id)
    review = ReviewService(
        lineages=rig.lineages,
        snapshots=rig.snapshots,
        review=rig.review,
        history=SqlHistoryStore(rig.engines[Login.console]),
    )
    assert review.decide(LINEAGE, "head", Decision.approved, actor="cli:a", channel=Channel.cli).is_accepted
    ChampionAlias(mirror=rig.mirror, registry=registry).point(LINEAGE)

    entry = rig.mirror.entry(head.snapshot_id)
    assert tags_of(entry)[TRACE_TAG] == head.traceparent, "which a server that loads the version finds there"
    found = [span for span in spans.get_finished_spans() if trace_of(span) == TRACE_ID]
    names = [span.name for span in found]
    phases = [name for name in names if name.startswith("edit.phase.")]
    assert [name for name in names if name not in phases] == [
        "request.received",
        "edit.trial",
        "snapshot.commit",
        "edit.batch",
        "snapshot.register",
        "snapshot.decide",
        "snapshot.live",
    ]
    by_name = {span.name: span for span in found}
    parents = {name: span.parent.span_id if span.parent else None for name, span in by_name.items()}
    assert parents["request.received"] == int("b7ad6b7169203331", 16), "the producer's own span is the parent"
    assert parents["edit.batch"] == by_name["request.received"].context.span_id
    assert parents["edit.trial"] == by_name["edit.batch"].context.span_id
    assert dict(by_name["edit.trial"].attributes or {})["corrigenda.verdict"] == "passed"
    assert dict(by_name["request.received"].attributes or {})["corrigenda.request"] == "traced"

    batch = by_name["edit.batch"]
    [other] = [span for span in spans.get_finished_spans() if span.name == "edit.batched"]
    assert trace_of(other) != TRACE_ID, "the second edit has a trace of its own, as its header was none"
    assert [link.context.span_id for link in other.links] == [batch.context.span_id], "which leads to the batch"
    assert [f"{link.context.trace_id:032x}" for link in batch.links] == [trace_of(other)]


def test_the_context_of_a_producer_is_kept_where_nothing_is_recorded(rig: StoreRig) -> None:
    """Intake may send no traces while the edit worker does."""
    assert tracing.mark("request.received", parent=PRODUCER) == PRODUCER
    assert tracing.mark("request.received", parent="00-" + "0" * 32 + "-b7ad6b7169203331-01") is None
    assert tracing.current() is None


def trace_of(span: ReadableSpan) -> str:
    return f"{span.context.trace_id:032x}"
