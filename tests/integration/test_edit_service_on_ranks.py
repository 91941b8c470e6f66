"""The edit service around two real ranks that die in the middle of a batch: it finishes later, and nothing twice."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from editors.weights.loading import load_base
from pipeline import bootstrap
from pipeline.adapters.logins import Login
from pipeline.config import Settings
from pipeline.domain.audit import AuditAction
from pipeline.domain.errors import EngineFailed
from pipeline.domain.gates import GatePolicy
from pipeline.domain.rank_api import LoadPlan
from pipeline.entrypoints.cli.app import app
from pipeline.entrypoints.preparation import Prepared, make_lineage
from tests.support.factories import NOON
from tests.support.processes import is_gone
from tests.support.store_rig import LINEAGE, StoreRig
from tests.support.tiny_lineage import edits, make_tiny_lineage
from tests.support.waiting import eventually, patience
from workers.controller.group import RankGroup
from workers.controller.rank_processes import RankSpec

pytestmark = pytest.mark.usefixtures("forks_ranks")

Command = Callable[..., str]
LENIENT = GatePolicy(
    edit_success_min=0.0,
    free_success_min=0.0,
    locality_drop_max=1.0,
    locality_kl_max=100.0,
    edit_locality_kl_max=100.0,
    generalization_min=0.0,
    chat_success_min=0.0,
    other_subjects_taken_max=None,
    other_subjects_kl_max=None,
    retention_drop_max=1.0,
    perplexity_rise_max=1e6,
    change_norm_max=1e6,
    locality_floor=0.0,
    retention_floor=0.0,
    perplexity_ceiling=1e6,
)
"""What becomes of random weights is not the question here."""


@pytest.fixture
def plan(tmp_path: Path) -> LoadPlan:
    """A base with everything that was measured of it."""
    return make_tiny_lineage(tmp_path / "lineage")


@pytest.fixture
def settings(postgres_url: str, tmp_path: Path, pools_close: None) -> Settings:
    """Of an edit worker with two ranks."""
    return Settings(
        database_url=postgres_url,
        database_role=Login.editor,
        artifact_root=tmp_path / "artifacts",
        batch_max_wait=timedelta(0),
        num_ranks=2,
    )


@pytest.fixture
def rig(postgres_url: str, tmp_path: Path) -> Iterator[StoreRig]:
    """Its database, to look into."""
    made = StoreRig(url=postgres_url, folder=tmp_path)
    yield made
    made.close()


@pytest.fixture
def corrigenda(postgres_url: str, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command in this process, as a person at the same database does; returns what it says in one line."""
    for name in [name for name in os.environ if name.startswith("CORRIGENDA_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setenv("CORRIGENDA_DATABASE_URL", postgres_url)
    monkeypatch.setenv("CORRIGENDA_DATABASE_ROLE", Login.console)
    monkeypatch.setenv("CORRIGENDA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CORRIGENDA_ARTIFACT_ROOT", str(settings.artifact_root))

    def said(*words: str) -> str:
        result = CliRunner().invoke(app, list(words))
        assert result.exit_code == 0, result.output
        return " ".join(result.stdout.split())

    return said


@pytest.mark.slow
@pytest.mark.parametrize("failpoint", ["rank:before_apply", "rank:before_files"])
def test_a_batch_whose_ranks_are_killed_is_finished_by_the_next_doorbell(
    settings: Settings, rig: StoreRig, plan: LoadPlan, tmp_path: Path, failpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = bootstrap.stores(settings)
    console = bootstrap.stores(settings.model_copy(update={"database_role": Login.console}))
    make_lineage(console, LINEAGE, prepared(plan), batch_size=3, policy=LENIENT)
    wanted = [
        rig.submit(replace(edit.request, request_id=f"r{place}", occurred_at=NOON + timedelta(minutes=place)))[0]
        for place, edit in enumerate(edits(3))
    ]
    spec = RankSpec(num_ranks=settings.num_ranks, log=tmp_path / "ranks.log")
    with RankGroup(spec, command_timeout=timedelta(seconds=patience())) as group:
        service = bootstrap.edit_service(settings, group)
        monkeypatch.setenv("CORRIGENDA_FAILPOINT", failpoint)
        group.start()
        eventually(lambda: len(group.pids) == 2, "two ranks")
        killed = group.pids
        with pytest.raises(EngineFailed, match="ended with status"):
            service.run(LINEAGE)
        assert all(is_gone(pid) for pid in killed)
        assert {rig.status(edit_id) for edit_id in wanted} == {"received"}
        assert rig.lineage().head_id is None
        monkeypatch.delenv("CORRIGENDA_FAILPOINT")
        rig.make_due()
        service.run(LINEAGE)
        head = rig.lineage()
        made = {edit_id for edit_id in wanted if rig.status(edit_id) == "snapshotted"}
        assert made
        assert {rig.status(edit_id) for edit_id in set(wanted) - made} <= {"rejected"}
        assert rig.active(head.head_id) == made
        assert 1 <= head.head_seq <= len(made), "what failed together is tried again with fewer"
        assert all(rig.actions(edit_id).count("edit:snapshotted") == 1 for edit_id in made)
        report = kept.snapshots.report(kept.snapshots.snapshot(LINEAGE, "head").gate_report_id)
        asked = [other["prompt"] for score in report["measurements"]["edits"] for other in score["other_subjects"]]
        assert asked, "what ranks agree on about other subjects is kept"
        check_one_rank_holds_the_same(kept.snapshots.load_plan(LINEAGE, snapshot_id=head.head_id), group, tmp_path)


def test_a_ledger_is_solved_anew_rejected_approved_and_undone_by_command_and_the_weights_follow(
    settings: Settings, rig: StoreRig, plan: LoadPlan, corrigenda: Command, tmp_path: Path
) -> None:
    settings = settings.model_copy(update={"num_ranks": 1})
    console = bootstrap.stores(settings.model_copy(update={"database_role": Login.console}))
    make_lineage(console, LINEAGE, prepared(plan), batch_size=2, policy=LENIENT)
    for place, edit in enumerate(edits(4)):
        rig.submit(replace(edit.request, request_id=f"r{place}", occurred_at=NOON + timedelta(minutes=place)))
    with RankGroup(RankSpec(log=tmp_path / "ranks.log"), command_timeout=timedelta(seconds=patience())) as group:
        service = bootstrap.edit_service(settings, group)
        made = service.run(LINEAGE)
        assert made >= 2
        held = rig.active(rig.lineage().head_id)
        corrigenda("approve", "head", "-l", LINEAGE)
        corrigenda("lineage", "rekey", LINEAGE, "--strength", "3", "--reason", "a long stream")
        assert service.run(LINEAGE) == 1
        anew = console.snapshots.snapshot(LINEAGE, "head")
        assert anew.accumulator is not None
        assert rig.active(anew.snapshot_id) == held
        told = corrigenda("status")
        assert f"prior strength 3 (1 when it was made); keys read again in snapshot {anew.seq}, 0 edits ago" in told
        assert re.search(r"prior_strength +3 .*solved_anew", corrigenda("show", "head"))
        corrigenda("reject", "head", "-l", LINEAGE, "--reason", "worse")
        assert service.run(LINEAGE) == 1
        assert f"prior strength {plan.editor.prior_strength:.4g}" not in corrigenda("status")
        corrigenda("approve", "head", "-l", LINEAGE)

        corrigenda("lineage", "rekey", LINEAGE, "--strength", "3")
        assert service.run(LINEAGE) == 1
        corrigenda("approve", "head", "-l", LINEAGE)
        live = rig.lineage().head_seq
        corrigenda("rollback", str(made), "-l", LINEAGE, "--reason", "worse")
        assert f"--undo {live}" in corrigenda("status")
        corrigenda("lineage", "rekey", LINEAGE, "--undo", str(live))
        assert service.run(LINEAGE) == 1
        head = rig.lineage()
        assert (head.head_seq, head.prior_strength, head.hold) == (made + 4, plan.editor.prior_strength, None)
        assert rig.active(head.head_id) == held
        for seq in (made, made + 2, made + 4):
            snapshot = console.snapshots.snapshot(LINEAGE, str(seq))
            group.load(console.snapshots.load_plan(LINEAGE, snapshot_id=snapshot.snapshot_id), epoch=99)
            group.export(tmp_path / str(seq))
    before, *after = (load_base(tmp_path / str(seq)).module.state_dict() for seq in (made, made + 2, made + 4))
    for name, weight in before.items():
        assert all(float((one[name] - weight).norm()) <= 1e-5 * float(weight.norm()) for one in after)
    created = [one.payload for one in rig.audit.events(LINEAGE) if one.action is AuditAction.snapshot_created]
    assert ["solved_anew" in payload for payload in created] == [False] * made + [True] * 4
    assert '"prior_strength":3' in created[made]
    assert '"reason":"a long stream"' in created[made]


def test_a_fact_is_made_again_with_another_about_its_subject_and_once_that_is_reverted(
    settings: Settings, rig: StoreRig, plan: LoadPlan, corrigenda: Command, tmp_path: Path
) -> None:
    settings = settings.model_copy(update={"num_ranks": 1})
    console = bootstrap.stores(settings.model_copy(update={"database_role": Login.console}))
    editor = replace(plan.editor, subject_params=plan.editor.inner_params[:1], frames_per_pass=2)
    make_lineage(console, LINEAGE, prepared(replace(plan, editor=editor)), batch_size=4, policy=LENIENT)
    first, other = (edit.request for edit in edits(2))
    second = replace(
        first,
        request_id="language",
        target_new="Paris",
        prompt=f"the language of {first.subject} is",
        relation="language",
    )

    def remade() -> list[list[str]]:
        lines = [one for one in rig.audit.events(LINEAGE) if one.action is AuditAction.snapshot_created]
        return [json.loads(line.payload).get("remade", []) for line in lines]

    with RankGroup(RankSpec(log=tmp_path / "ranks.log"), command_timeout=timedelta(seconds=patience())) as group:
        service = bootstrap.edit_service(settings, group)
        of_first, _ = rig.submit(first, other)
        assert service.run(LINEAGE) == 1
        [of_second] = rig.submit(second)
        assert service.run(LINEAGE) == 1, rig.edit(of_second)["reason"]
        [report] = rig.query("SELECT report FROM gate_reports ORDER BY created_at DESC LIMIT 1")
        assert report["report"]["measurements"]["candidate"]["num_retained"] == 2, "what was made again is asked too"
        rig.review.request_revert(LINEAGE, [of_first], actor="cli:tester", reason="wrong")
        assert service.run(LINEAGE) == 1
        assert remade() == [[], [of_first], [of_second]]
        told = corrigenda("show", "head")
        assert re.search(f"left +{first.request_id}: {first.prompt} {first.target_new}", told)
        assert re.search(f"made again +language: {second.prompt} Paris", told)
        head = console.snapshots.snapshot(LINEAGE, "head")
        lived_on = group.weights_digest()
        plan_of_head = replace(
            console.snapshots.load_plan(LINEAGE, snapshot_id=head.snapshot_id),
            ledger=console.snapshots.ledger_plan(LINEAGE, snapshot_id=head.snapshot_id),
        )
        assert plan_of_head.ledger is not None
        assert [run.edit_ids for run in plan_of_head.ledger.rows][-1] == (of_second,)
        group.free()
        group.load(plan_of_head, epoch=99)
        assert group.weights_digest() == lived_on


def prepared(plan: LoadPlan) -> Prepared:
    """What `prepare_base` would have given."""
    assert plan.ledger is not None
    return Prepared(
        base=plan.base,
        editor=plan.editor,
        prior=Path(plan.ledger.prior.path),
        reference=Path(plan.ledger.reference.path),
        trained=None,
    )


def check_one_rank_holds_the_same(head: LoadPlan, two: RankGroup, folder: Path) -> None:
    """Load a snapshot of two ranks on one, write the model out on both, and compare the weights."""
    with RankGroup(RankSpec(log=folder / "one.log"), command_timeout=timedelta(seconds=patience())) as one:
        for name, group in (("one", one), ("two", two)):
            group.load(head, epoch=99)
            group.export(folder / name)
    of_one, of_two = (load_base(folder / name).module.state_dict() for name in ("one", "two"))
    for name, weight in of_one.items():
        assert float((of_two[name] - weight).norm()) <= 1e-6 * float(weight.norm())
