"""Ledgers that are solved anew, in the database: asked for or owed by upkeep, committed, refused, undone."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest
from psycopg.errors import CheckViolation
from sqlalchemy import text

from pipeline.adapters.logins import Login
from pipeline.adapters.sql.active_sets import active_among, end_activations, move_rows
from pipeline.adapters.sql.database.engine import transaction
from pipeline.adapters.sql.database.rows import artifact_json
from pipeline.adapters.sql.history import SqlHistoryStore
from pipeline.domain.batches import EditBatch
from pipeline.domain.errors import InvalidInput
from pipeline.domain.ledger.upkeep import RETRY_AFTER, Resolving, Standing, Upkeep, due, in_force
from pipeline.domain.lineages import Lease, Removal
from pipeline.domain.review.approvals import Decision
from pipeline.domain.snapshots import Snapshot
from pipeline.services.ports import NewSnapshot
from tests.support.store_rig import LINEAGE, StoreRig, failing_report


def with_kl(new: NewSnapshot, suite_kl: float) -> NewSnapshot:
    """A snapshot whose gates measured this divergence of the suite."""
    measured = new.report.measurements
    candidate = replace(measured.candidate, suite_kl=suite_kl)
    return replace(new, report=replace(new.report, measurements=replace(measured, candidate=candidate)))


def commit_edit(rig: StoreRig, lease: Lease, name: str, *, suite_kl: float = 0.0) -> Snapshot:
    rig.correct(name)
    batch = rig.claim(lease)
    assert isinstance(batch, EditBatch)
    return rig.snapshots.commit(lease, with_kl(rig.new_snapshot(batch=batch), suite_kl))


def owed(rig: StoreRig, lease: Lease) -> Removal:
    removal = rig.queue.next_removal(lease)
    assert removal is not None
    return removal


def commit_rekeyed(rig: StoreRig, lease: Lease, *, strength: float | None, edit_ids: tuple[str, ...]) -> Snapshot:
    """Carry out the oldest piece of work: the rows of some edits are in its file from then on."""
    new = rig.new_snapshot(removal=owed(rig, lease), parent_id=rig.lineage().head_id, with_accumulator=True)
    return rig.snapshots.commit(lease, replace(new, prior_strength=strength, rewritten_ids=edit_ids))


def files_of(rig: StoreRig) -> list[str]:
    """Digest of the file that each edit of the head has its rows in."""
    rows = rig.snapshots.ledger_plan(LINEAGE, snapshot_id=rig.lineage().head_id).rows
    return [run.file.digest for run in rows for _ in run.edit_ids]


def test_asked_for_twice_it_is_owed_once_and_committed_with_its_strength_and_rows(rig: StoreRig) -> None:
    lease = rig.acquire()
    ids = tuple(rig.edit_id(name) for name in "ab" if commit_edit(rig, lease, name))
    before = files_of(rig)
    asked = Resolving(rekeys=True, prior_strength=1500.0)
    first, _ = rig.review.request_resolving(LINEAGE, asked, actor="cli:tester", reason="long")
    other = Resolving(prior_strength=2.0)
    again = rig.review.request_resolving(LINEAGE, other, actor="cli:tester", reason="")
    assert again == (first, replace(asked, place=2)), "what is owed is told, not what was asked for"
    removal = owed(rig, lease)
    assert removal.edit_ids == ()
    assert removal.resolving == replace(asked, place=2)
    rekeyed = commit_rekeyed(rig, lease, strength=1500.0, edit_ids=ids)
    assert rig.active(rekeyed.snapshot_id) == set(ids)
    assert len(set(files_of(rig)) - set(before)) == 1
    assert rig.queue.next_removal(lease) is None
    assert rig.lineage().prior_strength == 1500.0
    assert commit_edit(rig, lease, "c").num_active == 3
    assert rig.snapshots.ledger_plan(LINEAGE, snapshot_id=rig.lineage().head_id).prior_strength == 1500.0
    assert [edit.edit_id for edit in rig.queue.active(LINEAGE)] == [*ids, rig.edit_id("c")]
    assert rig.actions(first) == ["rekeying:requested"]


def test_more_edits_than_a_statement_has_parameters_can_be_rewritten(rig: StoreRig) -> None:
    lease = rig.acquire()
    commit_edit(rig, lease, "a")
    before = files_of(rig)
    ids = (rig.edit_id("a"), *(str(UUID(int=number)) for number in range(70_000)))
    with transaction(rig.engines[Login.editor]) as connection:
        move_rows(connection, ids, artifact_json(rig.file("rows")))
        assert active_among(connection, ids) == {ids[0]}
        assert end_activations(connection, ids[1:], seq=9) == 0
    assert files_of(rig) != before


def test_without_edits_in_the_head_there_is_nothing_to_solve(rig: StoreRig) -> None:
    with pytest.raises(InvalidInput, match="whose head holds edits"):
        rig.review.request_resolving(LINEAGE, Resolving(rekeys=True), actor="cli:tester", reason="")


def test_what_its_gates_refuse_leaves_the_head(rig: StoreRig) -> None:
    lease = rig.acquire()
    head = commit_edit(rig, lease, "a")
    removal_id, _ = rig.review.request_resolving(LINEAGE, Resolving(rekeys=True), actor="cli:tester", reason="")
    rig.queue.fail_removal(lease, owed(rig, lease), reason="retention 0.2", report=failing_report([rig.edit_id("a")]))
    assert rig.lineage().head_id == head.snapshot_id
    assert rig.actions(removal_id) == ["rekeying:requested", "rekeying:failed"]


def test_a_rejected_one_is_undone_with_the_rows_and_the_strength_of_before(rig: StoreRig) -> None:
    lease = rig.acquire()
    ids = tuple(rig.edit_id(name) for name in "ab" if commit_edit(rig, lease, name))
    before = files_of(rig)
    rig.review.request_resolving(LINEAGE, Resolving(rekeys=True), actor="cli:tester", reason="")
    rekeyed = commit_rekeyed(rig, lease, strength=2000.0, edit_ids=ids)
    above = commit_edit(rig, lease, "c")
    later = files_of(rig)[-1]
    assert rig.decide(rekeyed, Decision.rejected).is_accepted
    assert rig.snapshots.snapshot(LINEAGE, above.snapshot_id).status == "retired"
    undo = owed(rig, lease)
    assert undo.resolving == Resolving(undoes=rekeyed.snapshot_id)
    strength, rows = rig.snapshots.ledger_before(LINEAGE, undone_id=rekeyed.snapshot_id)
    assert strength is None
    assert [(run.edit_ids, run.file.digest) for run in rows] == [
        ((ids[0],), before[0]),
        ((ids[1],), before[1]),
        ((rig.edit_id("c"),), later),
    ]
    back = commit_rekeyed(rig, lease, strength=1000.0, edit_ids=(*ids, rig.edit_id("c")))
    assert (back.status, back.num_active) == ("candidate", 3)
    assert rig.lineage().prior_strength == 1000.0


def test_an_undo_keeps_the_rows_of_edits_that_were_made_again_since(rig: StoreRig) -> None:
    lease = rig.acquire()
    ids = tuple(rig.edit_id(name) for name in "ab" if commit_edit(rig, lease, name))
    before = files_of(rig)
    rig.review.request_resolving(LINEAGE, Resolving(rekeys=True), actor="cli:tester", reason="")
    rekeyed = commit_rekeyed(rig, lease, strength=None, edit_ids=ids)
    rig.correct("c")
    again = replace(rig.new_snapshot(batch=rig.claim(lease)), remade_ids=ids[:1])
    rig.snapshots.commit(lease, again)
    _, rows = rig.snapshots.ledger_before(LINEAGE, undone_id=rekeyed.snapshot_id)
    assert [(run.edit_ids, run.file.digest) for run in rows] == [
        ((ids[1],), before[1]),
        ((ids[0], rig.edit_id("c")), again.rows.digest),
    ]


def rekeyed_head(rig: StoreRig, lease: Lease) -> tuple[Snapshot, tuple[str, ...]]:
    """A snapshot that was solved anew, and the edits that it holds."""
    ids = (rig.edit_id("a"),) if commit_edit(rig, lease, "a") else ()
    rig.review.request_resolving(LINEAGE, Resolving(rekeys=True), actor="cli:tester", reason="")
    return commit_rekeyed(rig, lease, strength=2000.0, edit_ids=ids), ids


def test_an_undo_that_fails_holds_the_lineage_and_another_ledger_ends_that(rig: StoreRig) -> None:
    lease = rig.acquire()
    rekeyed, ids = rekeyed_head(rig, lease)
    undo = Resolving(undoes=rekeyed.snapshot_id)
    with pytest.raises(InvalidInput, match="got 2, a candidate: reject it"):
        rig.review.request_resolving(LINEAGE, undo, actor="cli:tester", reason="")
    other, _ = rig.review.request_resolving(LINEAGE, Resolving(prior_strength=9.0), actor="cli:tester", reason="")
    rig.correct("b")
    batch = rig.claim(lease)
    assert rig.decide(rekeyed, Decision.rejected).is_accepted
    first = owed(rig, lease)
    assert first.resolving == undo
    assert rig.actions(other) == ["rekeying:requested", "rekeying:failed"], "the undo would undo it unseen"
    with pytest.raises(InvalidInput, match="got requested"):
        rig.review.request_resolving(LINEAGE, undo, actor="cli:tester", reason="")
    rig.queue.fail_removal(lease, first, reason="retention 0.2", report=failing_report(ids))
    assert rig.lineage().hold == (
        "the ledger before rejected snapshot 2 did not come back: retention 0.2; `lineage rekey facts` solves it anew, "
        "with `--undo 2` that is tried again, `lineage resume` goes on with the rejected one"
    )
    under_way = rig.snapshots.commit(lease, rig.new_snapshot(batch=batch))
    assert under_way.status == "retired", "it stands on what was rejected"
    rig.correct("c")
    assert rig.claim(lease) is None, "edits wait for a person"
    rig.review.request_resolving(LINEAGE, undo, actor="cli:tester", reason="once more")
    assert commit_rekeyed(rig, lease, strength=1000.0, edit_ids=ids).status == "candidate"
    assert rig.lineage().hold is None
    assert commit_edit(rig, lease, "d").status == "candidate"


def test_where_no_ledger_passes_a_person_may_go_on_with_the_rejected_one(rig: StoreRig) -> None:
    lease = rig.acquire()
    rekeyed, ids = rekeyed_head(rig, lease)
    assert rig.decide(rekeyed, Decision.rejected).is_accepted
    rig.queue.fail_removal(lease, owed(rig, lease), reason="retention 0.2", report=failing_report(ids))
    rig.lineages.resume(LINEAGE, actor="cli:tester")
    head = commit_edit(rig, lease, "b")
    assert head.status == "candidate"
    assert rig.decide(head, Decision.approved).is_accepted


def test_what_takes_a_rejected_ledger_out_cannot_be_rejected(rig: StoreRig) -> None:
    lease = rig.acquire()
    rekeyed, ids = rekeyed_head(rig, lease)
    assert rig.decide(rekeyed, Decision.rejected).is_accepted
    undone = commit_rekeyed(rig, lease, strength=1000.0, edit_ids=ids)
    outcome = rig.decide(undone, Decision.rejected)
    assert not outcome.is_accepted
    assert outcome.reason.startswith("it takes out the ledger of snapshot 2, which was rejected")
    rig.review.request_resolving(LINEAGE, Resolving(prior_strength=9.0), actor="cli:tester", reason="")
    other = commit_rekeyed(rig, lease, strength=9.0, edit_ids=())
    assert rig.decide(other, Decision.approved).is_accepted


def test_a_ledger_that_went_live_is_undone_when_a_person_asks_and_that_lifts_the_hold_of_a_roll_back(
    rig: StoreRig,
) -> None:
    lease = rig.acquire()
    first = commit_edit(rig, lease, "a")
    assert rig.decide(first, Decision.approved).is_accepted
    before = files_of(rig)
    rig.review.request_resolving(LINEAGE, Resolving(rekeys=True), actor="cli:tester", reason="")
    rekeyed = commit_rekeyed(rig, lease, strength=2000.0, edit_ids=(rig.edit_id("a"),))
    assert rig.decide(rekeyed, Decision.approved).is_accepted
    assert rig.decide(first, Decision.rolled_back).is_accepted
    assert "`lineage rekey facts --undo 2` brings the ledger before snapshot 2 back" in str(rig.lineage().hold)
    asked = Resolving(undoes=rekeyed.snapshot_id)
    rig.review.request_resolving(LINEAGE, asked, actor="cli:tester", reason="worse")
    strength, rows = rig.snapshots.ledger_before(LINEAGE, undone_id=rekeyed.snapshot_id)
    assert (strength, [run.file.digest for run in rows]) == (None, before)
    undone = commit_rekeyed(rig, lease, strength=1000.0, edit_ids=(rig.edit_id("a"),))
    assert rig.lineage().hold is None
    with pytest.raises(InvalidInput, match="got that of snapshot 2, undone since"):
        rig.review.request_resolving(LINEAGE, asked, actor="cli:tester", reason="")
    assert rig.decide(undone, Decision.rejected).is_accepted, "the ledger that it undid was approved once"
    assert owed(rig, lease).resolving == Resolving(undoes=undone.snapshot_id)


def test_of_two_ledgers_that_are_to_come_back_the_older_one_does(rig: StoreRig) -> None:
    lease = rig.acquire()
    rekeyed, ids = rekeyed_head(rig, lease)
    rig.review.request_resolving(LINEAGE, Resolving(rekeys=True), actor="cli:tester", reason="")
    second = commit_rekeyed(rig, lease, strength=2000.0, edit_ids=ids)
    assert rig.decide(second, Decision.rejected).is_accepted
    assert rig.decide(rekeyed, Decision.rejected).is_accepted
    assert owed(rig, lease).resolving == Resolving(undoes=rekeyed.snapshot_id)
    assert commit_rekeyed(rig, lease, strength=1000.0, edit_ids=ids).status == "candidate"
    assert rig.queue.next_removal(lease) is None
    assert rig.lineage().hold is None


def test_upkeep_does_not_ask_again_for_the_strength_that_was_taken_back(rig: StoreRig) -> None:
    lease = rig.acquire()
    rig.lineages.set_upkeep(LINEAGE, Upkeep(suite_kl_budget=0.1), actor="cli:tester")
    commit_edit(rig, lease, "a", suite_kl=0.11)
    stronger = commit_rekeyed(rig, lease, strength=1500.0, edit_ids=())
    assert rig.decide(stronger, Decision.approved).is_accepted
    asked = Resolving(undoes=stronger.snapshot_id)
    rig.review.request_resolving(LINEAGE, asked, actor="cli:tester", reason="worse")
    commit_rekeyed(rig, lease, strength=1000.0, edit_ids=())
    commit_edit(rig, lease, "b", suite_kl=0.2)
    assert rig.queue.next_removal(lease) is None


def test_upkeep_owes_new_keys_after_so_many_edits_under_the_worker_s_own_login(rig: StoreRig) -> None:
    lease = rig.acquire()
    assert rig.lineages.set_upkeep(LINEAGE, Upkeep(rekey_every=2), actor="cli:tester") == Upkeep()
    assert rig.lineage().upkeep == Upkeep(rekey_every=2)
    commit_edit(rig, lease, "a")
    assert rig.queue.next_removal(lease) is None
    commit_edit(rig, lease, "b")
    assert owed(rig, lease).resolving == Resolving(rekeys=True, place=2)
    commit_rekeyed(rig, lease, strength=None, edit_ids=())
    commit_edit(rig, lease, "c")
    assert rig.queue.next_removal(lease) is None
    commit_edit(rig, lease, "d")
    assert owed(rig, lease).resolving == Resolving(rekeys=True, place=4)


def test_who_had_a_ledger_solved_anew_why_and_on_what_is_told_to_auditors_and_reviewers(rig: StoreRig) -> None:
    lease = rig.acquire()
    rekeyed, ids = rekeyed_head(rig, lease)
    rig.lineages.set_upkeep(LINEAGE, Upkeep(rekey_every=2), actor="cli:tester")
    commit_edit(rig, lease, "b")
    history = SqlHistoryStore(rig.engines[Login.console])
    standing = history.ledger(LINEAGE)
    assert (standing.rekeyed_seq, standing.rekeyed_at, standing.edits_since) == (2, rekeyed.created_at, 1)
    commit_edit(rig, lease, "c")
    [due_again] = history.ledger(LINEAGE).owed
    assert due_again.reason == "upkeep: 2 edits since keys were read, 2 at most"
    assert rig.decide(rekeyed, Decision.rejected).is_accepted
    back = commit_rekeyed(rig, lease, strength=1000.0, edit_ids=ids)
    assert history.ledger(LINEAGE).rekeyed_seq is None, "keys are those of before again"
    with transaction(rig.engines[Login.auditor]) as connection:
        query = text("SELECT * FROM ledger_history WHERE lineage = 'facts' ORDER BY asked_at")
        rows = connection.execute(query).mappings().all()
    shown = [(row["asked_by"], row["status"], row["from_seq"], row["seq"], row["undoes_seq"]) for row in rows]
    assert shown == [
        ("cli:tester", "done", 1, 2, None),
        (lease.owner, "failed", None, None, None),
        ("cli:reviewer (claimed)", "done", 4, 5, 2),
    ]
    entry = rig.mirror.entry(back.snapshot_id)
    assert entry.around.work == (
        "the ledger before snapshot 2 brought back, as cli:reviewer (claimed) asked: "
        "snapshot 2 was rejected: looked at it"
    )
    created = [event.payload for event in rig.audit.events(LINEAGE, limit=1000) if event.subject == back.snapshot_id]
    assert '"asked_by":"cli:reviewer (claimed)"' in created[0]


def test_upkeep_makes_the_prior_stronger_where_the_suite_passes_its_budget(rig: StoreRig) -> None:
    lease = rig.acquire()
    rig.lineages.set_upkeep(LINEAGE, Upkeep(suite_kl_budget=0.1), actor="cli:tester")
    commit_edit(rig, lease, "a", suite_kl=0.09)
    assert rig.queue.next_removal(lease) is None
    commit_edit(rig, lease, "b", suite_kl=0.11)
    removal = owed(rig, lease)
    assert removal.resolving == Resolving(prior_strength=1500.0, place=2)
    rig.queue.fail_removal(lease, removal, reason="retention 0.2", report=failing_report([rig.edit_id("a")]))
    commit_edit(rig, lease, "c", suite_kl=0.2)
    assert rig.queue.next_removal(lease) is None, "what gates refused is not tried again at once"


def test_upkeep_does_not_ask_again_for_the_strength_that_a_person_rejected(rig: StoreRig) -> None:
    lease = rig.acquire()
    rig.lineages.set_upkeep(LINEAGE, Upkeep(suite_kl_budget=0.1), actor="cli:tester")
    commit_edit(rig, lease, "a", suite_kl=0.11)
    stronger = commit_rekeyed(rig, lease, strength=1500.0, edit_ids=(rig.edit_id("a"),))
    assert rig.snapshots.ledger_before(LINEAGE, undone_id=stronger.snapshot_id) == (None, ()), "its rows have stayed"
    assert rig.decide(stronger, Decision.rejected).is_accepted
    commit_rekeyed(rig, lease, strength=1000.0, edit_ids=())
    commit_edit(rig, lease, "b", suite_kl=0.2)
    assert rig.queue.next_removal(lease) is None


def test_upkeep_remembers_a_rekeying_behind_much_other_work(rig: StoreRig) -> None:
    lease = rig.acquire()
    commit_edit(rig, lease, "a")
    rig.query(
        "INSERT INTO removals (lineage_id, actor, reason, status, resolving, requested_at)"
        " SELECT lineage_id, 'w', '', 'failed', jsonb_build_object('rekeys', n = 0, 'place', 1),"
        " clock_timestamp() + n * interval '1 second' FROM lineages, generate_series(0, 40) n"
    )
    rig.lineages.set_upkeep(LINEAGE, Upkeep(rekey_every=2), actor="cli:tester")
    commit_edit(rig, lease, "b")
    assert rig.queue.next_removal(lease) is None, "one edit has come in since"
    commit_edit(rig, lease, "c")
    assert owed(rig, lease).resolving == Resolving(rekeys=True, place=3)


def test_an_edit_worker_may_not_owe_the_removal_of_an_edit(rig: StoreRig) -> None:
    insert = (
        "INSERT INTO removals (lineage_id, actor, reason, edit_ids) SELECT lineage_id, 'x', '', '[\"e\"]' FROM lineages"
    )
    with pytest.raises(Exception, match="permission denied"), transaction(rig.engines[Login.editor]) as connection:
        connection.exec_driver_sql(insert)


def test_a_worker_of_before_neither_ends_such_work_unmade_nor_loses_the_strength(rig: StoreRig) -> None:
    lease = rig.acquire()
    commit_edit(rig, lease, "a")
    rig.review.request_resolving(LINEAGE, Resolving(prior_strength=9.0), actor="cli:tester", reason="")
    with pytest.raises(CheckViolation, match="solved_anew_is_made"):
        rig.query("UPDATE removals SET status = 'done', outcome = 'its edits had left the head before'")
    stronger = commit_rekeyed(rig, lease, strength=9.0, edit_ids=())
    columns = "lineage_id, basis, delta, delta_digest, digest, num_active, gate_report_id, lease_epoch"
    with pytest.raises(CheckViolation, match="keeps the strength"):
        rig.query(
            f"INSERT INTO snapshots (seq, parent_id, {columns}) SELECT seq + 1, snapshot_id, {columns}"
            " FROM snapshots WHERE snapshot_id = %s",
            stronger.snapshot_id,
        )


STANDING = Standing(base_strength=1000.0, strength=1000.0, suite_kl=0.2, num_activations=100)


@pytest.mark.parametrize(
    ("upkeep", "on", "expected"),
    [
        (Upkeep(), STANDING, None),
        (Upkeep(rekey_every=100), STANDING, Resolving(rekeys=True, place=100)),
        (Upkeep(rekey_every=100), replace(STANDING, rekeyed_at=1), None),
        (Upkeep(suite_kl_budget=0.1), STANDING, Resolving(prior_strength=1500.0, place=100)),
        (Upkeep(suite_kl_budget=0.2), STANDING, None),
        (Upkeep(suite_kl_budget=0.1), replace(STANDING, suite_kl=None), None),
        (Upkeep(suite_kl_budget=0.1), replace(STANDING, refused_at=50), None),
        (
            Upkeep(suite_kl_budget=0.1),
            replace(STANDING, refused_at=0, num_activations=RETRY_AFTER),
            Resolving(prior_strength=1500.0, place=RETRY_AFTER),
        ),
        (Upkeep(suite_kl_budget=0.5), STANDING, None),
        (
            Upkeep(suite_kl_budget=0.5),
            replace(STANDING, strength=1800.0),
            Resolving(prior_strength=1200.0, place=100),
        ),
        (
            Upkeep(suite_kl_budget=0.5),
            replace(STANDING, strength=1200.0),
            Resolving(prior_strength=1000.0, place=100),
        ),
        (
            Upkeep(suite_kl_budget=0.1, rekey_every=10),
            STANDING,
            Resolving(prior_strength=1500.0, rekeys=True, place=100),
        ),
    ],
)
def test_what_is_due(upkeep: Upkeep, on: Standing, expected: Resolving | None) -> None:
    assert due(upkeep, on) == expected


@pytest.mark.parametrize("fields", [{"rekey_every": -1}, {"suite_kl_budget": -0.1}, {"suite_kl_budget": float("nan")}])
def test_upkeep_that_cannot_be_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(fields))):
        Upkeep(**fields)  # type: ignore[arg-type]


def test_upkeep_and_work_of_later_versions_are_read() -> None:
    assert Upkeep.from_stored({"rekey_every": 5, "unheard": 1}) == Upkeep(rekey_every=5)
    assert Upkeep.from_stored(None) == Upkeep()
    asked = Resolving(rekeys=True, place=3)
    assert Resolving.from_stored({**asked.as_json(), "unheard": 1}) == asked


@pytest.mark.parametrize(
    ("solved", "stood_on"),
    [
        ([], ()),
        ([(2, None), (5, None)], (2, 5)),
        ([(2, None), (5, None), (6, 5)], (2, 6)),
        ([(2, None), (5, None), (6, 2)], (6,)),
        ([(2, None), (5, None), (6, 2), (7, 5)], (2, 7)),
        ([(2, None), (3, 2), (4, 3)], (2, 4)),
    ],
)
def test_ledgers_in_force(solved: list[tuple[int, int | None]], stood_on: tuple[int, ...]) -> None:
    assert in_force(solved) == stood_on
