"""What becomes of other facts about an edit's subject."""

from __future__ import annotations

from dataclasses import replace

from editors.measure.same_subject import with_same_subject
from pipeline.domain.edits import Edit
from tests.support.factories import make_edit, make_score


def about(subject: str | None, edit_id: str) -> Edit:
    return replace(make_edit(edit_id, prompt=f"{subject} is", subject=subject), edit_id=edit_id)


def test_an_edit_is_told_of_facts_of_its_own_subject_that_held_before() -> None:
    added = [about("Peru", "a"), about("Chile", "b"), about(None, "c")]
    remade = [about("PERU", "kept"), about("Peru", "lost"), about("Peru", "never held"), about(None, "nobody's")]
    before = {"kept": True, "lost": True, "never held": False, "nobody's": True}
    after = {**before, "lost": False}
    scores = [make_score(edit.edit_id) for edit in added]
    of_peru, of_chile, of_nobody = with_same_subject(scores, added, remade, before=before, after=after)
    assert [(one.edit_id, one.prompt, one.holds) for one in of_peru.same_subject] == [
        ("kept", "PERU is", True),
        ("lost", "Peru is", False),
    ]
    assert of_chile.same_subject == of_nobody.same_subject == ()


def test_a_fact_that_was_asked_of_nobody_is_not_told() -> None:
    [score] = with_same_subject([make_score("a")], [about("Peru", "a")], [about("Peru", "b")], before={}, after={})
    assert score.same_subject == ()
