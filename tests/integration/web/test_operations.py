"""What operators do by the HTTP API and on the pages: hold, resume, try again, send again; in their own names."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from starlette.testclient import TestClient

from pipeline.adapters.sql.database.engine import transaction
from pipeline.adapters.sql.outbox import SqlOutboxStore, owe
from pipeline.domain.retries import MAX_FAILURES
from pipeline.domain.review.people import Role
from tests.support.store_rig import LINEAGE, StoreRig
from tests.support.web_rig import WebRig, fields_on, is_problem, text_of

HOME = f"/review/lineages/{LINEAGE}"
HERE = f"/v1/lineages/{LINEAGE}"
OPERATIONS = "/review/operations"
WHY = {"reason": "the disk is full 💾 القرص ممتلئ"}


@pytest.fixture
def dead(rig: StoreRig) -> str:
    """A correction that died, beside one that waits."""
    edit_id = rig.correct("doomed")
    rig.correct("waiting")
    rig.query("UPDATE edit_requests SET status = 'dead', reason = 'out of memory' WHERE edit_id = %s", edit_id)
    return edit_id


@pytest.fixture
def given_up(rig: StoreRig) -> list[str]:
    """Two side effects that nothing tries any more."""
    outbox = SqlOutboxStore(rig.engine)
    with transaction(rig.engine) as connection:
        for number in range(2):
            owe(connection, kind="register", dedup_key=f"register:{number}", payload={"lineage": LINEAGE})
    for _ in range(MAX_FAILURES):
        rig.query("UPDATE outbox SET next_attempt_at = clock_timestamp()")
        for item in outbox.due("register"):
            outbox.failed(item, error="<b>MLflow</b> said no")
    return [str(row["outbox_id"]) for row in outbox.given_up()]


def last(rig: StoreRig, *, chain: str = LINEAGE) -> tuple[str, str, str]:
    """Who did what last, and with which details."""
    event = rig.audit.events(chain, limit=10_000)[-1]
    return event.actor, event.action.value, event.payload


def test_an_operator_holds_and_resumes_a_lineage_with_a_reason(web: WebRig, rig: StoreRig) -> None:
    client = web.client(Role.operator)
    held = client.post(f"{HERE}/hold", json=WHY)
    assert held.json() == {"lineage": LINEAGE, "head_seq": 0, "champion_seq": 0, "hold": WHY["reason"]}
    assert client.get("/v1/lineages").json()["lineages"] == [held.json()]
    assert last(rig)[:2] == ("person:ada", "lineage:held")
    assert client.post(f"{HERE}/hold", json={"reason": "another"}).json()["hold"] == WHY["reason"]
    outdated = client.post(f"{HERE}/resume", json={"reason": "done", "hold": "what I saw"})
    assert "القرص" in is_problem(outdated, 409)
    assert rig.lineage().hold == WHY["reason"]
    lifted = client.post(f"{HERE}/resume", json={"reason": "has room", "hold": WHY["reason"]})
    assert lifted.json()["hold"] is None
    actor, action, payload = last(rig)
    assert (actor, action) == ("person:ada", "lineage:resumed")
    assert '"reason":"has room"' in payload
    assert client.post(f"{HERE}/resume", json=WHY).status_code == 200
    assert rig.audit.verify(LINEAGE) is None


def test_dead_edits_are_tried_again_and_others_are_left_as_they_are(web: WebRig, rig: StoreRig, dead: str) -> None:
    client = web.client(Role.operator)
    told = client.post(f"{HERE}/retry", json={"edits": ["doomed", "waiting"], **WHY}).json()
    assert told == {"retried": [dead], "left": {rig.edit_id("waiting"): "received"}}
    assert (rig.status(dead), last(rig)[:2]) == ("received", ("person:ada", "edit:released"))
    rig.query("UPDATE edit_requests SET status = 'dead', reason = 'out of memory' WHERE edit_id = %s", dead)
    for because, retried in (("disk", []), ("MEMORY", [dead])):
        told = client.post(f"{HERE}/retry", json={"all": True, "because": because, **WHY}).json()
        assert told["retried"] == retried
    is_problem(client.post(f"{HERE}/retry", json={"edits": ["nobody"], **WHY}), 404)


def test_what_was_given_up_is_sent_again_and_only_that(web: WebRig, rig: StoreRig, given_up: list[str]) -> None:
    client = web.client(Role.operator)
    listed = client.get("/v1/side-effects").json()["given_up"]
    assert [(row["id"], row["kind"]) for row in listed] == [(one, "register") for one in given_up]
    assert client.post("/v1/side-effects/resend", json={"ids": given_up[:1], **WHY}).json() == {"resent": given_up[:1]}
    assert last(rig)[:2] == ("person:ada", "side_effect:resent")
    is_problem(client.post("/v1/side-effects/resend", json={"ids": given_up[:1], **WHY}), 404)
    assert client.post("/v1/side-effects/resend", json={"all": True, **WHY}).json() == {"resent": given_up[1:]}
    assert client.post("/v1/side-effects/resend", json={"all": True, **WHY}).json() == {"resent": []}
    assert {row["attempts"] for row in rig.query("SELECT attempts FROM outbox WHERE kind = 'register'")} == {0}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (f"{HERE}/hold", {}, 422),
        (f"{HERE}/hold", {"reason": "  "}, 422),
        (f"{HERE}/hold", {"reason": "x" * 1_001}, 422),
        (f"{HERE}/hold", {"reason": "x", "more": 1}, 422),
        (f"{HERE}/hold", [], 422),
        ("/v1/lineages/none/hold", {"reason": "x"}, 404),
        ("/v1/lineages/%00/resume", {"reason": "x"}, 422),
        (f"{HERE}/retry", {"reason": "x"}, 422),
        (f"{HERE}/retry", {"reason": "x", "edits": ["a"], "all": True}, 422),
        (f"{HERE}/retry", {"reason": "x", "edits": ["a"], "because": "b"}, 422),
        (f"{HERE}/retry", {"reason": "x", "edits": ["a"] * 1_001}, 422),
        ("/v1/lineages/none/retry", {"reason": "x", "all": True}, 404),
        ("/v1/side-effects/resend", {"reason": "x"}, 422),
        ("/v1/side-effects/resend", {"reason": "x", "ids": ["7"]}, 422),
        ("/v1/side-effects/resend", {"reason": "x", "ids": [str(uuid4())]}, 404),
    ],
)
def test_a_wrong_wish_is_a_problem_that_says_what_is_expected(
    web: WebRig, rig: StoreRig, path: str, body: Any, status: int
) -> None:
    assert "xpected" in is_problem(web.client(Role.operator).post(path, json=body), status) or status == 422
    assert rig.lineage().hold is None


def test_each_role_does_its_own(web: WebRig, rig: StoreRig, dead: str, given_up: list[str]) -> None:
    wishes = {
        f"{HERE}/hold": WHY,
        f"{HERE}/resume": WHY,
        f"{HERE}/retry": {"all": True, **WHY},
        "/v1/side-effects/resend": {"all": True, **WHY},
    }
    for role, allowed in ((Role.requester, 0), (Role.auditor, 0), (Role.reviewer, 2)):
        client = web.client(role, name=role)
        statuses = [client.post(path, json=body).status_code for path, body in wishes.items()]
        assert statuses == [200] * allowed + [403] * (4 - allowed), role
    assert (rig.status(dead), rig.lineage().hold) == ("dead", None)
    for role, status in ((Role.requester, 403), (Role.reviewer, 403), (Role.auditor, 200)):
        assert web.client(role, name=role).get("/v1/side-effects").status_code == status
    is_problem(web.anonymous().post(f"{HERE}/hold", json=WHY), 401)


def test_an_operator_does_all_of_it_on_the_pages(web: WebRig, rig: StoreRig, dead: str, given_up: list[str]) -> None:
    client = web.browser(Role.operator)

    def send(action: str, **fields: Any) -> str:
        return text_of(client.post(action, data={**fields_on(client.get(OPERATIONS), action), **fields}))

    page = client.get(OPERATIONS)
    for part in ("out of memory", "<b>MLflow</b> said no", "The capital of doomed is"):
        assert part in text_of(page)
    assert "<b>MLflow" not in page.text
    assert "Held" in send(f"{HOME}/hold", wanted="hold", **WHY)
    assert WHY["reason"] in text_of(client.get(OPERATIONS))
    assert "Resumed" in send(f"{HOME}/hold", wanted="resume", reason="mended")
    assert rig.lineage().hold is None
    assert "choose at least one" in send(f"{HOME}/retry", wanted="chosen", reason="mended")
    assert "wait in the queue" in send(f"{HOME}/retry", wanted="chosen", edit=[dead], reason="mended")
    assert "No edit is dead" in text_of(client.get(OPERATIONS))
    resend = f"{OPERATIONS}/resend"
    assert "owed again" in send(resend, wanted="chosen", item=given_up[:1], reason="mended")
    stale = fields_on(client.get(OPERATIONS), resend)
    assert "owed again" in send(resend, wanted="all", reason="mended")
    late = client.post(resend, data={**stale, "wanted": "all", "reason": "mended"})
    assert "somebody else was here before you" in text_of(late)
    assert {event.actor for event in rig.audit.events(LINEAGE, limit=1_000)} >= {"person:ada"}


def test_a_dead_edits_own_page_tries_it_again(web: WebRig, rig: StoreRig, dead: str) -> None:
    client = web.browser(Role.operator)
    page = client.get(f"{HOME}/edits/{dead}")
    done = client.post(f"{HOME}/retry", data={**fields_on(page, f"{HOME}/retry"), "wanted": "chosen", **WHY})
    assert "wait in the queue" in text_of(done)
    assert rig.status(dead) == "received"


def test_of_two_browsers_the_later_one_lifts_no_hold_that_it_did_not_see(web: WebRig, rig: StoreRig) -> None:
    ada, ben = web.browser(Role.operator), web.browser(Role.reviewer, name="ben")
    here = f"{HOME}/hold"
    rig.lineages.hold(LINEAGE, reason="first\nline", actor="worker:a")
    seen = [fields_on(one.get(f"{HOME}/snapshots"), here) for one in (ada, ben)]
    assert ada.post(here, data={**seen[0], "wanted": "resume", "reason": "mended"}).status_code == 200
    rig.lineages.hold(LINEAGE, reason="saturated", actor="worker:a")
    late = ben.post(here, data={**seen[1], "wanted": "resume", "reason": "mended"})
    assert late.status_code == 409
    assert "saturated" in text_of(late)
    assert rig.lineage().hold == "saturated"


@pytest.mark.parametrize("action", [f"{HOME}/hold", f"{HOME}/retry", f"{OPERATIONS}/resend"])
def test_forms_of_operators_need_the_role_a_reason_and_this_session(
    web: WebRig, rig: StoreRig, dead: str, given_up: list[str], action: str
) -> None:
    operator, auditor = web.browser(Role.operator), web.browser(Role.auditor, name="ben")
    assert 'name="reason"' not in auditor.get(OPERATIONS).text
    good = {**fields_on(operator.get(OPERATIONS), action), "wanted": "hold" if "hold" in action else "all", **WHY}
    theirs = fields_on(auditor.get(OPERATIONS), "/review/logout")
    cases: tuple[tuple[TestClient, dict[str, str], dict[str, str], int], ...] = (
        (auditor, good | theirs, {}, 403),
        (operator, good | theirs, {}, 403),
        (operator, {name: value for name, value in good.items() if name != "csrf"}, {}, 403),
        (operator, good | {"reason": " "}, {}, 422),
        (operator, good | {"wanted": "everything"}, {}, 422),
        (operator, good, {"sec-fetch-site": "cross-site"}, 403),
    )
    for client, fields, headers, status in cases:
        assert client.post(action, data=fields, headers=headers).status_code == status, (fields, headers)
    assert (rig.status(dead), rig.lineage().hold) == ("dead", None)
    assert web.browser(Role.reviewer, name="eve").get(OPERATIONS).status_code == 403
