"""What one candidate changes and on what, and what ranks are told of it."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline.domain.edits import Edit
from pipeline.domain.lineages import Lineage
from pipeline.domain.rank_api import Candidate, Rekeying
from pipeline.services.batch_in_hand import BatchInHand

if TYPE_CHECKING:
    from pipeline.adapters.sql.queue import SqlEditQueue


@dataclass(frozen=True, kw_only=True, slots=True)
class Composition:
    """What candidates of one piece of work have in common."""

    lineage: Lineage
    """The lineage as it stands."""
    parent_id: str | None
    """The snapshot that they change; None for the base."""
    snapshot_id: str
    """The id that the one that passes will have."""
    suite_keys: tuple[str, ...]
    """Conflict keys of the facts that the suite asks for."""
    edited_names: tuple[str, ...]
    """Names that may be guards, and that active edits are about."""
    related_subjects: dict[str, tuple[str, ...]]
    """Edit -> subjects of earlier requests of its relation which no active edit is about."""
    in_hand: BatchInHand
    """The edits of the batch until they are decided."""


def candidate_of(
    on: Composition,
    *,
    queue: SqlEditQueue,
    added: Sequence[Edit],
    removed_ids: Sequence[str],
    rekeying: Rekeying | None = None,
) -> Candidate:
    """Return what ranks are told to try.

    Args:
        on: what is changed.
        queue: says what the head holds.
        added: edits that come.
        removed_ids: edits that go.
        rekeying: how the ledger is solved anew, if it is.
    """
    name, keys = on.lineage.settings.name, on.suite_keys
    edited = {*queue.active_keys(name, keys, removed_ids=removed_ids)}
    edited |= {edit.request.conflict_key for edit in added}.intersection(keys)
    changed = [*(edit.edit_id for edit in added), *removed_ids]
    remade: tuple[Edit, ...] = ()
    if on.lineage.settings.editor.remakes_siblings:
        remade = queue.siblings(name, changed, limit=on.lineage.settings.editor.batch_size)
    sample = queue.retention_sample(name, seed=on.snapshot_id, removed_ids=removed_ids)
    return Candidate(
        candidate_id=str(uuid.uuid4()),
        snapshot_id=on.snapshot_id,
        added=tuple(added),
        removed_ids=tuple(removed_ids),
        retained=tuple({edit.edit_id: edit for edit in (*sample, *remade)}.values()),
        remade=remade,
        gone_keys=tuple(sorted(edited)),
        edited_names=on.edited_names,
        related_subjects={e.edit_id: on.related_subjects[e.edit_id] for e in added if e.edit_id in on.related_subjects},
        rekeying=rekeying,
    )


def part_of(whole: Candidate, candidate: Candidate) -> Candidate:
    """Return a candidate that is taken out of one that was tried, which had its edits and others.

    It is returned as it is, to be made anew, where the others also took something away: facts that they superseded, or
    edits about their subjects, which were made again beside them.
    """
    if set(candidate.removed_ids) != set(whole.removed_ids) or _ids(candidate.remade) != _ids(whole.remade):
        return candidate
    return replace(candidate, part_of=whole.candidate_id)


def _ids(edits: Sequence[Edit]) -> set[str]:
    return {edit.edit_id for edit in edits}
