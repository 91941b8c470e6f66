"""The place where services are built out of settings, and where each port gets its adapter.

Whatever is built here is imported where it is built: a command starts with no more than it needs, and shows its help
without any of it.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from pipeline.storage import Stores as Stores
from pipeline.storage import artifacts_of as artifacts_of
from pipeline.storage import make_bucket as make_bucket
from pipeline.storage import stores as stores

if TYPE_CHECKING:
    from pipeline.adapters.kafka.publisher import KafkaPublisher
    from pipeline.config import Settings
    from pipeline.services.accepting import BatchPublisher
    from pipeline.services.editing import EditService
    from pipeline.services.ports import Doorbell, EditorGroup, OutboxItem, Publisher
    from pipeline.services.pruning import Pruner
    from pipeline.services.registry.anchoring import AnchorChecker, AnchorNotes, AnchorSource
    from pipeline.services.registry.package_checking import PackageChecker
    from pipeline.services.registry.reconciling import RegistryReconciler
    from pipeline.services.registry.registry_ports import Registry
    from pipeline.services.relaying import DueKinds, OutboxRelay
    from pipeline.services.retrying import Retrier
    from pipeline.services.review import ReviewService
    from pipeline.services.ringing import Reaper
    from pipeline.services.standing import AuditPatrol, StandingTeller


def edit_service(
    settings: Settings, group: EditorGroup, *, on_progress: Callable[[], None] = lambda: None
) -> EditService:
    """The use case of an edit worker, around the group that it drives; it says whenever it goes on."""
    from pipeline.services.editing import EditPolicy, EditService

    kept = stores(settings)
    return EditService(
        leases=kept.leases,
        lineages=kept.lineages,
        queue=kept.queue,
        snapshots=kept.snapshots,
        artifacts=kept.artifacts,
        group=group,
        policy=EditPolicy(
            owner=_owner(),
            lease_ttl=settings.lease_ttl,
            batch_max_wait=settings.batch_max_wait,
            max_attempts=settings.max_attempts,
            batches_per_turn=settings.batches_per_turn,
        ),
        on_progress=on_progress,
    )


def review_service(settings: Settings) -> ReviewService:
    """What people decide, whatever channel it comes in by."""
    from pipeline.services.review import ReviewService

    kept = stores(settings)
    return ReviewService(lineages=kept.lineages, snapshots=kept.snapshots, review=kept.review, history=kept.history)


def retrier(settings: Settings) -> Retrier:
    """What gives dead edits another try."""
    from pipeline.services.retrying import Retrier

    kept = stores(settings)
    return Retrier(review=kept.review, history=kept.history)


@lru_cache(maxsize=4)
def relay(settings: Settings) -> OutboxRelay:
    """The relay of the outbox, with a handler for every kind of item."""
    from pipeline.adapters.webhook_poster import post
    from pipeline.services.announcing import Announcer
    from pipeline.services.registry.champion_alias import ChampionAlias
    from pipeline.services.registry.mirroring import RegistryMirror
    from pipeline.services.relaying import OutboxRelay
    from pipeline.services.webhooks import WebhookTeller

    kept = stores(settings)
    mirror = RegistryMirror(mirror=kept.mirror, registry=_registry(settings), pages=settings.mlflow_pages)
    alias = ChampionAlias(mirror=kept.mirror, registry=_registry(settings))
    announcer = Announcer(
        doorbell=_doorbell(settings),
        publisher=_publisher(settings),
        lineages=kept.lineages,
        history=kept.history,
        dead_letters=kept.intake,
        results_topic=settings.results_topic,
        dead_letter_topic=settings.dead_letter_topic,
    )

    webhooks = WebhookTeller(
        webhooks=kept.api.webhooks, post=partial(post, allow_private=settings.webhook_private_networks)
    )

    def result(item: OutboxItem) -> None:
        webhooks.owe(item)
        announcer.announce_result(item)

    def register(item: OutboxItem) -> None:
        mirror.register(item.payload["snapshot_id"])

    def reregister(item: OutboxItem) -> None:
        kept.mirror.unregistered(**item.payload)

    def champion(item: OutboxItem) -> None:
        alias.point(item.payload["lineage"])

    own = {"result": result, "webhook": webhooks.deliver, "register": register, "reregister": reregister}
    return OutboxRelay(outbox=kept.outbox, handlers={**announcer.handlers(), **own, "champion": champion})


def due_kinds(settings: Settings) -> DueKinds:
    """Says which kinds of side effects are worth a look of their relay."""
    from pipeline.services.relaying import DueKinds

    outbox, kinds = stores(settings).outbox, relay(settings).kinds
    return DueKinds(lambda: outbox.kinds_due(kinds))


def reaper(settings: Settings) -> Reaper:
    """Rings again for lineages that have work and nobody at it."""
    from pipeline.services.ringing import Reaper

    kept = stores(settings)
    return Reaper(leases=kept.leases, lineages=kept.lineages, doorbell=_doorbell(settings))


def standing_teller(settings: Settings) -> StandingTeller:
    """Tells what waits, as metrics."""
    from pipeline.services.standing import StandingTeller

    return StandingTeller(stores(settings).standing, kinds=relay(settings).kinds)


def audit_patrol(settings: Settings) -> AuditPatrol:
    """Checks the audit chains over and over."""
    from pipeline.services.standing import AuditPatrol

    kept = stores(settings)
    return AuditPatrol(kept.audit, kept.lineages)


def pruner(settings: Settings) -> Pruner:
    """Takes away what is old and needed by nothing."""
    from pipeline.services.pruning import Pruner

    kept = stores(settings)
    return Pruner(store=kept.pruning, files=kept.artifacts)


@lru_cache(maxsize=4)
def reconciler(settings: Settings) -> RegistryReconciler:
    """Reads the registry back."""
    from pipeline.services.registry.candidate_versions import CandidateVersions
    from pipeline.services.registry.champion_alias import ChampionAlias
    from pipeline.services.registry.reconciling import RegistryReconciler

    kept = stores(settings)
    return RegistryReconciler(
        lineages=kept.lineages,
        snapshots=kept.snapshots,
        registry=_registry(settings),
        champion=ChampionAlias(mirror=kept.mirror, registry=_registry(settings)),
        candidates=CandidateVersions(snapshots=kept.snapshots, mirror=kept.mirror, registry=_registry(settings)),
        review=review_service(settings),
        notes=kept.review,
    )


def package_checker(settings: Settings) -> PackageChecker:
    """Compares the files of model versions with what the database says of them."""
    from pipeline.services.registry.package_checking import PackageChecker

    kept = stores(settings)
    return PackageChecker(lineages=kept.lineages, snapshots=kept.snapshots, registry=_registry(settings))


def batch_publisher(settings: Settings) -> BatchPublisher:
    """A producer of the HTTP API, which is connected by the first correction.

    It is impatient: threads that wait for a broker are threads that answer nobody, and whoever sent a correction may
    send it again. A broker that is away is told of within some five seconds.
    """
    from pipeline.adapters.kafka.publisher import KafkaPublisher

    settings.require("kafka_bootstrap")
    return KafkaPublisher(settings, patience=1.0, limit=4.0)


@contextmanager
def publisher(settings: Settings) -> Iterator[Publisher]:
    """A producer for the length of a command."""
    with _new_publisher(settings) as made:
        yield made


def anchor_source(settings: Settings) -> AnchorSource:
    """Reads the anchors in the registry."""
    from pipeline.adapters.mlflow.anchors import MlflowAnchors

    settings.require("mlflow_uri")
    return MlflowAnchors(
        settings.mlflow_uri, username=settings.mlflow_username, password=settings.mlflow_password.get_secret_value()
    )


def anchor_checker(settings: Settings) -> AnchorChecker:
    """Compares audit chains with the anchors in the registry."""
    from pipeline.services.registry.anchoring import AnchorChecker

    return AnchorChecker(chains=stores(settings).audit, anchors=anchor_source(settings))


def anchor_notes(settings: Settings) -> AnchorNotes | None:
    """Return the file or the bucket of anchors; None where the settings name none.

    Raises:
        Misconfigured: if they name both, or the bucket's URL is none.
    """
    from pipeline.adapters.anchor_bucket import AnchorBucket
    from pipeline.adapters.anchor_file import AnchorFile
    from pipeline.domain.errors import Misconfigured

    if settings.anchor_file and settings.anchor_bucket:
        raise Misconfigured("expected one of CORRIGENDA_ANCHOR_FILE and CORRIGENDA_ANCHOR_BUCKET, got both")
    if settings.anchor_bucket:
        return AnchorBucket(settings.anchor_bucket, endpoint=settings.anchor_endpoint)
    return AnchorFile(settings.anchor_file) if settings.anchor_file else None


def create_topics(settings: Settings) -> None:
    """Make the topics that are not there yet."""
    from pipeline.adapters.kafka.connection import create_topics as create

    settings.require("kafka_bootstrap")
    create(settings)


@lru_cache(maxsize=4)
def _registry(settings: Settings) -> Registry:
    from pipeline.adapters.mlflow.registry import MlflowRegistry

    settings.require("mlflow_uri")
    return MlflowRegistry(
        settings.mlflow_uri,
        username=settings.mlflow_username,
        password=settings.mlflow_password.get_secret_value(),
        tells_actor=settings.mlflow_tells_actor,
        pages=settings.mlflow_pages,
        review_pages=settings.web_public_url,
    )


@lru_cache(maxsize=4)
def _doorbell(settings: Settings) -> Doorbell:
    from pipeline.adapters.celery_doorbell import CeleryDoorbell

    return CeleryDoorbell(settings)


@lru_cache(maxsize=4)
def _publisher(settings: Settings) -> Publisher:
    return _new_publisher(settings)


def _new_publisher(settings: Settings) -> KafkaPublisher:
    from pipeline.adapters.kafka.publisher import KafkaPublisher

    settings.require("kafka_bootstrap")
    return KafkaPublisher(settings)


@lru_cache(maxsize=1)
def _owner() -> str:
    """This process in leases: host, process id, and a part that no other process has."""
    return f"worker:{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
