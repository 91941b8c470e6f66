"""What edits did to other facts about their own subjects, which are made again beside them (DECISIONS.md, 81)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pipeline.domain.edits import Edit
from pipeline.domain.measurements import EditScore, SameSubjectScore


def with_same_subject(
    scores: Sequence[EditScore],
    added: Sequence[Edit],
    remade: Sequence[Edit],
    *,
    before: Mapping[str, bool],
    after: Mapping[str, bool],
) -> tuple[EditScore, ...]:
    """Return the scores of edits with what became of the active facts about their subjects.

    Args:
        scores: one an edit.
        added: the edits of the batch.
        remade: active edits that were made again beside them.
        before: teacher-forced success on the parent, by edit id. What did not hold there cannot be lost.
        after: the same on the candidate, of the same edits.
    """
    held = [edit for edit in remade if before.get(edit.edit_id)]
    facts = {
        edit.edit_id: tuple(
            SameSubjectScore(
                edit_id=one.edit_id,
                request_id=one.request.request_id,
                prompt=one.request.prompt,
                holds=after[one.edit_id],
            )
            for one in held
            if one.request.subject_key == edit.request.subject_key
        )
        for edit in added
        if edit.request.subject_key
    }
    return tuple(replace(score, same_subject=facts.get(score.edit_id, ())) for score in scores)
