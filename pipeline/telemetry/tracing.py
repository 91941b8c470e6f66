"""Traces of corrections, from the request to the answer that changed. Without an exporter they cost nothing.

A trace begins where a producer says so (a W3C `traceparent` header on its message) or at intake. Its context is kept in
the edit's row, so that the worker that claims the edit minutes later goes on with it, and in the snapshot's row for the
registration, the approval and the champion. OpenTelemetry is imported only where traces are sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Tracer

HEADER = "traceparent"
_FORM = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
Value = str | int | float | bool


class Span(Protocol):
    """The part of a trace that is being recorded."""

    context: str | None
    """Its W3C traceparent, for whoever goes on with the trace; None where nothing is recorded."""

    def set(self, **attributes: Value) -> None:
        """Say more about it."""


class _NoSpan:
    def __init__(self, context: str | None) -> None:
        self.context = context

    def set(self, **attributes: Value) -> None:
        """Say it to nobody."""


class _RecordedSpan:
    def __init__(self, span: Any, context: str) -> None:
        self._span = span
        self.context: str | None = context

    def set(self, **attributes: Value) -> None:
        self._span.set_attributes(_named(attributes))


_tracer: Tracer | None = None
_provider: TracerProvider | None = None


def send_traces(process: str, *, endpoint: str) -> None:
    """Send the spans of this process to an OTLP/HTTP endpoint, such as http://collector:4318/v1/traces."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    record_traces(process, BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))


def record_traces(process: str, processor: Any) -> None:
    """Give the spans of this process to a span processor of OpenTelemetry's."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

    global _tracer, _provider
    _provider = TracerProvider(resource=Resource.create({"service.name": f"corrigenda-{process}"}))
    _provider.add_span_processor(processor)
    _tracer = _provider.get_tracer("corrigenda")


def stop_traces() -> None:
    """Send what is left, and record nothing from now on."""
    global _tracer, _provider
    if _provider is not None:
        _provider.shutdown()
    _tracer = _provider = None


@contextmanager
def span(
    name: str, *, parent: str | None = None, links: Iterable[str | None] = (), **attributes: Value
) -> Iterator[Span]:
    """Record a part of a trace while the block runs; what it raises is recorded too.

    Args:
        name: what is done, such as `edit.claim`.
        parent: traceparent to go on with; the span around this one if None.
        links: traceparents of other traces that this part belongs to as well.
        **attributes: what it is about; `lineage` becomes `corrigenda.lineage`.
    """
    if _tracer is None:
        yield _NoSpan(valid(parent))
        return
    with _tracer.start_as_current_span(
        name, context=_context(parent), links=_links(links), attributes=_named(attributes)
    ) as started:
        yield _RecordedSpan(started, _text(started.get_span_context()))


def mark(name: str, *, parent: str | None = None, links: Iterable[str | None] = (), **attributes: Value) -> str | None:
    """Record a moment of a trace; return where it goes on, which is `parent` itself where nothing is recorded."""
    with span(name, parent=parent, links=links, **attributes) as marked:
        return marked.context


def past_span(
    name: str,
    *,
    began: int,
    ended: int,
    parent: str | None = None,
    links: Iterable[str | None] = (),
    **attributes: Value,
) -> None:
    """Record a part that is over, of the current span or of `parent`; times are nanoseconds since 1970."""
    if _tracer is not None:
        made = _tracer.start_span(
            name, context=_context(parent), links=_links(links), attributes=_named(attributes), start_time=began
        )
        made.end(end_time=ended)


def current() -> str | None:
    """Return the traceparent of the span around this call; None where nothing is recorded."""
    if _tracer is None:
        return None
    from opentelemetry.trace import get_current_span

    context = get_current_span().get_span_context()
    return _text(context) if context.is_valid else None


def current_trace_id() -> str | None:
    """Return the id of the trace that is being recorded here, for log lines."""
    traceparent = current()
    return traceparent.split("-")[1] if traceparent is not None else None


def valid(text: str | None) -> str | None:
    """Return a traceparent as it is, or None if it is none."""
    return text if text is not None and _FORM.fullmatch(text) else None


def told_in(headers: Iterable[tuple[str, bytes]]) -> str | None:
    """Return the traceparent of a message's headers; None if there is none, or something else in its place."""
    found = (value for name, value in headers if name.lower() == HEADER)
    return valid(next(found, b"").decode("ascii", "replace"))


def _context(traceparent: str | None) -> Any:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    known = valid(traceparent)
    return TraceContextTextMapPropagator().extract({HEADER: known}) if known is not None else None


def _links(traceparents: Iterable[str | None]) -> list[Any]:
    from opentelemetry.trace import Link, get_current_span

    contexts = [context for text in traceparents if (context := _context(text)) is not None]
    return [Link(get_current_span(context).get_span_context()) for context in contexts]


def _text(context: Any) -> str:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def _named(attributes: dict[str, Value]) -> dict[str, Value]:
    return {f"corrigenda.{name}": value for name, value in attributes.items()}
