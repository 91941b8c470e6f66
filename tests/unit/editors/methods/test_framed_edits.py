"""Edits in several frames: their rows share one shift, guards stay where they are, and all leaves with the edit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from editors.methods.base import EditResult
from editors.methods.frames import frames_of
from editors.methods.recursive import RecursiveEditor
from editors.models.families import CausalModel
from editors.models.hooks import capturing
from editors.models.tokens import Encoded
from editors.solve.ledger import Ledger
from editors.solve.shared_targets import HELD_WEIGHT
from pipeline.domain.edits import Edit
from pipeline.domain.rank_api import EditorSettings, FileRef, LedgerRows
from tests.support.factories import make_edit
from tests.support.framed_parts import GUARDS, edited, framed_edits, framed_job, framed_rig, framed_settings
from tests.support.ledger_parts import Rig, whole_shift
from workers.memory.memory_plan import Work
from workers.memory.plan import ANSWERED_FRAMES

HELD = 3e-4
"""Relative distance of weights from what packed rows define, once an edit has come on top of others."""


@pytest.fixture(params=["llama", "gpt2"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Rig:
    return framed_rig(tmp_path, request.param)


def subject_key(model: CausalModel, encoded: Encoded, name: str) -> Tensor:
    """The key at a sequence's subject, fp64, read by itself through the whole model."""
    assert encoded.subject_end is not None
    places = {name: (torch.tensor([0]), torch.tensor([encoded.subject_end]))}
    batch = model.pack([Encoded(prompt_ids=encoded.prompt_ids, target_ids=encoded.target_ids[:1])])
    with torch.no_grad(), capturing(model.module, places) as seen:
        model.target_logits(batch)
    return seen.u_TI[name][0].double()


def frame_keys(rig: Rig, edit: Edit, settings: EditorSettings, name: str) -> tuple[Tensor, Tensor]:
    """Keys of an edit's frames (m x I) and of its guards, at the model as it is."""
    frames = frames_of(rig.model, edit, settings, GUARDS if settings.num_guards else ())
    keys = [subject_key(rig.model, encoded, name) for encoded in (*frames.asked, *frames.keyed)]
    guards = [subject_key(rig.model, encoded, name) for encoded in frames.guards]
    return torch.stack(keys), torch.stack(guards) if guards else keys[0].new_zeros(0, len(keys[0]))


def empty_matrix(rig: Rig, name: str) -> Tensor:
    """A = C0 + lambda I of a ledger without rows."""
    return rig.ledger.without(rig.ledger.edit_ids).matrix(name)


def distance(rig: Rig, ledger: Ledger | None = None) -> float:
    """Of the accumulators from what a ledger's rows define, relative."""
    return max(
        float((rig.weights.shift(name).double() - whole).norm()) / float(whole.norm())
        for name in rig.model.inner_param_names
        if float((whole := whole_shift(ledger or rig.ledger, name)).norm()) > 0
    )


def one_pass(rig: Rig, edits: list[Edit], settings: EditorSettings, *, guards: tuple[str, ...] = GUARDS) -> EditResult:
    return RecursiveEditor(settings).edit(framed_job(rig, edits, guards=guards))


@pytest.mark.parametrize("guards", [(), GUARDS])
def test_the_delta_is_the_dense_solve_of_all_frames_each_of_weight_one_in_m(rig: Rig, guards: tuple[str, ...]) -> None:
    edits = framed_edits()[:2]
    settings = framed_settings(rig, num_passes=1, frames_per_pass=99, num_guards=len(guards))
    name = settings.subject_params[0]
    made = one_pass(rig, edits, settings, guards=guards)
    left_IH, right_HO = made.delta.factors[name]
    assert len(right_HO) == len(edits), "one shift an edit, however many rows it has"
    rows_TI = made.rows.keys_of(name).double()  # as they are stored, which is heavier than what is solved with
    for _, start, end in made.rows.ranges[name]:
        rows_TI[start : end - len(guards)] /= HELD_WEIGHT**0.5
    matrix_II = empty_matrix(rig, name) + rows_TI.T @ rows_TI
    asked_IO = torch.zeros(len(matrix_II), right_HO.shape[1], dtype=torch.float64)
    for (_, start, end), shift_O in zip(made.rows.ranges[name], right_HO.double(), strict=True):
        num_frames = end - start - len(guards)
        asked_IO += torch.outer(rows_TI[start : start + num_frames].sum(dim=0) / num_frames**0.5, shift_O)
    dense_IO = torch.linalg.solve(matrix_II, asked_IO)
    assert float((left_IH.double() @ right_HO.double() - dense_IO).norm()) < 1e-6 * float(dense_IO.norm())


def test_an_edit_has_a_row_of_each_frame_and_guard_at_subjects_and_a_column_of_each_target_token_after_that(
    rig: Rig,
) -> None:
    edits = framed_edits()
    settings = framed_settings(rig, num_passes=2)
    result = one_pass(rig, edits, settings)
    subject, *others = rig.model.inner_param_names
    of_edit = {edit_id: end - start for edit_id, start, end in result.rows.ranges[subject]}
    for edit in edits:
        frames = frames_of(rig.model, edit, settings, GUARDS)
        has_rows = edit.request.subject is not None
        expected = len(frames.asked) + len(frames.keyed) + len(frames.guards) if has_rows else 0
        assert of_edit[edit.edit_id] == expected
    assert result.delta.factors[subject][0].shape[1] == 2
    for name in others:
        asked = {edit_id for edit_id, start, end in result.rows.ranges[name] if end > start}
        tokens = [
            len(rig.model.encode_pair(edit.request.prompt, edit.request.target_new).target_ids)
            for edit in edits
            if edit.edit_id in asked
        ]
        assert result.delta.factors[name][0].shape[1] == sum(tokens)


def test_rows_weigh_one_in_m_at_subjects_and_are_held_harder_and_one_at_answers_and_guards(rig: Rig) -> None:
    edits = framed_edits()[:1]
    settings = framed_settings(rig, num_passes=1, frames_per_pass=99)
    name = settings.subject_params[0]
    keys_MI, guards_GI = frame_keys(rig, edits[0], settings, name)
    rows_TI = one_pass(rig, edits, settings).rows.keys_of(name).double()
    expected_TI = torch.cat([keys_MI * (HELD_WEIGHT / len(keys_MI)) ** 0.5, guards_GI])
    assert float(((rows_TI - expected_TI).norm(dim=1) / expected_TI.norm(dim=1)).max()) < 0.05, "six bits a number"


def test_an_edit_in_frames_lands_in_all_of_them(rig: Rig) -> None:
    edits = framed_edits()
    settings = framed_settings(rig)
    asked = [encoded for edit in edits for encoded in frames_of(rig.model, edit, settings).asked]
    before = least(rig.model, asked)
    edited(rig, settings, framed_job(rig, edits))
    after = least(rig.model, asked)
    assert sum(after) > 2 * sum(before)
    own = [frames_of(rig.model, edit, settings).asked[0] for edit in edits]
    assert min(least(rig.model, own)) > 0.2 > max(before[asked.index(encoded)] for encoded in own)


def least(model: CausalModel, sequences: list[Encoded]) -> list[float]:
    """The probability of each sequence's least probable target token."""
    found = []
    for encoded in sequences:
        batch = model.pack([encoded])
        with torch.no_grad():
            probability_NV = model.target_logits(batch).float().softmax(dim=1)
        found.append(float(probability_NV.gather(1, batch.target_N[:, None]).min()))
    return found


def test_the_ledger_defines_the_weights_after_edits_in_frames_come_and_go_and_from_files(
    rig: Rig, tmp_path: Path
) -> None:
    first, second, third = framed_edits()
    settings = framed_settings(rig)
    kept = [edited(rig, settings, framed_job(rig, [first, third]))]
    assert distance(rig) < 1e-5
    kept.append(edited(rig, settings, framed_job(rig, [second], removed=(first.edit_id,))))
    # Of what was held at the keys before an edit, sixteen bits a number are stored.
    assert distance(rig) < HELD
    assert rig.ledger.edit_ids == (third.edit_id, second.edit_id)
    files = [
        LedgerRows(
            file=FileRef(path=str(tmp_path / f"rows-{place}"), digest=result.rows.save(tmp_path / f"rows-{place}")),
            edit_ids=tuple(edit_id for edit_id in result.rows.edit_ids if edit_id in rig.ledger.edit_ids),
        )
        for place, result in enumerate(kept)
    ]
    prior = FileRef(path=str(tmp_path / "prior"), digest=rig.ledger.prior.save(tmp_path / "prior"))
    read = Ledger.from_files(prior, files, strength=settings.prior_strength, ridge=settings.ridge)
    assert read.edit_ids == rig.ledger.edit_ids
    assert distance(rig, read) < HELD
    for name in rig.model.inner_param_names:
        assert torch.equal(whole_shift(read, name), whole_shift(rig.ledger, name))


def test_guards_leave_with_their_edit(rig: Rig) -> None:
    first, second = framed_edits()[:2]
    settings = framed_settings(rig, num_subject=len(rig.model.inner_param_names))
    alone = {name: empty_matrix(rig, name).clone() for name in rig.model.inner_param_names}
    made = edited(rig, settings, framed_job(rig, [first]))
    # On the base nothing was held before, and what an edit asks for itself is not rounded: it leaves without a trace.
    edited(rig, settings, framed_job(rig, [], removed=(first.edit_id,)))
    for name, matrix_II in alone.items():
        assert torch.equal(rig.ledger.without().matrix(name), matrix_II)
        assert float(rig.weights.shift(name).norm()) <= 1e-4 * made.delta.norms[name]
    again = edited(rig, settings, framed_job(rig, [second]))
    assert {row[0] for ranges in again.rows.ranges.values() for row in ranges} == {second.edit_id}


def test_what_stands_at_a_guards_key_moves_less_than_without_the_guard(rig: Rig) -> None:
    edits = framed_edits()[:1]
    settings = framed_settings(rig, num_passes=1, frames_per_pass=99)
    name = settings.subject_params[0]
    _, guards_GI = frame_keys(rig, edits[0], settings, name)

    def moved(guards: tuple[str, ...]) -> float:
        left_IH, right_HO = one_pass(rig, edits, settings, guards=guards).delta.factors[name]
        return float((guards_GI @ left_IH.double() @ right_HO.double()).norm())

    assert moved(GUARDS) < 0.8 * moved(())


def test_edits_in_frames_are_bitwise_repeatable(rig: Rig, tmp_path: Path) -> None:
    settings = framed_settings(rig)
    made = [RecursiveEditor(settings).edit(framed_job(rig, framed_edits())) for _ in range(2)]
    digests = [(one.delta.save(tmp_path / "delta"), one.rows.save(tmp_path / "rows")) for one in made]
    assert digests[0] == digests[1]


def test_an_edit_has_no_more_frames_than_memory_is_planned_for(tmp_path: Path) -> None:
    rig = framed_rig(tmp_path)
    edit = make_edit(
        "framed-most",
        prompt="the capital of Japan is",
        subject="Japan",
        target_new="Milan",
        question="what city is the capital of Japan",
        rephrases=("Japan has capital", "capital city in Japan is", "city of president in Japan is"),
        aliases=("Tokyo", "Kyoto", "Spain"),
    )
    frames = frames_of(rig.model, edit, framed_settings(rig, rephrase_rows=2))
    assert len(frames.asked) + len(frames.keyed) == Work().num_frames
    assert sum(frames.answered) == ANSWERED_FRAMES
