"""What a producer and a reviewer do in the demo; each step waits for what it reads back."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pipeline.bootstrap import Stores, review_service
from pipeline.config import Settings
from pipeline.domain.errors import Unavailable
from pipeline.domain.lifecycle import EditStatus
from pipeline.domain.rank_api import EditorIdentity
from pipeline.domain.snapshots import Snapshot
from pipeline.entrypoints.demo.accounting import Accounts, Stopwatch
from pipeline.entrypoints.demo.asking import Answers, Way, share_right
from pipeline.entrypoints.demo.screen import StreamScreen
from pipeline.entrypoints.demo.stream import Produced
from pipeline.entrypoints.local_settings import cli_actor
from pipeline.services.ports import Publisher

PATIENCE = timedelta(minutes=10)
POLL_SECONDS = 0.2
WAITING = (EditStatus.received, EditStatus.claimed)


@dataclass(slots=True, kw_only=True)
class Steps:
    """The actors of the demo around one lineage."""

    kept: Stores
    """The stores that say what has become of the messages."""
    settings: Settings
    """Settings of the demo's stack."""
    lineage: str
    """Name of the lineage."""
    send: Publisher
    """Writes to the topic of requests."""
    screen: StreamScreen
    """Shows the counters and what happened."""
    num_produced: int = 0
    """Messages that the broker acknowledged so far."""
    awaited: str = "the first correction"
    """What the demo waits for, as long as no worker is at work."""
    told: int = 0
    """Newest snapshot that was announced on the screen."""

    def produce(self, messages: Sequence[Produced]) -> None:
        """Send messages as a production system would, each acknowledged by the broker."""
        for message in messages:
            self.send.publish(self.settings.requests_topic, key=message.key, value=message.value)
        self.num_produced += len(messages)
        self.screen.say(f"produced {len(messages)} messages to {self.settings.requests_topic}")

    def until_settled(self) -> None:
        """Wait until every message is read and every edit is in the head, superseded, rejected or reverted."""
        self._until(lambda: self._is_read() and self._is_settled(), "every correction to be settled")
        self._until(lambda: self._head().registry_version is not None, "the head to be a model version")
        self._show()

    def approve_in_registry(self, *, reason: str) -> None:
        """Ask for approval as a person in MLflow's UI would, with MLflow's own client, and watch what follows."""
        head, client = self._head(), self._as_reviewer()
        client.set_model_version_tag(self.lineage, head.registry_version, "approval.reason", reason)
        client.set_registered_model_alias(self.lineage, "approved", head.registry_version)
        self.screen.say(f"alias approved set on version {head.registry_version} in MLflow, by ada")
        self._until(lambda: self._champion_alias(client) == head.registry_version, "the alias champion to move")
        decision = self.kept.history.approvals(self.lineage)[-1]
        self.screen.say(
            f"noticed, checked, recorded: {decision['decision']} by {decision['actor']}; "
            f"champion is version {head.registry_version}, snapshot {head.seq}"
        )

    def revert(self, request_id: str, *, reason: str) -> None:
        """Take one edit out and wait for the candidate without it."""
        before = self.kept.lineages.lineage(self.lineage).head_seq
        review_service(self.settings).revert(self.lineage, [request_id], actor=cli_actor(), reason=reason)
        self.screen.say(f"asked to revert {request_id}: {reason}")
        self._until(lambda: self.kept.lineages.lineage(self.lineage).head_seq > before, "the head without the edit")
        self.until_settled()

    def _as_reviewer(self) -> Any:
        """Return MLflow's own client; from here on this process is the reviewer ada there."""
        from mlflow import MlflowClient

        from pipeline.adapters.mlflow.errors import log_in
        from pipeline.adapters.mlflow.users import add_reviewer

        uri, own = self.settings.mlflow_uri, self.settings.mlflow_password.get_secret_value()
        log_in("ada", add_reviewer(uri, "ada", username=self.settings.mlflow_username, password=own))
        return MlflowClient(uri)

    def _until(self, is_so: Callable[[], bool], what: str) -> None:
        self.awaited = what
        deadline = time.monotonic() + PATIENCE.total_seconds()
        while not is_so():
            if time.monotonic() > deadline:
                raise Unavailable(f"expected {what} within {PATIENCE}; see the logs in {self.settings.home}/logs")
            self._show()
            time.sleep(POLL_SECONDS)

    def _show(self) -> None:
        intake = self.kept.history.intake_counts()
        snapshots = self.kept.snapshots.snapshots(self.lineage)
        counts = self.kept.lineages.counts(self.lineage)
        self.screen.show(
            {
                "produced": self.num_produced,
                "received": intake["received"],
                "duplicates": intake["duplicates"],
                "dead letters": intake["refused"],
                "in a batch": counts.get(EditStatus.claimed, 0),
                "edited": counts.get(EditStatus.snapshotted, 0),
                "superseded": counts.get(EditStatus.superseded, 0),
                "rejected": counts.get(EditStatus.rejected, 0),
                "snapshots": len(snapshots),
                "registered": sum(snapshot.registry_version is not None for snapshot in snapshots),
            }
        )
        activity = self.kept.leases.activities().get(self.lineage)
        self.screen.doing(activity.sentence() if activity else f"waiting for {self.awaited}")
        for snapshot in snapshots:
            if snapshot.seq > self.told:
                self.told = snapshot.seq
                self.screen.say(f"snapshot {snapshot.seq} passed its gates: {self._gate_line(snapshot)}")

    def _gate_line(self, snapshot: Snapshot) -> str:
        report = self.kept.snapshots.report(snapshot.gate_report_id)
        shown = ("edit_success", "generalization", "locality", "retention", "perplexity")
        figures = ", ".join(
            f"{r['metric']} {r['value']:.3g}" for r in report["rows"] if r["metric"] in shown and r["value"] is not None
        )
        return f"{figures}; editor {EditorIdentity(**report['editor'])}"

    def _is_read(self) -> bool:
        return sum(self.kept.history.intake_counts().values()) >= self.num_produced

    def _is_settled(self) -> bool:
        counts = self.kept.lineages.counts(self.lineage)
        return not any(counts.get(status, 0) for status in WAITING)

    def _head(self) -> Snapshot:
        return self.kept.snapshots.snapshot(self.lineage, "head")

    def _champion_alias(self, client: object) -> str | None:
        from mlflow.exceptions import MlflowException

        try:
            version = client.get_model_version_by_alias(self.lineage, "champion").version  # type: ignore[attr-defined]
        except MlflowException:
            return None
        return str(version)


def accounts(
    kept: Stores, lineage: str, *, produced: int, audit_ok: bool, answers: Answers, watch: Stopwatch
) -> Accounts:
    """Return the figures of the last line, read back from the database and from the first champion's answers."""
    intake = kept.history.intake_counts()
    found, counts = kept.lineages.lineage(lineage), kept.lineages.counts(lineage)
    head = kept.snapshots.snapshot(lineage, "head")
    measured = kept.snapshots.report(head.gate_report_id)["measurements"]
    generalization, num_generalization = share_right(answers, Way.wording)
    chat, num_chat = share_right(answers, Way.chat)
    return Accounts(
        produced=produced,
        accepted=intake["received"],
        duplicates=intake["duplicates"],
        dead_letters=intake["refused"],
        superseded=counts.get(EditStatus.superseded, 0),
        applied=head.num_active,
        rejected=counts.get(EditStatus.rejected, 0),
        snapshots=found.head_seq,
        champion=found.champion_seq,
        edit_success=_success(measured),
        generalization_other_context=generalization,
        num_generalization_other_context=num_generalization,
        chat=chat,
        num_chat=num_chat,
        locality=measured["candidate"]["suite_unchanged"],
        reverted=counts.get(EditStatus.reverted, 0),
        audit_ok=audit_ok,
        seconds=watch.seconds,
        seconds_by_phase=watch.by_phase,
    )


def _success(measured: Mapping[str, Any]) -> float | None:
    """Return the share of active edits that hold on the head: the batch's own and the older ones that were sampled."""
    own = [bool(row["edit_success"]) for row in measured["edits"]]
    candidate = measured["candidate"]
    total = len(own) + candidate["num_retained"]
    held = sum(own) + (candidate["retention"] or 0.0) * candidate["num_retained"]
    return held / total if total else None
