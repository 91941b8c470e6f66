"""A group of one real rank with a tiny model: what it holds, what it gives, and what it refuses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from editors.mend.checkpoint import TENSORS
from editors.mend.shipped import CARD
from editors.methods.select import lineage_settings
from editors.models.digest import base_digest
from editors.solve.rows import load_batches
from editors.weights.deltas import WeightDelta, load_accumulators
from editors.weights.loading import load_base, load_snapshot
from pipeline.domain.errors import (
    EditorFailed,
    EngineFailed,
    IntegrityBroken,
    InvalidInput,
    LeaseLost,
    Misconfigured,
    UnknownRecord,
    WrongBase,
)
from pipeline.domain.rank_api import FileRef, LedgerPlan, LedgerRows, LoadPlan, Rekeying, TrainedFiles
from tests.support.forked_ranks import forked_ranks
from tests.support.tiny_editors import tiny_editor
from tests.support.tiny_families import LABELS
from tests.support.tiny_lineage import candidate, edits, file_ref, make_tiny_lineage, plan_after
from tests.support.waiting import patience
from workers.controller.group import RankGroup
from workers.controller.rank_processes import RankSpec


@pytest.fixture(scope="module")
def tiny_lineage(tmp_path_factory: pytest.TempPathFactory) -> LoadPlan:
    """A lineage without a snapshot."""
    return make_tiny_lineage(tmp_path_factory.mktemp("lineage"))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankGroup]:
    """A group that the tests of this module share; a test loads what it needs, with a higher epoch each."""
    log = tmp_path_factory.mktemp("ranks") / "ranks.log"
    with RankGroup(RankSpec(log=log), command_timeout=timedelta(seconds=patience())) as group:
        group.start()
        yield group


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankGroup]:
    """A group of two ranks, shared in the same way."""
    spec = RankSpec(num_ranks=2, log=tmp_path_factory.mktemp("two ranks") / "ranks.log")
    with RankGroup(spec, command_timeout=timedelta(seconds=patience())) as group:
        group.start()
        yield group


@pytest.fixture(scope="module")
def family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RankGroup, LoadPlan]]:
    """A rank of its own for a base of a family, and a lineage of it."""
    folder = tmp_path_factory.mktemp(request.param)
    plan = make_tiny_lineage(folder, request.param)
    made = RankGroup(RankSpec(log=folder / "ranks.log"), command_timeout=timedelta(seconds=patience()))
    with forked_ranks(), made as group:
        group.start()
        yield group, plan


@pytest.fixture
def plan(tiny_lineage: LoadPlan, request: pytest.FixtureRequest) -> LoadPlan:
    """The lineage under a name of this test's own, so that no lease epoch of another test is in the way."""
    return replace(tiny_lineage, lineage=request.node.name)


def test_trying_leaves_the_digest_of_what_is_held(ranks: RankGroup, plan: LoadPlan) -> None:
    ranks.load(plan, epoch=1)
    before = ranks.weights_digest()
    outcome = ranks.try_edits(candidate("t1", edits(2)))
    assert ranks.weights_digest() == before
    assert outcome.num_rows == 2
    assert outcome.num_passes >= 1
    assert set(outcome.seconds) == {"capture", "solve", "apply", "measure"}
    assert len(outcome.measurements.edits) == 2
    assert outcome.measurements.change_norm
    assert outcome.measurements.probe_set_digest


def test_a_trial_that_fails_leaves_the_digest_of_what_is_held(ranks: RankGroup, plan: LoadPlan) -> None:
    ranks.load(plan, epoch=1)
    before = ranks.weights_digest()
    with pytest.raises(EditorFailed):
        ranks.try_edits(candidate("nothing", ()))
    with pytest.raises(UnknownRecord):
        ranks.try_edits(candidate("no such edit", (), removed_ids=("nobody",)))
    assert ranks.weights_digest() == before
    pid = ranks.pids
    ranks.try_edits(candidate("afterwards", edits(1)))
    assert ranks.pids == pid


def test_kept_files_reload_to_the_same_weights_bit_for_bit(ranks: RankGroup, plan: LoadPlan, tmp_path: Path) -> None:
    ranks.load(plan, epoch=1)
    base, added, later = ranks.weights_digest(), edits(2), edits(2, start=2)
    ranks.try_edits(candidate("first", added))
    ranks.try_edits(candidate("second", edits(3)))  # a later candidate that nobody keeps
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    first = ranks.keep("first", folder=tmp_path / "one", with_accumulator=False)
    one = plan_after(plan, first, "s1", added)
    ranks.held("s1", digest=one.digest)
    after_one = ranks.weights_digest()
    ranks.load(one, epoch=1)
    ranks.try_edits(candidate("third", later, removed_ids=(added[0].edit_id,)))
    second = ranks.keep("third", folder=tmp_path / "two", with_accumulator=True)
    whole = plan_after(one, second, "s2", later)
    both = whole.ledger
    assert both is not None
    two = replace(
        whole,
        ledger=replace(both, rows=(replace(both.rows[0], edit_ids=(added[1].edit_id,)), *both.rows[1:])),
    )
    ranks.held("s2", digest=two.digest)
    after_two = ranks.weights_digest()
    assert len({base, after_one, after_two}) == 3

    ranks.load(one, epoch=1)
    assert ranks.weights_digest() == after_one
    ranks.load(two, epoch=1)
    assert ranks.weights_digest() == after_two
    assert second.accumulator is not None
    ranks.load(plan, epoch=1)
    assert ranks.weights_digest() == base
    ranks.load(replace(two, accumulator=second.accumulator, deltas=()), epoch=1)
    assert ranks.weights_digest() == after_two


def test_a_candidate_without_some_of_its_edits_is_made_without_a_pass_kept_and_reloaded_bit_for_bit(
    ranks: RankGroup, two_ranks: RankGroup, plan: LoadPlan, tmp_path: Path
) -> None:
    digests = []
    for group in (ranks, two_ranks):
        folder = tmp_path / str(group.pids)
        folder.mkdir()
        group.load(plan, epoch=1)
        before, added = group.weights_digest(), edits(3)
        group.try_edits(candidate("whole", added))
        rest = group.try_edits(replace(candidate("rest", added[:2]), part_of="whole"))
        assert (rest.num_passes, rest.num_rows) == (0, 2)
        assert [score.edit_id for score in rest.measurements.edits] == [edit.edit_id for edit in added[:2]]
        assert group.weights_digest() == before
        kept = group.keep("rest", folder=folder, with_accumulator=False)
        one = plan_after(plan, kept, "s1", added[:2])
        group.held("s1", digest=one.digest)
        after = group.weights_digest()
        assert after != before
        group.load(one, epoch=1)
        assert group.weights_digest() == after
        digests.append(kept.delta.digest)
    assert digests[0] == digests[1]
    with pytest.raises(UnknownRecord, match="whole"):  # it was of another snapshot
        ranks.try_edits(replace(candidate("late", edits(2, start=3)), part_of="whole"))


def test_rows_since_the_last_accumulators_are_written_together_and_give_the_same_bits(
    ranks: RankGroup, plan: LoadPlan, tmp_path: Path
) -> None:
    """The second batch is made after a reload, and replaces an edit of the first; the third stores accumulators."""
    batches, plans = (edits(2), edits(2, start=2), edits(1, start=4)), [plan]
    gone = batches[0][0].edit_id
    for number, added in enumerate(batches):
        folder = tmp_path / str(number)
        folder.mkdir()
        if number < 2:
            ranks.load(plans[-1], epoch=number + 1)
        ranks.try_edits(candidate(f"c{number}", added, removed_ids=(gone,) if number == 1 else ()))
        kept = ranks.keep(f"c{number}", folder=folder, with_accumulator=number == 2)
        after = plan_after(plans[-1], kept, f"s{number}", added)
        ranks.held(f"s{number}", digest=after.digest)
        plans.append(after)
    staying = (batches[0][1].edit_id, *(edit.edit_id for edit in batches[1]))
    assert kept.rewritten_ids == staying
    assert [rows.edit_ids for rows in load_batches(Path(kept.rows.path))] == [
        staying[:1],
        staying[1:],
        (batches[2][0].edit_id,),
    ]
    lived_on = ranks.weights_digest()
    together = LedgerRows(file=kept.rows, edit_ids=(*staying, batches[2][0].edit_id))
    assert plans[-1].ledger is not None
    reloaded = replace(plans[-1], ledger=replace(plans[-1].ledger, rows=(together,)))
    next_rows = []
    for number, load in enumerate((None, reloaded)):
        if load is not None:
            ranks.load(replace(load, snapshot_id="other id"), epoch=9)
        assert ranks.weights_digest() == lived_on
        ranks.try_edits(candidate("next", edits(1, start=5), removed_ids=(staying[1],)))
        (tmp_path / f"next {number}").mkdir()
        next_rows.append(ranks.keep("next", folder=tmp_path / f"next {number}", with_accumulator=False))
    assert next_rows[0].delta.digest == next_rows[1].delta.digest
    assert next_rows[0].rows.digest == next_rows[1].rows.digest


def test_an_edit_that_is_made_again_beside_another_has_new_rows_and_leaves_with_them(
    ranks: RankGroup, plan: LoadPlan, tmp_path: Path
) -> None:
    """The first of two edits is made again beside a third; a group that loads the files goes on with the same bits."""
    first, other, second = edits(3)
    for name in ("one", "two", "next 0", "next 1"):
        (tmp_path / name).mkdir()
    ranks.load(plan, epoch=1)
    ranks.try_edits(candidate("one", (first, other)))
    made = ranks.keep("one", folder=tmp_path / "one", with_accumulator=False)
    one = plan_after(plan, made, "s1", (first, other))
    ranks.held("s1", digest=one.digest)
    tried = ranks.try_edits(replace(candidate("two", (second,)), remade=(first,), retained=(first,)))
    assert [score.edit_id for score in tried.measurements.edits] == [second.edit_id]
    assert tried.measurements.candidate.num_retained == 1
    again = ranks.keep("two", folder=tmp_path / "two", with_accumulator=True)
    assert again.rewritten_ids == (other.edit_id,), "rows that were made again are in the batch's own"
    assert [rows.edit_ids for rows in load_batches(Path(again.rows.path))] == [
        (other.edit_id,),
        (first.edit_id, second.edit_id),
    ]
    two = plan_after(one, again, "s2", (other, first, second))
    assert two.ledger is not None
    two = replace(two, ledger=replace(two.ledger, rows=two.ledger.rows[-1:]))
    ranks.held("s2", digest=two.digest)
    lived_on, found = ranks.weights_digest(), []
    for number in range(2):
        if number:
            ranks.load(replace(two, snapshot_id="other id", accumulator=again.accumulator, deltas=()), epoch=2)
        assert ranks.weights_digest() == lived_on
        ranks.try_edits(replace(candidate("next", (), removed_ids=(first.edit_id,)), remade=(second,)))
        found.append(ranks.keep("next", folder=tmp_path / f"next {number}", with_accumulator=False).delta.digest)
        assert ranks.weights_digest() != lived_on
    assert found[0] == found[1]


@pytest.mark.parametrize("num_ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_ledger_that_is_solved_anew_reloads_bit_for_bit_and_goes_on(
    num_ranks: int, plan: LoadPlan, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    group: RankGroup = request.getfixturevalue("ranks" if num_ranks == 1 else "two_ranks")
    for name in ("made", "anew", "next 0", "next 1"):
        (tmp_path / name).mkdir()
    added = edits(3)
    group.load(plan, epoch=1)
    group.try_edits(candidate("made", added))
    made = plan_after(plan, group.keep("made", folder=tmp_path / "made", with_accumulator=False), "s1", added)
    group.held("s1", digest=made.digest)
    before = group.weights_digest()

    stronger = group.try_edits(replace(candidate("stronger", ()), rekeying=Rekeying(prior_strength=2.0)))
    assert group.weights_digest() == before
    assert stronger.measurements.prior_strength == 2.0
    assert stronger.measurements.solved_anew
    anew = replace(candidate("anew", ()), rekeying=Rekeying(prior_strength=2.0, edits=added))
    outcome = group.try_edits(anew)
    assert group.weights_digest() == before
    assert outcome.measurements.prior_strength == 2.0
    assert outcome.measurements.solved_anew
    kept = group.keep("anew", folder=tmp_path / "anew", with_accumulator=True)
    assert kept.rewritten_ids == tuple(edit.edit_id for edit in added)
    after = plan_after(made, kept, "s2", added)
    assert after.ledger is not None
    after = replace(after, ledger=replace(after.ledger, rows=after.ledger.rows[-1:], prior_strength=2.0))
    group.held("s2", digest=after.digest)
    lived_on, found = group.weights_digest(), []
    assert lived_on != before
    for number in range(2):
        if number:
            group.load(replace(after, snapshot_id="other id", accumulator=kept.accumulator, deltas=()), epoch=2)
        assert group.weights_digest() == lived_on
        outcome = group.try_edits(candidate("next", edits(1, start=3), removed_ids=(added[0].edit_id,)))
        assert outcome.measurements.prior_strength == 2.0
        assert outcome.measurements.solved_anew is None
        found.append(group.keep("next", folder=tmp_path / f"next {number}", with_accumulator=False).delta.digest)
    assert found[0] == found[1]


def test_a_kept_candidate_that_was_not_committed_is_left_by_the_next_load(
    ranks: RankGroup, plan: LoadPlan, tmp_path: Path
) -> None:
    ranks.load(plan, epoch=1)
    before = ranks.weights_digest()
    ranks.try_edits(candidate("t", edits(2)))
    ranks.keep("t", folder=tmp_path, with_accumulator=False)
    assert ranks.weights_digest() != before
    ranks.load(plan, epoch=2)
    assert ranks.weights_digest() == before


def test_an_unknown_trial_cannot_be_kept(ranks: RankGroup, plan: LoadPlan, tmp_path: Path) -> None:
    ranks.load(plan, epoch=1)
    with pytest.raises(UnknownRecord, match="never-tried"):
        ranks.keep("never-tried", folder=tmp_path, with_accumulator=False)


def test_a_group_goes_on_from_what_it_holds_without_a_plan(ranks: RankGroup, plan: LoadPlan, tmp_path: Path) -> None:
    loaded = ranks.load(plan, epoch=1)
    assert f'["{plan.lineage}","japan","language"]' in loaded.suite_keys
    head: dict[str, Any] = {"lineage": plan.lineage, "snapshot_id": None, "editor": plan.editor}
    assert ranks.resume(**head, epoch=2) == loaded
    other_editor = replace(plan.editor, num_passes=1)
    for other in ({"lineage": "other"}, {"snapshot_id": "s1"}, {"editor": other_editor}):
        assert ranks.resume(**head | other, epoch=2) is None

    ranks.try_edits(candidate("kept", edits(1)))
    ranks.keep("kept", folder=tmp_path, with_accumulator=False)
    assert ranks.resume(**head, epoch=2) is None, "nobody knows yet whether it was committed"
    ranks.held("s1", digest="d" * 64)
    assert ranks.resume(**head | {"snapshot_id": "s1"}, epoch=2) == loaded
    with pytest.raises(LeaseLost):
        ranks.resume(**head | {"snapshot_id": "s1"}, epoch=1)

    assert ranks.load(replace(plan, ledger=None), epoch=2).suite_keys == ()
    assert ranks.generate(["the capital of Japan is"], max_new_tokens=1)
    assert ranks.resume(**head, epoch=2) is None, "no edits can be made on what only answers"
    assert ranks.load(plan, epoch=2) == loaded


def test_an_older_lease_epoch_is_refused(ranks: RankGroup, plan: LoadPlan) -> None:
    ranks.load(plan, epoch=7)
    ranks.weights_digest()
    with pytest.raises(LeaseLost, match="expected lease epoch 7 or above"):
        ranks.load(replace(plan, snapshot_id="other"), epoch=6)
    ranks.load(plan, epoch=8)
    assert ranks.weights_digest()


def test_a_corrupt_delta_is_not_held(ranks: RankGroup, plan: LoadPlan, tmp_path: Path) -> None:
    ranks.load(plan, epoch=1)
    ranks.try_edits(candidate("t", edits(1)))
    kept = ranks.keep("t", folder=tmp_path, with_accumulator=False)
    path = Path(kept.delta.path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(IntegrityBroken, match=kept.delta.digest):
        ranks.load(plan_after(plan, kept, "s", edits(1)), epoch=1)
    with pytest.raises(EngineFailed, match="loaded first"):
        ranks.try_edits(candidate("t", edits(1)))
    ranks.load(plan, epoch=1)
    assert ranks.weights_digest()


def test_answers_come_in_order_and_follow_what_is_held(ranks: RankGroup, plan: LoadPlan) -> None:
    ranks.load(plan, epoch=1)
    prompts = ["the capital of Japan is", "who is king", "the river"]
    answers = ranks.generate(prompts, max_new_tokens=3)
    assert [answer.prompt for answer in answers] == prompts
    assert all(answer.text.strip() for answer in answers)


def test_a_base_without_a_chat_template_is_not_asked_in_a_chat(ranks: RankGroup, plan: LoadPlan) -> None:
    ranks.load(plan, epoch=1)
    with pytest.raises(Misconfigured, match="chat template"):
        ranks.generate(["who is king"], max_new_tokens=3, chat=True)


def test_another_base_than_recorded_is_refused(ranks: RankGroup, plan: LoadPlan) -> None:
    wrong = replace(plan, base=replace(plan.base, digest="0" * 64))
    with pytest.raises(WrongBase, match="0000"):
        ranks.load(wrong, epoch=1)
    assert ranks.pids == ()
    ranks.load(plan, epoch=1)
    assert ranks.weights_digest()


def test_a_missing_file_is_named(ranks: RankGroup, plan: LoadPlan, tmp_path: Path) -> None:
    missing = FileRef(path=str(tmp_path / "gone.safetensors"), digest="0" * 64)
    with pytest.raises(IntegrityBroken, match=r"gone\.safetensors"):
        ranks.load(replace(plan, deltas=(missing,)), epoch=1)


def test_two_lineages_of_one_base_share_it(ranks: RankGroup, plan: LoadPlan, tmp_path: Path) -> None:
    other = replace(plan, lineage=f"{plan.lineage} too", editor=replace(plan.editor, num_passes=1))
    ranks.load(plan, epoch=3)
    (pid,), base = ranks.pids, ranks.weights_digest()
    ranks.try_edits(candidate("t", edits(2)))
    kept = ranks.keep("t", folder=tmp_path, with_accumulator=False)
    held = ranks.weights_digest()
    ranks.load(other, epoch=1)
    assert ranks.weights_digest() == base
    ranks.try_edits(candidate("t", edits(1)))
    ranks.load(plan_after(plan, kept, "s1", edits(2)), epoch=3)
    assert ranks.weights_digest() == held
    assert ranks.pids == (pid,)
    with pytest.raises(LeaseLost, match="epoch 3"):
        ranks.load(plan, epoch=2)


def test_a_freed_group_holds_no_lineage_and_still_its_base(ranks: RankGroup, plan: LoadPlan) -> None:
    ranks.load(plan, epoch=1)
    pids, digest = ranks.pids, ranks.weights_digest()
    ranks.free()
    assert ranks.weights_digest() == ""
    with pytest.raises(EngineFailed, match="loaded first"):
        ranks.try_edits(candidate("t", edits(1)))
    ranks.load(plan, epoch=1)
    assert (ranks.pids, ranks.weights_digest()) == (pids, digest)


def check_export(group: RankGroup, plan: LoadPlan, folder: Path, *, tolerance: float) -> None:
    """Keep two edits, write the model out, and compare it with the snapshot as one process loads it."""
    group.load(plan, epoch=1)
    added = edits(2, task=plan.base.task)
    group.try_edits(candidate("t", added))
    kept = group.keep("t", folder=folder, with_accumulator=False)
    snapshot = plan_after(plan, kept, "s1", added)
    group.held("s1", digest=snapshot.digest)
    digest, exported = group.weights_digest(), group.export(folder / "model")
    assert group.weights_digest() == digest
    assert exported.digest == base_digest(folder / "model")
    model = load_snapshot(
        Path(plan.base.ref),
        base=plan.base,
        inner_param_names=plan.editor.inner_params,
        accumulator=None,
        deltas=snapshot.deltas,
    )
    written = load_base(folder / "model", task=plan.base.task)
    expected, found = model.module.state_dict(), written.module.state_dict()
    assert expected.keys() == found.keys()
    worst = max(float((found[name] - value).norm() / value.norm()) for name, value in expected.items())
    assert worst <= tolerance
    prompts = [edit.request.prompt for edit in added]
    assert written.generate(prompts, max_new_tokens=3) == model.generate(prompts, max_new_tokens=3)
    with pytest.raises(InvalidInput, match="new or empty folder"):
        group.export(folder / "model")
    assert not list(folder.glob(".*"))


def test_an_exported_model_is_the_snapshot_bit_for_bit(ranks: RankGroup, plan: LoadPlan, tmp_path: Path) -> None:
    check_export(ranks, plan, tmp_path, tolerance=0.0)


@pytest.mark.slow
@pytest.mark.usefixtures("forks_ranks")
@pytest.mark.parametrize("name", ["t5", "bert"])
def test_two_ranks_export_a_model_of_any_family(name: str, tmp_path: Path) -> None:
    plan = make_tiny_lineage(tmp_path / "lineage", name)
    spec = RankSpec(num_ranks=2, log=tmp_path / "ranks.log")
    with RankGroup(spec, command_timeout=timedelta(seconds=patience())) as group:
        check_export(group, plan, tmp_path / "lineage", tolerance=1e-6)


def test_a_delta_of_another_base_is_not_held(ranks: RankGroup, plan: LoadPlan, tmp_path: Path) -> None:
    ranks.load(plan, epoch=1)
    digest = ranks.weights_digest()
    first, *others = plan.editor.inner_params
    for wrong in ({first: (9, 2)}, dict.fromkeys((*others, "model.layers.99.mlp.down_proj.weight"), (24, 12))):
        path = tmp_path / f"{len(wrong)}.safetensors"
        factors = {name: (torch.ones(rows, 1), torch.ones(1, columns)) for name, (rows, columns) in wrong.items()}
        WeightDelta.of(factors).save(path)
        with pytest.raises(IntegrityBroken, match="a delta of another base"):
            ranks.load(replace(plan, snapshot_id="other", deltas=(file_ref(path),)), epoch=1)
    ranks.load(plan, epoch=1)
    assert ranks.weights_digest() == digest


def test_a_model_without_known_inner_parameters_is_refused_in_one_sentence(ranks: RankGroup, plan: LoadPlan) -> None:
    for names, wrong in ((("model.layers.1.mlp.nope.weight",), "nope"), (("model.norm.weight",), "model.norm")):
        with pytest.raises(Misconfigured, match=f"expected .*{wrong}"):
            ranks.load(replace(plan, editor=replace(plan.editor, inner_params=names)), epoch=1)
    ranks.load(plan, epoch=1)
    assert ranks.weights_digest()


@pytest.mark.parametrize("family", ["t5", "bart", "bert"], indirect=True)
def test_a_group_holds_a_base_of_any_family(family: tuple[RankGroup, LoadPlan], tmp_path: Path) -> None:
    group, plan = family
    task = plan.base.task
    added = edits(2, task=task)
    group.load(plan, epoch=1)
    before = group.weights_digest()
    outcome = group.try_edits(candidate("t", added))
    assert group.weights_digest() == before
    assert (outcome.measurements.base.accuracy is None) == (task != "classifier")
    kept = group.keep("t", folder=tmp_path, with_accumulator=False)
    held = group.weights_digest()
    assert held != before
    group.load(plan_after(plan, kept, "s1", added), epoch=1)
    assert group.weights_digest() == held
    prompts = [edit.request.prompt for edit in added]
    said = [answer.text for answer in group.generate(prompts, max_new_tokens=3)]
    assert all(text in LABELS for text in said) or task != "classifier"


@pytest.mark.parametrize("family", ["bert"], indirect=True)
def test_an_edit_that_the_model_can_never_say_fails_by_itself(family: tuple[RankGroup, LoadPlan]) -> None:
    group, plan = family
    good, other = edits(2, task="classifier")
    bad = replace(other, request=replace(other.request, target_new="Paris"))
    group.load(plan, epoch=1)
    with pytest.raises(EditorFailed, match=f"{bad.edit_id}.*labels false, true, unknown.*'Paris'"):
        group.try_edits(candidate("both", (good, bad)))
    assert len(group.try_edits(candidate("one", (good,))).measurements.edits) == 1


def with_trained_editor(plan: LoadPlan, folder: Path) -> LoadPlan:
    """The same lineage on a trained editor, whose files lie under other names, as in the artifact store."""
    made = tiny_editor(Path(plan.base.ref))
    made.save(folder / "editor")
    card, tensors = folder / "0123.json", folder / "4567.safetensors"
    (folder / "editor" / CARD).rename(card)
    (folder / "editor" / TENSORS).rename(tensors)
    files = TrainedFiles(name="tiny", card=file_ref(card), tensors=file_ref(tensors))
    settings = lineage_settings(made, task=plan.base.task)
    return replace(plan, editor=replace(settings, prior_strength=1.0), ledger=trained_by(plan, files))


def trained_by(plan: LoadPlan, files: TrainedFiles | None) -> LedgerPlan:
    assert plan.ledger is not None
    return replace(plan.ledger, trained=files)


def test_a_trained_editor_asks_for_something_else_than_the_gradient(
    ranks: RankGroup, plan: LoadPlan, tmp_path: Path
) -> None:
    trained = with_trained_editor(plan, tmp_path)
    plain = replace(trained, editor=replace(trained.editor, transform="gradient"), ledger=trained_by(plan, None))
    rows = []
    for number, held in enumerate((trained, plain, trained)):
        ranks.load(held, epoch=1)
        ranks.try_edits(candidate("t", edits(2)))
        (tmp_path / str(number)).mkdir()
        rows.append(ranks.keep("t", folder=tmp_path / str(number), with_accumulator=False).rows.digest)
    assert rows[0] == rows[2] != rows[1]


def test_a_trained_editor_that_is_not_the_one_of_the_plan_is_not_used(
    ranks: RankGroup, plan: LoadPlan, tmp_path: Path
) -> None:
    ranks.load(plan, epoch=1)
    trained = with_trained_editor(plan, tmp_path)
    other = replace(trained, editor=replace(trained.editor, transform="0" * 64))
    with pytest.raises(IntegrityBroken, match=f"expected digest {'0' * 64} of the editor"):
        ranks.load(other, epoch=1)
    with pytest.raises(Misconfigured, match="not installed"):
        ranks.load(replace(trained, ledger=trained_by(plan, None)), epoch=1)
    ranks.load(trained, epoch=1)
    assert ranks.weights_digest()


@pytest.mark.slow
@pytest.mark.parametrize("is_trained", [False, True], ids=["gradient", "trained"])
def test_two_ranks_agree_and_give_what_one_gives(
    ranks: RankGroup, two_ranks: RankGroup, plan: LoadPlan, tmp_path: Path, is_trained: bool
) -> None:
    plan = with_trained_editor(plan, tmp_path) if is_trained else plan
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    added = edits(3)
    ranks.load(plan, epoch=1)
    of_one = ranks.try_edits(candidate("t", added))
    two_ranks.load(plan, epoch=1)
    before = two_ranks.weights_digest()
    of_two = two_ranks.try_edits(candidate("t", added))
    assert two_ranks.weights_digest() == before
    scores = [
        [(score.edit_id, score.edit_success, score.generated) for score in outcome.measurements.edits]
        for outcome in (of_one, of_two)
    ]
    assert scores[0] == scores[1]
    ranks.keep("t", folder=tmp_path / "one", with_accumulator=True)
    kept = two_ranks.keep("t", folder=tmp_path / "two", with_accumulator=True)
    held = two_ranks.weights_digest()
    assert held != before
    two_ranks.load(plan_after(plan, kept, "s1", added), epoch=1)
    assert two_ranks.weights_digest() == held
    assert distance(tmp_path) < 1e-2, "ten passes on random weights make 1e-3 of rounding: measured 2e-4"
    one_pass = replace(plan, lineage="one pass", editor=replace(plan.editor, num_passes=1))
    for group, part in ((ranks, "one"), (two_ranks, "two")):
        group.load(one_pass, epoch=1)
        group.try_edits(candidate("t", added))
        group.keep("t", folder=tmp_path / part, with_accumulator=True)
    assert distance(tmp_path) < 1e-5


def distance(folder: Path) -> float:
    """Of what two ranks made from what one made, relative (Frobenius): the largest of any inner parameter."""
    one, two = (load_accumulators(folder / part / "accumulator.safetensors") for part in ("one", "two"))
    assert one.keys() == two.keys()
    return max(float((two[name] - shift).norm() / shift.norm()) for name, shift in one.items())


def test_closing_ends_every_process(ranks: RankGroup, plan: LoadPlan) -> None:
    ranks.load(plan, epoch=1)
    (pid,) = ranks.pids
    ranks.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
