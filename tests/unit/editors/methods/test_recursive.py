"""The recursive editor on tiny models: edits land, hold, are replaced and go; the ledger defines the weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from editors.methods.base import EditJob, EditResult
from editors.methods.memoryless import MemorylessEditor
from editors.methods.recursive import RecursiveEditor
from editors.methods.select import editor_for
from editors.methods.steps import GradientTransform
from pipeline.domain.edits import Edit
from pipeline.domain.errors import EditorFailed, InvalidInput, Misconfigured, UnknownRecord
from pipeline.domain.rank_api import EditorSettings
from tests.support.factories import make_edit
from tests.support.ledger_parts import SETTINGS, Rig, edits_of, make_rig, whole_shift
from tests.support.scored import score_pairs


def step(rig: Rig, added: list[Edit], removed: tuple[str, ...] = (), **changes: object) -> EditResult:
    """Edit and keep."""
    editor = RecursiveEditor(SETTINGS)
    result = editor.edit(
        EditJob(model=rig.model, weights=rig.weights, ledger=rig.ledger, added=added, removed_ids=removed)
    )
    rig.weights.apply(result.delta)
    rig.ledger.commit(result.rows, result.removed_ids)
    return result


def probabilities(rig: Rig, edits: list[Edit]) -> list[float]:
    scores = score_pairs(rig.model, [(edit.request.prompt, edit.request.target_new) for edit in edits])
    return [score.probability for score in scores]


@pytest.fixture(params=["llama", "gpt2"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Rig:
    return make_rig(tmp_path, request.param)


def distance(rig: Rig) -> float:
    """Of the accumulators from what the ledger's rows define, relative."""
    return max(
        float((rig.weights.shift(name).double() - whole_shift(rig.ledger, name)).norm())
        / max(float(whole_shift(rig.ledger, name).norm()), 1e-30)
        for name in rig.model.inner_param_names
    )


def test_edits_land_and_earlier_ones_hold(rig: Rig) -> None:
    first, second = edits_of(0, 1), edits_of(2, 3, 4)
    before = probabilities(rig, first + second)
    step(rig, first)
    step(rig, second)
    after = probabilities(rig, first + second)
    assert max(before) < 0.4
    assert min(after) > 0.4


def test_the_ledger_defines_the_weights(rig: Rig) -> None:
    step(rig, edits_of(0, 1))
    step(rig, edits_of(2, 3))
    assert distance(rig) < 1e-5
    step(rig, edits_of(4), (edits_of(1)[0].edit_id, edits_of(2)[0].edit_id))
    assert distance(rig) < 1e-5
    assert rig.ledger.edit_ids == tuple(edit.edit_id for edit in edits_of(0, 3, 4))


def test_the_delta_is_the_change_of_the_dense_solve(rig: Rig) -> None:
    step(rig, edits_of(0, 1, 2))
    old = {name: whole_shift(rig.ledger, name) for name in rig.model.inner_param_names}
    result = step(rig, edits_of(3, 4), (edits_of(1)[0].edit_id,))
    for name, (left, right) in result.delta.factors.items():
        dense = whole_shift(rig.ledger, name) - old[name]
        assert float((left.double() @ right.double() - dense).norm()) < 1e-5 * float(dense.norm())


def test_weights_and_ledger_on_exit_are_those_on_entry(rig: Rig) -> None:
    step(rig, edits_of(0, 1))
    held = {name: parameter.clone() for name, parameter in rig.model.module.named_parameters()}
    ids = rig.ledger.edit_ids
    RecursiveEditor(SETTINGS).edit(
        EditJob(
            model=rig.model,
            weights=rig.weights,
            ledger=rig.ledger,
            added=edits_of(2, 3),
            removed_ids=[edits_of(0)[0].edit_id],
        )
    )
    assert all(torch.equal(parameter, held[name]) for name, parameter in rig.model.module.named_parameters())
    assert rig.ledger.edit_ids == ids


def about(edit: Edit, subject: str | None) -> Edit:
    return replace(edit, request=replace(edit.request, subject=subject))


def of_subjects(rig: Rig) -> EditorSettings:
    """The first block's weight is edited at subject tokens, the others at answer tokens."""
    return replace(SETTINGS, inner_params=rig.model.inner_param_names, subject_params=rig.model.inner_param_names[:1])


def test_an_edit_with_a_subject_has_one_row_for_it_and_answer_rows_only_for_what_is_missing(rig: Rig) -> None:
    known, unknown = about(edits_of(0)[0], "king"), about(edits_of(1)[0], None)
    result = RecursiveEditor(of_subjects(rig)).edit(
        EditJob(model=rig.model, weights=rig.weights, ledger=rig.ledger, added=[known, unknown])
    )
    first, *others = rig.model.inner_param_names
    assert result.rows.ranges[first] == ((known.edit_id, 0, 1), (unknown.edit_id, 1, 1))
    assert all({row[0] for row in result.rows.ranges[name]} >= {unknown.edit_id} for name in others)
    rig.weights.apply(result.delta)
    rig.ledger.commit(result.rows)
    assert min(probabilities(rig, [known, unknown])) > 0.4
    assert distance(rig) < 1e-5


def test_edits_of_subjects_leave_the_ledger_like_any_other(rig: Rig) -> None:
    base = {name: rig.model.module.get_parameter(name).clone() for name in rig.model.inner_param_names}
    edits = [about(edits_of(0)[0], "king"), about(edits_of(1)[0], None), about(edits_of(2)[0], "president")]
    editor = RecursiveEditor(of_subjects(rig))
    result = editor.edit(EditJob(model=rig.model, weights=rig.weights, ledger=rig.ledger, added=edits))
    rig.weights.apply(result.delta)
    rig.ledger.commit(result.rows)
    gone = editor.edit(
        EditJob(model=rig.model, weights=rig.weights, ledger=rig.ledger, removed_ids=[edit.edit_id for edit in edits])
    )
    rig.weights.apply(gone.delta)
    for name, weight in base.items():
        rounding = 2**-24 * magnified(rig, name)
        left = float((rig.model.module.get_parameter(name) - weight).norm())
        assert left <= rounding * result.delta.norms[name] < 1e-3 * result.delta.norms[name]


def magnified(rig: Rig, name: str) -> float:
    """How much longer a solve without any row can make what fp32 accumulators round, with the rows of the ledger."""
    with_rows_II, without_II = rig.ledger.without().matrix(name), rig.ledger.without(rig.ledger.edit_ids).matrix(name)
    return float(torch.linalg.matrix_norm(with_rows_II, 2) * torch.linalg.matrix_norm(without_II.inverse(), 2))


def test_rephrases_become_rows_of_their_edit_but_never_the_first(rig: Rig) -> None:
    edit = edits_of(0)[0]
    edit = replace(edit, request=replace(edit.request, rephrases=("the king of Japan", "Japan king is")))
    settings = replace(SETTINGS, rephrase_rows=2)
    alone = RecursiveEditor(SETTINGS).edit(
        EditJob(model=rig.model, weights=rig.weights, ledger=rig.ledger, added=[edit])
    )
    both = RecursiveEditor(settings).edit(
        EditJob(model=rig.model, weights=rig.weights, ledger=rig.ledger, added=[edit])
    )
    assert both.num_rows == 2 * alone.num_rows
    assert both.rows.edit_ids == (edit.edit_id,)


def test_an_edit_call_is_bitwise_repeatable(rig: Rig, tmp_path: Path) -> None:
    step(rig, edits_of(0, 1))
    editor = RecursiveEditor(SETTINGS)
    digests = []
    for run in ("1", "2"):
        result = editor.edit(
            EditJob(
                model=rig.model,
                weights=rig.weights,
                ledger=rig.ledger,
                added=edits_of(2, 3),
                removed_ids=[edits_of(0)[0].edit_id],
            )
        )
        digests.append((result.delta.save(tmp_path / run), result.rows.save(tmp_path / run)))
    assert digests[0] == digests[1]


def test_removing_every_edit_gives_the_base_back(rig: Rig) -> None:
    base = {name: rig.model.module.get_parameter(name).clone() for name in rig.model.inner_param_names}
    edits = edits_of(0, 1, 2)
    norms = step(rig, edits).delta.norms
    result = step(rig, [], tuple(edit.edit_id for edit in edits))
    assert result.num_rows == result.num_passes == 0
    for name, weight in base.items():
        assert float((rig.model.module.get_parameter(name) - weight).norm()) < 3e-5 * norms[name]


def test_removing_one_edit_leaves_the_others(rig: Rig) -> None:
    edits = edits_of(0, 1, 2, 3)
    base = probabilities(rig, edits)
    step(rig, edits)
    held = probabilities(rig, edits)
    step(rig, [], (edits[1].edit_id,))
    after = probabilities(rig, edits)
    assert after[1] < 0.5 * held[1]
    assert abs(after[1] - base[1]) < abs(held[1] - base[1])
    assert min(after[place] for place in (0, 2, 3)) > 0.35


def test_of_ten_corrections_of_one_fact_the_tenth_holds_at_once(rig: Rig) -> None:
    others = edits_of(1, 2)
    step(rig, others)
    answers = ["Tokyo", "Paris", "Lyon", "Kyoto", "Rome", "Milan", "Berlin", "Bonn", "Madrid", "mountain"]
    removed: tuple[str, ...] = ()
    for place, answer in enumerate(answers):
        edit = make_edit(f"again-{place}", prompt="who is king of Japan", target_new=answer)
        step(rig, [edit], removed)
        assert probabilities(rig, [edit])[0] > 0.45, answer
        removed = (edit.edit_id,)
    assert len(rig.ledger.edit_ids) == 3
    assert min(probabilities(rig, others)) > 0.35
    assert distance(rig) < 1e-4


def test_the_only_edit_can_be_replaced_by_another(rig: Rig) -> None:
    first = make_edit("one", prompt="who is king of Japan", target_new="Rome")
    second = make_edit("two", prompt="who is king of Japan", target_new="Lyon")
    step(rig, [first])
    step(rig, [second], (first.edit_id,))
    assert probabilities(rig, [second])[0] > 0.45
    assert distance(rig) < 1e-4


def test_a_fact_that_the_model_has_already_asks_for_nothing(tmp_path: Path) -> None:
    rig = make_rig(tmp_path)
    edits = edits_of(0)
    step(rig, edits)
    again = make_edit("again", prompt=edits[0].request.prompt, target_new=edits[0].request.target_new)
    result = RecursiveEditor(SETTINGS).edit(
        EditJob(model=rig.model, weights=rig.weights, ledger=rig.ledger, added=[again])
    )
    assert result.num_passes == 1
    assert max(result.delta.norms.values()) == 0.0
    assert result.num_rows == 1


def test_an_edit_that_asks_nothing_after_the_subjects_group_is_held_by_its_keys(tmp_path: Path) -> None:
    rig = make_rig(tmp_path)
    step(rig, edits_of(0))
    known = edits_of(0)[0].request
    again = make_edit("again", prompt=known.prompt, target_new=known.target_new)  # names no subject
    subject, *answer = rig.model.inner_param_names
    settings = replace(SETTINGS, inner_params=rig.model.inner_param_names, subject_params=(subject,))
    result = RecursiveEditor(settings).edit(
        EditJob(model=rig.model, weights=rig.weights, ledger=rig.ledger, added=[again])
    )
    assert max(result.delta.norms.values()) == 0.0
    for name in answer:
        assert bool(result.rows.keys_of(name).any())
        held_TO = result.rows.keys_of(name) @ rig.weights.shift(name)
        torch.testing.assert_close(result.rows.targets_of(name), held_TO, rtol=1e-5, atol=1e-6)


def test_what_cannot_be_asked_is_refused(tmp_path: Path) -> None:
    rig, editor = make_rig(tmp_path), RecursiveEditor(SETTINGS)
    with pytest.raises(EditorFailed, match="neither"):
        editor.edit(EditJob(model=rig.model, weights=rig.weights, ledger=rig.ledger))
    with pytest.raises(UnknownRecord, match="nobody"):
        editor.edit(EditJob(model=rig.model, weights=rig.weights, ledger=rig.ledger, removed_ids=["nobody"]))
    rig.ledger.prior.moments.clear()
    with pytest.raises(Misconfigured, match="prior"):
        editor.edit(EditJob(model=rig.model, weights=rig.weights, ledger=rig.ledger, added=edits_of(0)))


@pytest.mark.parametrize("solver", ["least_squares", "row_sum", "sum"])
def test_solvers_without_memory_land_an_edit_and_refuse_to_remove_it(solver: str, tmp_path: Path) -> None:
    rig = make_rig(tmp_path)
    settings = EditorSettings(
        solver=solver,
        ridge=1e-3,
        damping=0.02,
        step=1.0,
        stop_probability=0.5,
        num_passes=40,
        frames_per_pass=0,
        num_guards=0,
        rephrase_rows=0,
    )
    editor, edits = editor_for(settings), edits_of(0)
    assert isinstance(editor, MemorylessEditor)
    before = probabilities(rig, edits)[0]
    result = editor.edit(EditJob(model=rig.model, weights=rig.weights, ledger=rig.ledger, added=edits))
    rig.weights.apply(result.delta)
    assert probabilities(rig, edits)[0] > before + 0.2
    with pytest.raises(InvalidInput, match="recursive"):
        editor.edit(
            EditJob(
                model=rig.model, weights=rig.weights, ledger=rig.ledger, added=edits, removed_ids=[edits[0].edit_id]
            )
        )


def test_only_editors_that_exist_are_chosen() -> None:
    assert isinstance(editor_for(EditorSettings()), RecursiveEditor)
    with pytest.raises(Misconfigured, match="magic"):
        editor_for(EditorSettings(solver="magic"))
    with pytest.raises(Misconfigured, match="transform"):
        editor_for(EditorSettings(transform="0" * 64))


def test_the_gradient_transform_is_the_row_that_was_measured() -> None:
    u_TI = torch.tensor([[3.0, 4.0], [0.0, 1.0], [6.0, 8.0]])
    delta_TO = torch.tensor([[0.0, 2.0], [1.0, 0.0], [5.0, 5.0]])
    wanted = GradientTransform(step=0.5, stop_probability=0.5)(
        name="w", u_TI=u_TI, delta_TO=delta_TO, probability_T=torch.tensor([0.1, 0.4, 0.55])
    )
    length = 0.5 * (5 + 1 + 10) / 3
    expected = torch.tensor([[0.0, -length * 0.5], [-length * 0.2, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(wanted, expected)


def test_a_row_without_a_gradient_asks_for_nothing() -> None:
    wanted = GradientTransform(step=0.5, stop_probability=0.5)(
        name="w", u_TI=torch.ones(1, 2), delta_TO=torch.zeros(1, 3), probability_T=torch.zeros(1)
    )
    assert torch.equal(wanted, torch.zeros(1, 3))
