"""Which other subjects an edit holds: the nearest of the list, none that a probe names and none that was edited."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from editors.methods.guards import Guards
from editors.methods.nearest import FRAME, NearestNames, bare_name
from editors.models.families import CausalModel
from editors.models.hooks import capturing
from editors.models.tokens import Encoded
from pipeline.domain.edits import Edit, Probe
from pipeline.domain.prompts import ChatTurn
from pipeline.domain.rank_api import EditorSettings
from tests.support.factories import make_edit
from tests.support.ledger_parts import make_rig
from tests.support.tiny_families import tiny_model
from tests.unit.editors.models.test_comm import on_ranks

NAMES = ("Japan", "France", "Tokyo", "The Paris", "Lyon", "Kyoto", "Rome", "Italy", "Milan", "Berlin", "Germany")


@pytest.fixture
def model(tmp_path: Path) -> CausalModel:
    return make_rig(tmp_path).model


def settings_of(model: Any, **changes: Any) -> EditorSettings:
    names = model.inner_param_names
    return replace(EditorSettings(inner_params=names, subject_params=names[:1], num_guards=3), **changes)


def guards_of(model: Any, edits: Sequence[Edit], *, kept: Sequence[str] = (), **changes: Any) -> Guards:
    return Guards(model, settings_of(model, **changes), kept=kept, names=NAMES)


def about(subject: str | None = "Bonn", request_id: str = "r1", **changes: Any) -> Edit:
    return make_edit(request_id, **{"prompt": f"the capital of {subject} is", "subject": subject, **changes})


def chosen(model: Any, *edits: Edit, edited: Sequence[str] = (), kept: Sequence[str] = (), **changes: Any) -> list[str]:
    """The guards of the first edit of a batch."""
    first = edits[0]
    return list(guards_of(model, edits, kept=kept, **changes).of(edits, edited)[first.edit_id])


def every(model: Any, *edits: Edit, **options: Any) -> set[str]:
    """All names that may be guards of the first edit."""
    return set(chosen(model, *edits, num_guards=len(NAMES), **options))


def plain_keys(model: CausalModel, names: Sequence[str], param: str) -> torch.Tensor:
    """The key of each name's last token in the frame, one text at a time through the whole model."""
    found = []
    for name in names:
        ids = model.encode_prompt(FRAME.format(name))
        batch = model.pack([Encoded(prompt_ids=ids, target_ids=ids[:1])])
        places = {param: (torch.tensor([0]), torch.tensor([len(ids) - 1]))}
        with torch.no_grad(), capturing(model.module, places) as seen:
            model.target_logits(batch)
        found.append(seen.u_TI[param][0])
    return torch.stack(found)


@pytest.mark.parametrize("subject", ["\u0301x", "word " * 500], ids=["part of the blank before it", "too long"])
def test_a_subject_without_a_key_has_no_guard_and_costs_no_other_its_own(model: CausalModel, subject: str) -> None:
    nearest = NearestNames(model, model.inner_param_names[:1], NAMES)
    assert nearest.of([subject]) == [()]
    [none, of_bonn] = nearest.of([subject, "Bonn"])
    assert none == ()
    assert of_bonn == nearest.of(["Bonn"])[0]
    assert sorted(of_bonn) == sorted(NAMES)


def test_the_names_whose_keys_are_nearest_are_the_guards(model: CausalModel) -> None:
    names = model.inner_param_names
    keys = plain_keys(model, NAMES, names[0])
    mean, spread = keys.mean(dim=0), keys.std(dim=0, correction=0)
    own = plain_keys(model, ["Bonn"], names[0])
    cosines = torch.cosine_similarity((own - mean) / spread, (keys - mean) / spread)
    expected = sorted(range(len(NAMES)), key=lambda place: (-round(float(cosines[place]), 4), NAMES[place]))
    assert chosen(model, about("Bonn")) == [NAMES[place] for place in expected[:3]]


def test_names_that_are_equally_near_are_taken_in_the_order_of_the_alphabet(model: CausalModel) -> None:
    unknown = ("Zyx", "Abc", "Mno")  # one unknown token each: their keys are the same
    found = Guards(model, settings_of(model), names=unknown).of([about()])
    assert found == {about().edit_id: ("Abc", "Mno", "Zyx")}


def test_no_subject_with_an_active_edit_is_a_guard(model: CausalModel) -> None:
    nearest = chosen(model, about())
    assert chosen(model, about(), edited=[bare_name(nearest[0])])[:2] == nearest[1:]
    assert every(model, about(), edited=["paris", "berl"]) == set(NAMES) - {"The Paris"}


def test_the_names_that_a_control_plane_looks_up_are_those_of_the_list_in_lower_case(model: CausalModel) -> None:
    names = guards_of(model, []).names
    assert names[:4] == ("japan", "france", "tokyo", "the paris")
    assert {bare_name(name) for name in names} == {bare_name(name) for name in NAMES}
    assert guards_of(model, [], num_guards=0).names == ()


def test_no_subject_of_the_batch_is_a_guard_by_any_of_its_names(model: CausalModel) -> None:
    other = about("Lyon", "r2", aliases=("Rome",))
    assert every(model, about("Paris", aliases=("Berlin city",)), other) == set(NAMES) - {
        *("Lyon", "Rome", "The Paris", "Berlin"),
    }


@pytest.mark.parametrize(
    ("changes", "gone"),
    [
        ({"prompt": "as in ROME, the capital of Bonn is"}, "Rome"),
        ({"target_new": "Kyoto"}, "Kyoto"),
        ({"target_true": "old Kyoto"}, "Kyoto"),
        ({"locality": (Probe(prompt="the capital of Italy is"),)}, "Italy"),
        ({"locality": (Probe(prompt="who", target="Milan"),)}, "Milan"),
        ({"portability": (Probe(prompt="the river of Bonn is in", target="Germany"),)}, "Germany"),
        ({"rephrases": ("Bonn, unlike Berlin, is",)}, "Berlin"),
        ({"question": "Is Bonn in Japan?"}, "Japan"),
        ({"messages": (ChatTurn(role="user", content="Tokyo or Bonn?"),)}, "Tokyo"),
        ({"answer": "Bonn is, as Paris was."}, "The Paris"),
    ],
)
def test_no_name_that_the_request_says_is_a_guard(model: CausalModel, changes: dict[str, Any], gone: str) -> None:
    assert every(model, about(**changes)) == set(NAMES) - {gone}


def test_no_name_that_a_probe_of_another_edit_of_the_batch_says_is_a_guard(model: CausalModel) -> None:
    other = about("Madrid", "r2", locality=(Probe(prompt="the capital of Italy is", target="Rome"),))
    assert every(model, about(), other) == set(NAMES) - {"Italy", "Rome"}


def test_no_name_that_is_kept_for_the_suite_is_a_guard(model: CausalModel) -> None:
    assert every(model, about(), kept=["the capital of France is", "Paris"]) == set(NAMES) - {
        *("France", "The Paris"),
    }


def test_only_whole_words_count(model: CausalModel) -> None:
    assert "Rome" in every(model, about(target_new="Romea", locality=(Probe(prompt="Jerome is"),)))


def test_edits_without_a_subject_have_no_guards(model: CausalModel) -> None:
    edits = [about(None, prompt="who is king"), about("Bonn", "r2")]
    assert list(guards_of(model, edits).of(edits)) == [edits[1].edit_id]


@pytest.mark.parametrize("changes", [{"num_guards": 0}, {"frames_per_pass": 0}])
def test_settings_without_guards_have_none_and_read_nothing(
    model: CausalModel, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CausalModel, "run_to_last_inner", lambda *_: pytest.fail("the list was read"))
    assert guards_of(model, [about()], **changes).of([about()]) == {}


def test_without_inner_parameters_of_subjects_there_are_no_guards(model: CausalModel) -> None:
    assert chosen(model, about(), subject_params=()) == []
    assert guards_of(model, [], subject_params=()).names == ()


@pytest.mark.parametrize("name", ["t5", "bert"])
def test_models_without_subject_keys_have_no_guards(name: str) -> None:
    other = tiny_model(name)
    assert guards_of(other, [about()]).of([about()]) == {}


def test_the_list_is_read_once(model: CausalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    keys = NearestNames._keys
    monkeypatch.setattr(NearestNames, "_keys", lambda self, names: (read.append(len(names)), keys(self, names))[1])
    guards = guards_of(model, [about()])
    for place in range(3):
        guards.of([about(request_id=f"r{place}")])
    assert read == [len(NAMES), 1, 1, 1]


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_choose_what_one_of_them_chooses_alone(num_ranks: int, tmp_path: Path) -> None:
    edits = [about("Bonn"), about("Madrid", "r2"), about("Spain", "r3")]
    rigs = [make_rig(tmp_path / str(rank)).model for rank in range(num_ranks + 1)]
    alone = guards_of(rigs[-1], edits).of(edits)

    def choose(comm: Any) -> dict[str, tuple[str, ...]]:
        model = rigs[comm.rank]
        model.comm = comm
        return guards_of(model, edits).of(edits)

    assert on_ranks(num_ranks, choose) == [alone] * num_ranks
