"""Reads the registry back: what people ask for there, and whether `champion` is where it belongs."""

from __future__ import annotations

import structlog

from pipeline.domain.audit import AuditAction
from pipeline.domain.errors import CorrigendaError, IntegrityBroken, LoginRefused, Unavailable, UnknownRecord
from pipeline.domain.lineages import Lineage
from pipeline.domain.review.approvals import MLFLOW_USER, Channel, Decision, claimed_actor
from pipeline.domain.snapshots import Snapshot
from pipeline.services.ports import LineageStore, ReviewStore, SnapshotStore
from pipeline.services.registry.candidate_versions import CandidateVersions
from pipeline.services.registry.champion_alias import ChampionAlias
from pipeline.services.registry.registry_ports import Registry, RegistryRequest
from pipeline.services.review import ReviewService
from pipeline.telemetry.metrics import REGISTRY_REQUESTS

log = structlog.get_logger()

MAX_NAME_CHARS = 100
MAX_REASON_CHARS = 1_000


class RegistryReconciler:
    """Periodic work of the control plane; two of them at once do no harm."""

    def __init__(
        self,
        *,
        lineages: LineageStore,
        snapshots: SnapshotStore,
        registry: Registry,
        champion: ChampionAlias,
        candidates: CandidateVersions,
        review: ReviewService,
        notes: ReviewStore,
    ) -> None:
        self._lineages = lineages
        self._snapshots = snapshots
        self._registry = registry
        self._champion = champion
        self._candidates = candidates
        self._review = review
        self._notes = notes
        self._waiting: dict[str, object] = {}  # what was found to need a person, so that it is not looked at again

    def run_once(self) -> int:
        """Look at every lineage; returns how many requests were answered and champions or candidates put right.

        What is wrong with one lineage does not keep the others waiting; it is raised at the end.

        Raises:
            Unavailable, LoginRefused: if the registry does not answer, or not to us; nothing is lost, the next run
                finds the same requests.
        """
        num_done, first_error = 0, None
        for lineage in self._lineages.lineages():
            try:
                num_done += self.reconcile(lineage.settings.name)
                num_done += self._candidates.look(lineage)
                num_done += self._approve_automatically(lineage)
            except (Unavailable, LoginRefused):
                raise
            except CorrigendaError as error:
                log.warning("lineage not reconciled", lineage=lineage.settings.name, error=str(error))
                first_error = first_error or error
        if first_error is not None:
            raise first_error
        return num_done

    def reconcile(self, lineage: str) -> int:
        """Answer the requests of one lineage and put its champion back; returns how many things were done."""
        num_done = sum(self._settle(lineage, request) for request in self._registry.requests(lineage))
        return num_done + self._champion.guard(lineage)

    def _approve_automatically(self, lineage: Lineage) -> bool:
        """Let the head go live if the lineage's policy does that without a person; else say once why it does not."""
        name, policy = lineage.settings.name, lineage.settings.approval_policy
        seen = (lineage.head_id, lineage.champion_id, policy, lineage.settings.policy.digest)
        if not policy.is_automatic or lineage.hold is not None or lineage.head_id in (None, lineage.champion_id):
            return False
        if self._waiting.get(name) == seen:
            return False
        version = self._snapshots.snapshot(name, str(lineage.head_id)).registry_version
        if version is None:
            return False  # whoever looks at what went live finds its page
        outcome = self._review.approve_automatically(name)
        if outcome is not None and not outcome.is_accepted:
            self._registry.note(name, version, text=f"a person has to decide: {outcome.reason}")
            log.info("a person has to decide", lineage=name, version=version, reason=outcome.reason)
            self._waiting[name] = seen
        if outcome is None or not outcome.is_accepted:
            return False
        log.info("approved without a person", lineage=name, version=version)
        return True

    def _settle(self, lineage: str, request: RegistryRequest) -> bool:
        """Decide and answer; False when it has to wait until the version is recorded."""
        snapshot = self._snapshot(lineage, request)
        if snapshot is not None and snapshot.registry_version is None:
            return False
        objection = _objection(lineage, request, snapshot) or self._change(lineage, request, snapshot)
        if snapshot is None or objection:
            self._note_refusal(lineage, request, objection)
            outcome = f"refused: {objection}"
        else:
            outcome = self._decide(lineage, request, snapshot)
        self._registry.answer(lineage, request, outcome=outcome)
        REGISTRY_REQUESTS.labels(lineage=lineage).inc()
        log.info("request answered", lineage=lineage, version=request.version, outcome=outcome)
        return True

    def _snapshot(self, lineage: str, request: RegistryRequest) -> Snapshot | None:
        try:
            found = self._snapshots.snapshot(lineage, request.snapshot_id)
        except UnknownRecord:
            return None
        # A tag that somebody wrote may hold `head` or a number, which name a snapshot too.
        return found if found.snapshot_id == request.snapshot_id else None

    def _decide(self, lineage: str, request: RegistryRequest, snapshot: Snapshot) -> str:
        outcome = self._review.decide(
            lineage,
            snapshot.snapshot_id,
            Decision(request.decision),
            actor=_actor(request),
            channel=Channel.registry,
            reason=_plain(request.reason, MAX_REASON_CHARS),
            expected_digest=request.digest,
        )
        if outcome.awaits_others:
            return outcome.awaited
        return request.decision if outcome.is_accepted else f"refused: {outcome.reason}"

    def _note_refusal(self, lineage: str, request: RegistryRequest, objection: str) -> None:
        self._notes.note(
            lineage,
            action=AuditAction.approval_refused,
            subject=f"model version {request.version}",
            actor=_actor(request),
            payload={"decision": _plain(request.decision, MAX_NAME_CHARS), "reason": objection, "channel": "registry"},
        )

    def _change(self, lineage: str, request: RegistryRequest, snapshot: Snapshot | None) -> str:
        """Return what has become of the files that are to go live; empty if they are those that were registered."""
        if snapshot is None or snapshot.package_digest is None or request.decision != Decision.approved:
            return ""
        try:
            self._registry.check_package(lineage, request.version, snapshot.package_digest)
        except IntegrityBroken as error:
            return str(error)
        return ""


def _objection(lineage: str, request: RegistryRequest, snapshot: Snapshot | None) -> str:
    """Return why a request cannot even be put to the review; empty if it can."""
    if request.decision not in (Decision.approved, Decision.rejected):
        return f"expected approved or rejected in the tag approval, got {_plain(request.decision, 40)!r}"
    if snapshot is None:
        return f"this version does not carry the id of a snapshot of {lineage}"
    if snapshot.registry_version != request.version:
        return f"this version is a copy of version {snapshot.registry_version}; ask there"
    return ""


def _actor(request: RegistryRequest) -> str:
    if request.authenticated:
        return f"{MLFLOW_USER}{_plain(request.authenticated, MAX_NAME_CHARS)}"
    # MLflow alone does not say who set an alias or a tag, and anybody may have written this name.
    return claimed_actor("mlflow", _plain(request.actor or "", MAX_NAME_CHARS) or "unknown")


def _plain(text: str, most: int) -> str:
    """Printable text on one line, as it can be kept in the audit trail."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())[:most]
