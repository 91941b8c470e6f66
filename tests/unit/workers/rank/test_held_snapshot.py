"""What a held snapshot takes for its parent's answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.domain.edits import Edit
from pipeline.domain.errors import EditorFailed, IntegrityBroken, InvalidInput, UnknownRecord
from pipeline.domain.rank_api import Candidate, EditorSettings, FileRef, LedgerRows, Rekeying
from tests.support.factories import make_edit, make_measurements
from tests.support.ledger_parts import edits_of, make_rig
from workers.rank import held_snapshot, validation
from workers.rank.held_snapshot import HeldSnapshot


class Weights:
    """Weights that nothing changes."""

    def save(self) -> dict[str, Any]:
        return {}

    def restore(self, saved: dict[str, Any]) -> None:
        pass

    def digest(self) -> str:
        return "same"

    def apply(self, delta: object) -> None:
        pass


class Scorer:
    """Answers to every candidate with the next figures, and keeps note of what becomes the parent's answers."""

    def __init__(self, *figures: float) -> None:
        self._figures = iter(figures)
        self.became: list[str] = []
        self.asked: dict[str, object] = {}
        self.observed: object = None

    def observe_parent(self, added: object, retained: object, others: object) -> None:
        self.observed = retained

    def measure(self, **asked: object) -> Any:
        self.asked = asked
        return make_measurements(kl_from_parent=next(self._figures))

    def keep(self) -> None:
        self.became.append("the last candidate's")

    def reset(self) -> None:
        self.became.append("unknown")


def held(scorer: Scorer) -> HeldSnapshot:
    result = SimpleNamespace(seconds={}, num_passes=1, num_rows=0, delta=None, rows=None, removed_ids=())
    for name in ("ledger", "distance", "scaled_back"):  # nothing was solved anew
        setattr(result, name, None)
    plan = SimpleNamespace(editor=EditorSettings())
    editing = SimpleNamespace(
        scorer=scorer,
        editor=SimpleNamespace(edit=lambda job: result),
        ledger=SimpleNamespace(
            commit=lambda rows, removed_ids: None,
            forget_trials=lambda: None,
            strength=EditorSettings().prior_strength,
        ),
        guards=SimpleNamespace(of=lambda added, edited: {}),
        others=SimpleNamespace(of=lambda added, **known: {}),
    )
    parts: dict[str, Any] = {"plan": plan, "model": None, "weights": Weights(), "editing": editing}
    return HeldSnapshot(**parts)


def candidate(name: str) -> Candidate:
    return Candidate(candidate_id=name, snapshot_id="next", added=(), removed_ids=(), retained=())


def kept(snapshot: HeldSnapshot, name: str) -> None:
    snapshot.keep(name, folder=Path(), with_accumulator=False, is_writer=False)


def test_the_answers_of_a_candidate_that_is_kept_at_once_are_the_parents() -> None:
    scorer = Scorer(0.1)
    snapshot = held(scorer)
    snapshot.try_edits(candidate("first"))
    kept(snapshot, "first")
    assert scorer.became == ["the last candidate's"]


def test_figures_that_were_refused_never_become_the_parents() -> None:
    scorer = Scorer(0.1, float("nan"))
    snapshot = held(scorer)
    snapshot.try_edits(candidate("first"))
    with pytest.raises(EditorFailed):
        snapshot.try_edits(candidate("second"))
    kept(snapshot, "first")
    assert scorer.became == ["unknown"]


def test_candidates_of_a_batch_that_came_to_nothing_are_forgotten() -> None:
    """What is kept of each is as large as its edits are many, and refused batches may follow each other for long."""
    snapshot = held(Scorer(0.1, 0.1, 0.1))
    snapshot.try_edits(candidate("first"))
    snapshot.try_edits(candidate("second"))
    snapshot.try_edits(replace(candidate("third"), snapshot_id="another"))
    assert list(snapshot.tried) == ["third"]
    with pytest.raises(UnknownRecord, match="first"):
        kept(snapshot, "first")
    kept(snapshot, "third")


def test_the_editor_gets_the_guards_that_are_chosen_without_the_names_that_were_edited() -> None:
    chosen: list[Any] = []
    snapshot = held(Scorer(0.1))
    editing: Any = snapshot.editing
    edit = editing.editor.edit
    editing.editor.edit = lambda job: (chosen.append(job.guards), edit(job))[1]
    editing.guards = SimpleNamespace(of=lambda added, edited: {"an edit": tuple(sorted(edited))})
    snapshot.try_edits(replace(candidate("a"), edited_names=("peru", "the beatles")))
    assert chosen == [{"an edit": ("beatles", "peru")}]


def test_what_is_made_again_leaves_and_enters_with_the_edits_that_are_added_and_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jobs: list[Any] = []
    scorer = Scorer(0.1)
    snapshot = held(scorer)
    editing: Any = snapshot.editing
    edit = editing.editor.edit
    editing.editor.edit = lambda job: (jobs.append(job), edit(job))[1]
    editing.guards = SimpleNamespace(of=lambda added, edited: {one.edit_id: ("Peru",) for one in added})
    first, second, too_long = make_edit("first"), make_edit("second"), make_edit("too long")

    def refuse(model: Any, edits: Sequence[Edit]) -> None:
        if too_long in edits:
            raise EditorFailed("expected fewer tokens")

    for module in (held_snapshot, validation):
        monkeypatch.setattr(module, "require_encodable", refuse)
    asked = replace(candidate("a"), added=(second,), removed_ids=("gone",), remade=(first, too_long))
    tried = snapshot.try_edits(asked)
    [job] = jobs
    assert job.added == (first, second)
    assert job.removed_ids == ("gone", first.edit_id)
    assert set(job.guards) == {first.edit_id, second.edit_id}
    assert tried.measurements.remade == (first.edit_id,)
    assert scorer.asked["remade"] == (first,)


def test_an_edit_that_the_model_can_no_longer_read_is_not_asked_and_costs_no_other(tmp_path: Path) -> None:
    """The control plane puts what is made again among what is retained, too."""
    model = make_rig(tmp_path).model
    scorer = Scorer(0.1)
    snapshot = held(scorer)
    snapshot.model = model
    added, older, too_long = *edits_of(0, 1), make_edit("too long", prompt="word " * 500)
    with pytest.raises(InvalidInput):
        model.encode_pair(too_long.request.own_prompt, too_long.request.target_new)
    asked = replace(candidate("a"), added=(added,), remade=(older, too_long), retained=(older, too_long))
    tried = snapshot.try_edits(asked)
    assert scorer.observed == scorer.asked["retained"] == (older,)
    assert tried.measurements.remade == (older.edit_id,)


def test_other_subjects_are_chosen_by_all_that_is_known_of_the_trial() -> None:
    known: list[Any] = []
    snapshot = held(Scorer(0.1))
    editing: Any = snapshot.editing
    editing.guards = SimpleNamespace(of=lambda added, edited: {"an edit": ("Juventus",)})
    editing.others = SimpleNamespace(of=lambda added, **told: known.append(told) or {})
    asked = replace(candidate("a"), edited_names=("the beatles",), related_subjects={"an edit": ("Ajax",)})
    snapshot.try_edits(asked)
    assert known == [
        {"edited": {"beatles"}, "related": {"an edit": ("Ajax",)}, "guards": {"an edit": ("Juventus",)}},
    ]


class Peer:
    """The first of two ranks, as far as it says something; the other one has no problem."""

    rank, num_ranks = 0, 2

    def __init__(self) -> None:
        self.said: list[Any] = []

    def gathered(self, own: Any) -> list[Any]:
        self.said.append(own)
        return [own, None]


def test_a_rank_that_cannot_read_rows_says_so_to_the_others_before_any_solve(tmp_path: Path) -> None:
    snapshot, peer = held(Scorer()), Peer()
    snapshot.model = SimpleNamespace(comm=peer)  # type: ignore[assignment]
    missing = FileRef(path=str(tmp_path / "gone.safetensors"), digest="0" * 64)
    rows = (LedgerRows(file=missing, edit_ids=("an edit",)),)
    with pytest.raises(IntegrityBroken, match="gone"):
        snapshot.try_edits(replace(candidate("a"), rekeying=Rekeying(prior_strength=1.0, rows=rows)))
    assert [type(problem) for problem in peer.said] == [IntegrityBroken]
