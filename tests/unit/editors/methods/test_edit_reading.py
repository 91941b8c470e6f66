"""Sequences of edits, which of their tokens are rows, and readings of some of them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch

from editors.methods import edit_reading
from editors.methods.edit_reading import Group, Reader, Sequences, read_keys_of
from editors.methods.frames import EditFrames, frames_of
from editors.methods.pairs import Pairs
from editors.models.hooks import Branch
from editors.models.tokens import Encoded
from pipeline.domain.errors import EditorFailed
from tests.support.framed_parts import GUARDS, framed_edits, framed_rig, framed_settings
from tests.support.ledger_parts import Rig
from tests.unit.editors.models.test_batched_answers import tiny_family

Kind = Literal["subject", "answer"]


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    """Batches are so small that there are several."""
    monkeypatch.setattr(edit_reading, "READ_TOKENS", 40)
    return framed_rig(tmp_path)


def all_frames(rig: Rig) -> list[EditFrames]:
    settings = framed_settings(rig)
    return [frames_of(rig.model, edit, settings, GUARDS if edit.request.subject else ()) for edit in framed_edits()]


def sequences_of(rig: Rig, kind: Kind, first: int = 1) -> Sequences:
    """The sequences of three edits for the inner parameters of two blocks; block 0 is no edited one by default."""
    return Sequences.of(all_frames(rig), Group(params=rig.model.inner[first : first + 2], kind=kind))


def branches_of(rig: Rig, sequences: Sequences) -> dict[str, Branch]:
    """A candidate that differs from the weights."""
    draw = torch.Generator().manual_seed(5)
    return {
        param.name: (
            torch.randn(param.in_features, 2, generator=draw) / 10,
            torch.randn(2, param.out_features, generator=draw) / 10,
        )
        for param in sequences.group.params
    }


def test_the_sequences_of_an_edit_lie_together_the_asked_ones_first_and_guards_last(rig: Rig) -> None:
    frames, found = all_frames(rig), sequences_of(rig, "subject")
    expected = [encoded for one in frames for encoded in (*one.asked, *one.keyed, *one.guards)]
    assert list(found.encoded) == expected
    assert list(found.edit_S) == sorted(found.edit_S)
    for edit, one in enumerate(frames):
        own = [place for place, of_edit in enumerate(found.edit_S) if of_edit == edit]
        assert list(found.asked_of[edit]) == own[: len(one.asked)]
        assert [found.is_guard_S[place] for place in own] == [
            place >= len(own) - len(one.guards) for place in range(len(own))
        ]


def test_where_rows_are_answer_tokens_only_answered_frames_and_guards_are_read(rig: Rig) -> None:
    frames, found = all_frames(rig), sequences_of(rig, "answer")
    expected = [
        encoded
        for one in frames
        for encoded in (*(frame for frame, is_in in zip(one.asked, one.answered, strict=True) if is_in), *one.guards)
    ]
    assert list(found.encoded) == expected
    assert not any(found.is_guard_S[place] for asked in found.asked_of for place in asked)


def test_the_rows_of_an_edit_share_its_shift_at_the_subject_and_weigh_as_much_as_one(rig: Rig) -> None:
    found = sequences_of(rig, "subject")
    rows = found.rows(rig.model, range(3), are_shared=True)[found.group.params[0].name]
    edit_T = torch.tensor(found.edit_S)[rows.sequence_T]
    is_guard_T = torch.tensor(found.is_guard_S)[rows.sequence_T]
    assert rows.num_shifts == 2, "the third edit names no subject"
    assert torch.equal(rows.shift_T[~is_guard_T], edit_T[~is_guard_T])
    assert set(rows.shift_T[is_guard_T].tolist()) == {-1}
    assert set(rows.weight_T[is_guard_T].tolist()) == {1.0}
    for edit in (0, 1):
        asked_T = (edit_T == edit) & ~is_guard_T
        torch.testing.assert_close(float(rows.weight_T[asked_T].sum()), 1.0)
        assert len(set(rows.weight_T[asked_T].tolist())) == 1
    assert rows.lengths == (*(int((edit_T == edit).sum()) for edit in (0, 1)), 0)


def test_answer_tokens_of_one_place_share_a_shift_and_weigh_one_each(rig: Rig) -> None:
    found = sequences_of(rig, "answer")
    rows = found.rows(rig.model, [1, 2], are_shared=True)[found.group.params[0].name]
    assert rows.predicts_target
    assert set(rows.weight_T.tolist()) == {1.0}
    assert rows.num_shifts == 3, "two tokens of the second edit's target and one of the third's"
    by_sequence = [rows.shift_T[rows.of_sequences([place])].tolist() for place in found.asked_of[1]]
    assert len(by_sequence) > 1
    assert all(shifts == [0, 1] for shifts in by_sequence)
    assert all(rows.shift_T[rows.of_sequences([place])].tolist() == [2] for place in found.asked_of[2])
    assert not len(rows.of_sequences(found.asked_of[0])), "the first edit was not wanted"
    guards = [place for place, edit in enumerate(found.edit_S) if edit == 1 and found.is_guard_S[place]]
    assert rows.shift_T[rows.of_sequences(guards)].tolist() == [-1] * len(guards)
    assert sum(rows.lengths) == len(rows.shift_T)


def test_rows_that_share_nothing_have_a_shift_each(rig: Rig) -> None:
    found = sequences_of(rig, "answer")
    rows = found.rows(rig.model, range(3), are_shared=False)[found.group.params[0].name]
    asking = rows.shift_T[rows.shift_T >= 0]
    assert asking.tolist() == list(range(rows.num_shifts))
    assert set(rows.weight_T.tolist()) == {1.0}


def require_same(some: Pairs, alone: Pairs, names: list[str]) -> None:
    torch.testing.assert_close(some.probability_N, alone.probability_N, rtol=1e-5, atol=1e-6)
    assert torch.equal(some.sequence_N, alone.sequence_N)
    for name in names:
        assert torch.equal(some.sequence_T[name], alone.sequence_T[name])
        torch.testing.assert_close(some.u_TI[name], alone.u_TI[name], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(some.delta_TO[name], alone.delta_TO[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["subject", "answer"])
@pytest.mark.parametrize("first", [0, 2])
def test_a_reading_of_some_sequences_is_like_a_reading_of_them_alone(rig: Rig, kind: Kind, first: int) -> None:
    whole = sequences_of(rig, kind, first)
    branches, names = branches_of(rig, whole), [param.name for param in whole.group.params]
    reader = Reader(rig.model, whole)
    everything = [place for asked in whole.asked_of for place in asked]
    reader.read(everything, branches)
    for chosen in (everything, everything[::2], everything[-1:], everything[1:4]):
        frames = [EditFrames(asked=(whole.encoded[place],), answered=(True,)) for place in chosen]
        alone = Sequences.of(frames, whole.group)
        expected = Reader(rig.model, alone).read(range(len(chosen)), branches)
        require_same(reader.read(chosen, branches), expected, names)


def test_only_the_edits_of_the_first_reading_are_begun(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """An edit without a row in the group costs nothing there, however long it is."""
    found, begun = sequences_of(rig, "subject"), []
    begin = rig.model.begun
    monkeypatch.setattr(rig.model, "begun", lambda some, *rest: (begun.extend(some), begin(some, *rest))[1])
    reader = Reader(rig.model, found)
    of_two = [*found.asked_of[0], *found.asked_of[1]]
    reader.read([found.asked_of[0][0], found.asked_of[1][0]], {})
    reader.read(of_two, {})
    assert begun == [found.encoded[place] for place in of_two]


def test_a_model_that_rotates_by_the_longest_sequence_is_asked_in_batches_on_one_side_of_the_change() -> None:
    """Beside a longer one a sequence is rotated in another way, so what it is read by must not differ."""
    model = tiny_family("phi3 that changes rotation")
    assert model.rotation_change is not None
    lengths = [model.rotation_change - 4, model.rotation_change + 5]
    encoded = [
        Encoded(prompt_ids=tuple(1 + n % 7 for n in range(length - 1)), target_ids=(5,), subject_end=length - 3)
        for length in lengths
    ]
    frames = [EditFrames(asked=(one,), answered=(True,)) for one in encoded]
    group = Group(params=model.inner[:1], kind="answer")
    both = Reader(model, Sequences.of(frames, group)).read([0, 1], {})
    alone = Reader(model, Sequences.of(frames[:1], group)).read([0], {})
    torch.testing.assert_close(both.probability_N[:1], alone.probability_N, rtol=1e-5, atol=1e-6)
    name = group.params[0].name
    torch.testing.assert_close(both.u_TI[name][:1], alone.u_TI[name], rtol=1e-5, atol=1e-5)


def test_a_reading_is_bitwise_repeatable(rig: Rig) -> None:
    found = sequences_of(rig, "subject")
    reader, chosen = Reader(rig.model, found), list(found.asked_of[0])
    first, second = (reader.read(chosen, branches_of(rig, found)) for _ in range(2))
    assert torch.equal(first.probability_N, second.probability_N)
    for name, delta_TO in first.delta_TO.items():
        assert torch.equal(delta_TO, second.delta_TO[name])


def test_a_reading_sees_the_candidate_and_only_in_its_time(rig: Rig) -> None:
    found = sequences_of(rig, "subject")
    reader, chosen = Reader(rig.model, found), list(found.asked_of[0])
    base = reader.read(chosen, {}).probability_N
    assert not torch.allclose(reader.read(chosen, branches_of(rig, found)).probability_N, base)
    assert torch.equal(reader.read(chosen, {}).probability_N, base)


def test_probabilities_can_be_read_without_keys(rig: Rig) -> None:
    found = sequences_of(rig, "answer")
    reader, chosen = Reader(rig.model, found), list(found.asked_of[0])
    with_keys, without = (reader.read(chosen, {}, has_keys=has_keys) for has_keys in (True, False))
    torch.testing.assert_close(without.probability_N, with_keys.probability_N)
    assert without.u_TI == without.delta_TO == {}


def test_keys_that_are_read_without_a_target_are_those_of_a_whole_reading(rig: Rig) -> None:
    found = sequences_of(rig, "subject")
    chosen, branches = list(found.asked_of[0]), branches_of(rig, found)
    pairs, keys = Reader(rig.model, found).read(chosen, branches), read_keys_of(rig.model, found, chosen, branches)
    for name, u_TI in pairs.u_TI.items():
        torch.testing.assert_close(keys[name], u_TI, rtol=1e-5, atol=1e-5)


def test_a_probability_that_is_no_number_is_an_error(rig: Rig) -> None:
    found = sequences_of(rig, "subject")
    name = found.group.params[0].name
    left, right = branches_of(rig, found)[name]
    with pytest.raises(EditorFailed, match="finite"):
        Reader(rig.model, found).read(found.asked_of[0], {name: (left * float("nan"), right)})
