"""What people decide about snapshots and edits, whatever channel it comes in by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pipeline.domain.review.approvals import AUTHENTICATED, Approval, Channel, Decision, Outcome
from pipeline.services.ports import HistoryStore, LineageStore, ReviewStore, SnapshotStore
from pipeline.telemetry import tracing

AS_IT_IS: Final = "as it is"
"""Stands for: whatever the champion is when the decision is carried out."""
MIN_DIGEST_CHARS = 12
"""So many characters of a digest are shown to people, and are enough to name it."""


class ReviewService:
    """Approve, reject, revert, roll back: the one way in, for the command line, the API and the registry."""

    def __init__(
        self, *, lineages: LineageStore, snapshots: SnapshotStore, review: ReviewStore, history: HistoryStore
    ) -> None:
        self._lineages = lineages
        self._snapshots = snapshots
        self._review = review
        self._history = history

    def decide(
        self,
        lineage: str,
        ref: str,
        decision: Decision,
        *,
        actor: str,
        channel: Channel,
        reason: str = "",
        expected_digest: str | None = None,
        expected_champion: str | None = AS_IT_IS,
    ) -> Outcome:
        """Carry out a decision about a snapshot, if it can be.

        Approved, it becomes the champion, and what it is built on is approved too. Rejected, the head is made anew
        without its edits. Rolled back to, it becomes the champion again at once and the lineage is held.

        Args:
            lineage: name of the lineage.
            ref: the snapshot's seq or id, or `head`.
            decision: what was decided.
            actor: who decides: `reviewer:anna` who logged in, or `cli:anna (claimed)` and the like.
            channel: where the decision came in.
            reason: why, in the person's words.
            expected_digest: what the person looked at; at least its first 12 characters.
            expected_champion: the champion's id that the person saw; None for the base.

        Raises:
            UnknownLineage, UnknownRecord: if there is no such snapshot.
        """
        # The champion is read first: one that moves while the snapshot is looked up is then noticed.
        champion = self._lineages.lineage(lineage).champion_id
        snapshot = self._snapshots.snapshot(lineage, ref)
        with tracing.span(
            "snapshot.decide", parent=snapshot.traceparent, lineage=lineage, decision=decision.value, actor=actor
        ) as span:
            outcome = self._review.decide(
                Approval(
                    lineage=lineage,
                    snapshot_id=snapshot.snapshot_id,
                    snapshot_digest=_digest_seen(snapshot.digest, expected_digest),
                    champion_seen=champion if expected_champion == AS_IT_IS else expected_champion,
                    decision=decision,
                    actor=actor,
                    is_claimed=not actor.startswith(AUTHENTICATED),
                    reason=reason,
                    channel=channel,
                )
            )
            span.set(accepted=outcome.is_accepted)
        return outcome

    def approve_automatically(self, lineage: str) -> Outcome | None:
        """Make the head live where the lineage's policy does that without a person; else say why it does not.

        Nothing is recorded where a person has to decide. None where there is nothing to decide.

        Raises:
            UnknownLineage: if there is no such lineage.
        """
        return self._review.approve_automatically(lineage)

    def revert(self, lineage: str, refs: Sequence[str], *, actor: str, reason: str = "") -> tuple[str, ...]:
        """Owe a candidate without some edits, named by edit id or request id; return the removal ids.

        Raises:
            UnknownRecord: if one names no edit of this lineage.
            InvalidInput: if one is neither queued nor active.
        """
        edit_ids = [str(self._history.edit(lineage, ref)["edit_id"]) for ref in refs]
        return self._review.request_revert(lineage, tuple(dict.fromkeys(edit_ids)), actor=actor, reason=reason)


def _digest_seen(recorded: str, expected: str | None) -> str:
    if expected is None or (len(expected) >= MIN_DIGEST_CHARS and recorded.startswith(expected)):
        return recorded
    return expected
