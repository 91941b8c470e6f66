"""Figures of a serving process for Prometheus, in a registry of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from workers.serving.following import Follower
from workers.serving.generation_thread import GenerationThread

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class ServingMetrics:
    """What is counted of requests, and what is read of followers and the queue when somebody asks.

    Args:
        thread: whose queue is shown.
        followers: returns the lineages that are served.
    """

    def __init__(self, thread: GenerationThread, followers: Callable[[], Iterable[Follower]]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "corrigenda_serving_requests", "Requests by lineage and HTTP status.", ("lineage", "status"),
            registry=self.registry,
        )  # fmt: skip
        """Requests by lineage and HTTP status."""
        self.tokens = Counter(
            "corrigenda_serving_tokens", "Tokens read and made.", ("lineage", "kind"), registry=self.registry
        )
        """Tokens by lineage; the kind is `prompt` or `completion`."""
        self.seconds = Histogram(
            "corrigenda_serving_seconds", "Time from a request to its last token.", ("lineage",),
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        """Time from a request to its last token."""
        self.first_token_seconds = Histogram(
            "corrigenda_serving_first_token_seconds", "Time from a request to its first token.", ("lineage",),
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        """Time from a request to its first token."""
        for name, text, read in (
            ("corrigenda_serving_waiting", "Requests that wait for their turn.", lambda: thread.num_waiting),
            ("corrigenda_serving_active", "Requests that are being answered.", lambda: thread.num_active),
            (
                "corrigenda_serving_stalled_seconds",
                "How long nothing moved although there was work.",
                thread.seconds_without_progress,
            ),
        ):
            Gauge(name, text, registry=self.registry).set_function(read)
        self.registry.register(_Followers(followers))


class _Followers(Collector):
    """Reads followers at each scrape: lineages come and go."""

    def __init__(self, followers: Callable[[], Iterable[Follower]]) -> None:
        self._followers = followers

    def collect(self) -> Iterable[Metric]:
        """Return a family for each figure."""
        figures: dict[str, tuple[str, Callable[[Follower], float | None]]] = {
            "snapshot": (
                "Place of the snapshot that is served, in its lineage's history.",
                lambda one: one.serving.files.seq if one.serving else None,
            ),
            "behind_seconds": (
                "For how long the alias has pointed to another version than is served.",
                lambda one: one.seconds_behind(),
            ),
            "read_age_seconds": ("Time since the alias was read.", lambda one: one.seconds_since_read()),
            "faulty": ("1 if what the alias points to is not served, or cannot be read.", lambda one: bool(one.fault)),
            "swaps_total": ("How often another version went live.", lambda one: one.num_swaps),
        }
        for name, (text, read) in figures.items():
            family = GaugeMetricFamily(f"corrigenda_follower_{name}", text, labels=("lineage",))
            for follower in self._followers():
                value = read(follower)
                if value is not None:
                    family.add_metric((follower.lineage,), float(value))
            yield family
