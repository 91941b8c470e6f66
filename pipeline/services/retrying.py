"""Gives dead edits another try, once a person has mended what they died of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.domain.errors import InvalidInput

if TYPE_CHECKING:
    from pipeline.adapters.sql.review import SqlReviewStore
    from pipeline.services.ports import HistoryStore

TOGETHER = 1000
"""Most edits that one transaction puts back: the lineage is locked meanwhile."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Retried:
    """What a request to try edits again came to."""

    edit_ids: tuple[str, ...]
    """Edits that were dead and wait in the queue again, with all their attempts."""
    left: Mapping[str, str] = field(default_factory=dict)
    """Status by edit id of those that were not dead; nothing was done about them."""


class Retrier:
    """The use case of `corrigenda retry`. Asking twice is the same as asking once."""

    def __init__(self, *, review: SqlReviewStore, history: HistoryStore) -> None:
        self._review, self._history = review, history

    def retry(self, lineage: str, refs: Sequence[str], *, actor: str, reason: str = "") -> Retried:
        """Put edits back that are dead, named by edit id or request id.

        Raises:
            UnknownRecord: if one names no edit of this lineage; nothing was written.
        """
        found = [self._history.edit(lineage, ref) for ref in refs]
        statuses = {str(edit["edit_id"]): str(edit["status"]) for edit in found}
        retried = self._review.request_retry(lineage, tuple(statuses), actor=actor, reason=reason)
        left = {edit_id: status for edit_id, status in statuses.items() if edit_id not in retried}
        return Retried(edit_ids=retried, left=left)

    def retry_all(self, lineage: str, *, because: str = "", actor: str, reason: str = "") -> Retried:
        """Put every dead edit of a lineage back whose own reason contains a text, in any case of letters.

        Raises:
            UnknownLineage: if there is no such lineage.
        """
        retried: list[str] = []
        while dead := self._review.dead(lineage, because=because, limit=TOGETHER):
            done = self._review.request_retry(lineage, dead, actor=actor, reason=reason)
            if not done:
                raise InvalidInput(f"expected dead edits to be put back, got none of {len(dead)}", lineage=lineage)
            retried += done
        return Retried(edit_ids=tuple(retried))
