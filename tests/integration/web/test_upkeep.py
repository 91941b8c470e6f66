"""Upkeep of a lineage and its ledger solved anew, by the HTTP API and on the pages; in the names of who asked."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text

from pipeline.adapters.logins import Login
from pipeline.adapters.sql.approving.resolving import owe_resolving
from pipeline.adapters.sql.database.engine import transaction
from pipeline.adapters.sql.database.locks import lock_lineage
from pipeline.domain.errors import Misconfigured
from pipeline.domain.ledger.upkeep import Resolving, Upkeep
from pipeline.domain.lineages import Lease
from pipeline.domain.review.approvals import Decision
from pipeline.domain.review.people import Role
from pipeline.domain.snapshots import Snapshot
from tests.support.store_rig import LINEAGE, StoreRig, failing_report
from tests.support.web_rig import WebRig, fields_on, is_problem, text_of

HERE = f"/v1/lineages/{LINEAGE}"
HOME = f"/review/lineages/{LINEAGE}"
WHY = {"reason": "a thousand edits 🔁 منذ آخر مرة"}


def head_of_one_edit(rig: StoreRig) -> Lease:
    rig.correct("a")
    lease = rig.acquire()
    rig.commit_batch(lease)
    return lease


def solve_anew(rig: StoreRig, lease: Lease, *, strength: float | None) -> Snapshot:
    """Carry out what is owed, as a worker does."""
    removal = rig.queue.next_removal(lease)
    assert removal is not None
    new = rig.new_snapshot(removal=removal, parent_id=rig.lineage().head_id, with_accumulator=True)
    return rig.snapshots.commit(lease, replace(new, prior_strength=strength, rewritten_ids=(rig.edit_id("a"),)))


def test_an_operator_changes_the_upkeep_with_a_reason_that_is_audited(web: WebRig, rig: StoreRig) -> None:
    client = web.client(Role.operator)
    told = client.post(f"{HERE}/upkeep", json={"rekey_every": 1000, **WHY}).json()
    assert (told["rekey_every"], told["suite_kl_budget"], told["solved_anew"]) == (1000, 0, [])
    assert client.post(f"{HERE}/upkeep", json={"suite_kl_budget": 0.1, **WHY}).json()["rekey_every"] == 1000
    assert web.client(Role.auditor, name="ben").get(f"{HERE}/upkeep").json()["suite_kl_budget"] == 0.1
    assert rig.lineage().upkeep == Upkeep(rekey_every=1000, suite_kl_budget=0.1)
    event = rig.audit.events(LINEAGE, limit=10_000)[-1]
    assert (event.actor, event.action) == ("person:ada", "lineage:upkeep_changed")
    assert json.loads(event.payload)["reason"] == WHY["reason"]
    assert rig.audit.verify(LINEAGE) is None


def test_a_ledger_is_solved_anew_rejected_and_undone_again(web: WebRig, rig: StoreRig) -> None:
    lease, client = head_of_one_edit(rig), web.client(Role.operator)
    owed = client.post(f"{HERE}/rekey", json={"strength": 1500, **WHY}).json()
    assert (owed["is_new"], owed["change"]) == (True, "keys read again and prior strength 1500")
    again = client.post(f"{HERE}/rekey", json={"strength": 2, "keep_keys": True, **WHY}).json()
    assert again == {**owed, "is_new": False}
    rekeyed = solve_anew(rig, lease, strength=1500.0)
    [row] = client.get(f"{HERE}/upkeep").json()["solved_anew"]
    assert (row["id"], row["requested_by"], row["seq"], row["status"]) == (owed["id"], "person:ada", 2, "done")
    assert rig.decide(rekeyed, Decision.rejected).is_accepted
    assert "got requested" in is_problem(client.post(f"{HERE}/rekey", json={"undo": 2, **WHY}), 422)
    undo = rig.queue.next_removal(lease)
    assert undo is not None
    rig.queue.fail_removal(lease, undo, reason="retention 0.2", report=failing_report([rig.edit_id("a")]))
    newest = client.get(f"{HERE}/upkeep").json()["solved_anew"][0]
    assert (newest["undoes_seq"], newest["outcome"], newest["may_be_undone_again"]) == (2, "retention 0.2", True)
    assert newest["undoes_status"] == "rejected"
    assert client.post(f"{HERE}/rekey", json={"undo": 2, **WHY}).json()["is_new"] is True
    listed = client.get(f"{HERE}/upkeep").json()["solved_anew"]
    assert [row["may_be_undone_again"] for row in listed] == [False, False, False]
    assert solve_anew(rig, lease, strength=1000.0).status == "candidate"
    assert rig.audit.verify(LINEAGE) is None


def test_the_page_says_what_became_of_a_snapshot_whose_undo_failed(web: WebRig, rig: StoreRig) -> None:
    lease, client = head_of_one_edit(rig), web.client(Role.operator)
    client.post(f"{HERE}/rekey", json={"strength": 1500, **WHY})
    rekeyed = solve_anew(rig, lease, strength=1500.0)
    assert rig.decide(rekeyed, Decision.approved).is_accepted
    assert client.post(f"{HERE}/rekey", json={"undo": 2, **WHY}).json()["is_new"] is True
    undo = rig.queue.next_removal(lease)
    assert undo is not None
    rig.queue.fail_removal(lease, undo, reason="retention 0.2", report=failing_report([rig.edit_id("a")]))
    page = text_of(web.browser(Role.operator).get(f"{HOME}/upkeep"))
    assert "Snapshot 2 was approved, and its ledger could not be taken back: retention 0.2" in page


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (f"{HERE}/upkeep", {"reason": "x"}, 422),
        (f"{HERE}/upkeep", {"rekey_every": 5}, 422),
        (f"{HERE}/upkeep", {"rekey_every": -1, "reason": "x"}, 422),
        (f"{HERE}/upkeep", {"rekey_every": 2**31, "reason": "x"}, 422),
        (f"{HERE}/upkeep", {"suite_kl_budget": -0.1, "reason": "x"}, 422),
        (f"{HERE}/upkeep", {"rekey_every": 5, "rekeyevery": 5, "reason": "x"}, 422),
        ("/v1/lineages/none/upkeep", {"rekey_every": 5, "reason": "x"}, 404),
        (f"{HERE}/rekey", {"reason": " "}, 422),
        (f"{HERE}/rekey", {"keep_keys": True, "reason": "x"}, 422),
        (f"{HERE}/rekey", {"strength": 0, "reason": "x"}, 422),
        (f"{HERE}/rekey", {"strength": 2, "undo": 1, "reason": "x"}, 422),
        (f"{HERE}/rekey", {"undo": 9, "reason": "x"}, 404),
        (f"{HERE}/rekey", {"reason": "no edit yet"}, 422),
        ("/v1/lineages/none/rekey", {"reason": "x"}, 404),
        ("/v1/lineages/%00/rekey", {"reason": "x"}, 422),
    ],
)
def test_a_wrong_wish_is_a_problem_that_says_what_is_expected(
    web: WebRig, rig: StoreRig, path: str, body: Any, status: int
) -> None:
    assert is_problem(web.client(Role.operator).post(path, json=body), status)
    assert rig.lineage().upkeep == Upkeep()
    assert rig.query("SELECT actor FROM removals") == []


def test_people_do_on_the_page_what_their_roles_let_them(web: WebRig, rig: StoreRig) -> None:
    head_of_one_edit(rig)
    operator, reviewer = web.browser(Role.operator), web.browser(Role.reviewer, name="ben")
    auditor = web.browser(Role.auditor, name="eve")
    page = f"{HOME}/upkeep"
    assert "only when somebody asks" in text_of(auditor.get(page))
    assert 'name="reason"' not in auditor.get(page).text
    assert f'action="{HOME}/upkeep"' not in reviewer.get(page).text
    rekey, change = f"{HOME}/rekey", f"{HOME}/upkeep"
    fields = {"rekey_every": "1000", "suite_kl_budget": "", **WHY}
    changed = operator.post(change, data={**fields_on(operator.get(page), change), **fields})
    assert "every 1,000 edits" in text_of(changed)
    assert "Changed" in text_of(changed)
    hidden = fields_on(reviewer.get(page), rekey)
    owed = reviewer.post(rekey, data={**hidden, "wanted": "keys", "strength": "", **WHY})
    assert "a candidate with the ledger solved anew is being made" in text_of(owed)
    for part in ("keys read again", "ben", WHY["reason"], "requested"):
        assert part in text_of(owed)
    late = operator.post(
        rekey, data={**fields_on(operator.get(page), rekey), "wanted": "strength", "strength": "7", **WHY}
    )
    assert "Nothing new is owed" in text_of(late)
    assert {row["actor"] for row in rig.query("SELECT actor FROM removals")} == {"person:ben"}


def test_forms_of_upkeep_need_the_role_a_reason_good_figures_and_this_session(web: WebRig, rig: StoreRig) -> None:
    head_of_one_edit(rig)
    operator, auditor = web.browser(Role.operator), web.browser(Role.auditor, name="ben")
    reviewer = web.browser(Role.reviewer, name="eve")
    theirs, seen = fields_on(auditor.get(f"{HOME}/upkeep"), "/review/logout"), operator.get(f"{HOME}/upkeep")
    rekey = {**fields_on(seen, f"{HOME}/rekey"), "wanted": "keys", **WHY}
    change = {**fields_on(seen, f"{HOME}/upkeep"), "rekey_every": "7", **WHY}
    own = fields_on(reviewer.get(f"{HOME}/upkeep"), "/review/logout")
    cases = (
        (auditor, "rekey", rekey | theirs, {}, 403),
        (reviewer, "upkeep", change | own, {}, 403),
        (operator, "rekey", rekey | theirs, {}, 403),
        (operator, "rekey", rekey | {"reason": " "}, {}, 422),
        (operator, "rekey", rekey | {"wanted": "strength"}, {}, 422),
        (operator, "rekey", rekey | {"strength": "strong"}, {}, 422),
        (operator, "rekey", rekey | {"strength": "nan"}, {}, 422),
        (operator, "upkeep", change | {"rekey_every": "-1"}, {}, 422),
        (operator, "upkeep", change | {"rekey_every": ""}, {}, 422),
        (operator, "upkeep", change | {"suite_kl_budget": "inf"}, {}, 422),
        (operator, "upkeep", change, {"origin": "https://elsewhere"}, 403),
    )
    for client, path, data, headers, status in cases:
        told = client.post(f"{HOME}/{path}", data=data, headers=headers)
        assert (told.status_code, told.headers["content-type"]) == (status, "text/html; charset=utf-8"), data
    assert rig.lineage().upkeep == Upkeep()
    assert rig.query("SELECT actor FROM removals") == []


def test_an_operators_name_stands_in_no_wish_that_takes_an_edit_out(web: WebRig, rig: StoreRig) -> None:
    head_of_one_edit(rig)
    web.token_of("ada", [Role.operator])
    with transaction(rig.engines[Login.web]) as connection:
        on = lock_lineage(connection, LINEAGE)
        owe_resolving(connection, on, Resolving(rekeys=True), actor="person:ada", reason="")
    insert = (
        "INSERT INTO removals (lineage_id, edit_ids, actor, reason, resolving)"
        " SELECT lineage_id, CAST(:ids AS jsonb), :actor, '', CAST(:how AS jsonb) FROM lineages"
    )
    for ids, actor, how in (('["x"]', "person:ada", "{}"), ("[]", "person:ada", None), ("[]", "person:ben", "{}")):
        with pytest.raises(Misconfigured, match="is refused"), transaction(rig.engines[Login.web]) as connection:
            connection.execute(text(insert), {"ids": ids, "actor": actor, "how": how})
