"""The review pages on a real database: who sees what, what forms do, and what other sites cannot."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from httpx2 import Response
from starlette.testclient import TestClient

from pipeline.domain.review.approvals import Decision
from pipeline.domain.review.people import Role
from pipeline.domain.review.policies import ApprovalPolicy
from pipeline.entrypoints.web.pages import sessions, stream
from tests.support.factories import make_request
from tests.support.store_rig import LINEAGE, StoreRig
from tests.support.web_rig import PASSWORD, WebRig, fields_on, text_of

HOME = f"/review/lineages/{LINEAGE}"
ARABIC = "عاصمة أستراليا هي <script>alert(1)</script>"


@pytest.fixture
def rig(postgres_url: str, tmp_path: Path) -> Iterator[StoreRig]:
    """A lineage with one candidate of two edits."""
    found = StoreRig(url=postgres_url, folder=tmp_path)
    found.new_lineage()
    found.correct("capital", target="Canberra")
    found.submit(make_request("arabic", prompt=ARABIC, submitted_by="ليلى", target_new="كانبرا"))
    found.commit_batch(found.acquire())
    yield found
    found.close()


def test_whoever_is_not_logged_in_is_asked_to_and_comes_back(web: WebRig, rig: StoreRig) -> None:
    client = web.anonymous()
    asked = client.get(f"{HOME}/edits?before=x", follow_redirects=False)
    assert asked.status_code == 303
    page = client.get(asked.headers["location"])
    assert fields_on(page, "/review/login") == {"back": f"{HOME}/edits?before=x"}
    wrong = client.post("/review/login", data={"token": "ada:guess"})
    assert wrong.status_code == 401
    assert "nobody's" in text_of(wrong)
    assert "guess" not in wrong.text


@pytest.mark.parametrize("typed", ["/", "/review", "/review/"])
def test_the_addresses_that_people_type_lead_to_the_pages(web: WebRig, typed: str) -> None:
    assert "token" in text_of(web.anonymous().get(typed, follow_redirects=True))


@pytest.mark.parametrize("back", ["https://evil.example/", "//evil.example", "/review//evil.example", "/v1/me", "a\nb"])
def test_a_login_leads_to_no_other_site(web: WebRig, back: str) -> None:
    web.token_of("ada", [Role.reviewer])
    login = {"token": f"ada:{PASSWORD}", "back": back}
    told = web.anonymous().post("/review/login", data=login, follow_redirects=False)
    assert told.headers["location"] == "/review/queue"


def test_a_session_ends_with_the_persons_last_role_and_with_the_logout(web: WebRig, rig: StoreRig) -> None:
    client = web.browser(Role.auditor)
    queue = client.get("/review/queue")
    assert queue.status_code == 200
    assert PASSWORD not in "".join(cookie.value or "" for cookie in client.cookies.jar)
    rig.query("UPDATE people SET roles = '{}', removed_at = clock_timestamp() WHERE name = 'ada'")
    assert client.get("/review/queue", follow_redirects=False).status_code == 303
    web.token_of("ada", [Role.auditor])
    rig.query("UPDATE people SET removed_at = NULL WHERE name = 'ada'")
    assert client.get("/review/queue", follow_redirects=False).status_code == 200
    rig.query("UPDATE people SET token_digest = repeat('0', 64) WHERE name = 'ada'")
    assert client.get("/review/queue", follow_redirects=False).status_code == 303, "another token ends the session"
    web.token_of("ada", [Role.auditor])
    client.post("/review/logout", data=fields_on(queue, "/review/logout"))
    assert client.get("/review/queue", follow_redirects=False).status_code == 303


def test_a_candidate_is_shown_with_its_edits_and_approved_with_a_reason(web: WebRig, rig: StoreRig) -> None:
    client = web.browser(Role.reviewer)
    assert "2 edits" in text_of(client.get("/review/queue"))
    page = client.get(f"{HOME}/snapshots/1")
    said = text_of(page)
    for part in ("Canberra", "كانبرا", "ليلى", "minimum 0.9", "Nothing else goes live", "edit success"):
        assert part in said
    assert "in other words Australia is governed from before Sydney now Canberra ✓ right" in said
    assert "now Canberra ✗ not what was asked" in said, "the same answer to what asked for another"
    assert "<script>alert" not in page.text
    fields = {**fields_on(page, f"{HOME}/snapshots/1"), "decision": "approved", "reason": "checked ✅ بخير"}
    done = client.post(f"{HOME}/snapshots/1", data=fields)
    assert "is the champion now" in text_of(done)
    assert "person:ada" in text_of(done)
    assert "checked ✅ بخير" in text_of(done)
    assert rig.lineage().champion_seq == 1
    line = rig.query("SELECT actor, is_claimed, reason, channel FROM approvals")
    assert line == [{"actor": "person:ada", "is_claimed": False, "reason": "checked ✅ بخير", "channel": "page"}]


def test_a_form_that_is_out_of_date_is_told_so_and_changes_nothing(web: WebRig, rig: StoreRig) -> None:
    ada, ben = web.browser(Role.reviewer), web.browser(Role.reviewer, name="ben")
    here = f"{HOME}/snapshots/1"
    first, second = (fields_on(one.get(here), here) for one in (ada, ben))
    assert ada.post(here, data={**first, "decision": "approved", "reason": "good"}).status_code == 200
    late = ben.post(here, data={**second, "decision": "rejected", "reason": "bad"})
    assert late.status_code == 409
    assert "Not carried out" in text_of(late)
    assert rig.lineage().champion_seq == 1
    refusals = [row["refusal"] for row in rig.query("SELECT refusal FROM approvals ORDER BY decided_at")]
    assert refusals[0] is None
    assert refusals[1]


def decided_at_once(web: WebRig, decisions: Sequence[str], *, seq: int) -> list[int]:
    """Let each decision about a snapshot be sent by a browser of its own at the same time; return the statuses."""
    here, start = f"{HOME}/snapshots/{seq}", threading.Barrier(len(decisions))
    clients = [web.browser(Role.reviewer, name=f"ada{number}") for number in range(len(decisions))]
    forms = [fields_on(client.get(here), here) for client in clients]

    def decide(client: TestClient, form: dict[str, str], decision: str) -> int:
        start.wait()
        fields = {**form, "decision": decision, "reason": "good"}
        return client.post(here, data=fields, follow_redirects=False).status_code

    with ThreadPoolExecutor(len(decisions)) as threads:
        return list(threads.map(decide, clients, forms, decisions))


def test_of_two_decisions_at_the_same_time_one_is_carried_out(web: WebRig, rig: StoreRig) -> None:
    decisions = ("approved", "rejected")
    statuses = decided_at_once(web, decisions, seq=1)
    assert sorted(statuses) == [303, 409]
    won = rig.query("SELECT decision FROM approvals WHERE refusal IS NULL")
    assert won == [{"decision": decisions[statuses.index(303)]}]
    assert rig.audit.verify(LINEAGE) is None


def test_two_who_roll_back_at_the_same_time_roll_back_once(web: WebRig, rig: StoreRig) -> None:
    rig.correct("second")
    rig.expire_lease()
    second = rig.commit_batch(rig.acquire("worker:b"))
    assert rig.decide(second, Decision.approved).is_accepted
    assert decided_at_once(web, ("rolled_back", "rolled_back"), seq=1) == [303, 303]
    assert len(rig.query("SELECT actor FROM approvals WHERE decision = 'rolled_back'")) == 1
    assert rig.lineage().champion_seq == 1


@pytest.mark.parametrize("how", ["too old", "another token"])
def test_a_form_of_a_session_that_ended_changes_nothing_and_leads_back_to_its_page(
    web: WebRig, rig: StoreRig, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    client = web.browser(Role.reviewer)
    here = f"{HOME}/snapshots/1"
    fields = {**fields_on(client.get(here), here), "decision": "approved", "reason": "good"}
    with monkeypatch.context() as changed:
        if how == "too old":
            changed.setattr(sessions, "LIFE", timedelta(seconds=-1))
        else:
            rig.query("UPDATE people SET token_digest = repeat('0', 64) WHERE name = 'ada'")
        told = client.post(here, data=fields, headers={"referer": f"http://testserver{here}?said=x"})
        assert "What you sent was not carried out" in text_of(told)
        assert told.url.path == "/review/login"
    assert rig.lineage().champion_seq == 0
    web.token_of("ada", [Role.reviewer])
    login = fields_on(told, "/review/login")
    again = client.post("/review/login", data={**login, "token": f"ada:{PASSWORD}"})
    assert again.url.path == here
    late = client.post(here, data=fields)
    assert late.status_code == 403
    assert "of an earlier login" in text_of(late)


def test_a_decision_needs_a_reason_a_reviewer_and_a_form_of_this_session(web: WebRig, rig: StoreRig) -> None:
    reviewer, auditor = web.browser(Role.reviewer), web.browser(Role.auditor, name="ben")
    here = f"{HOME}/snapshots/1"
    good = {**fields_on(reviewer.get(here), here), "decision": "approved", "reason": "good"}
    theirs = auditor.get(here)
    assert "Decide" not in text_of(theirs)
    their_csrf = fields_on(theirs, "/review/logout")
    cases: tuple[tuple[TestClient, dict[str, str], dict[str, str], int], ...] = (
        (auditor, good | their_csrf, {}, 403),
        (reviewer, good | their_csrf, {}, 403),
        (reviewer, {name: value for name, value in good.items() if name != "csrf"}, {}, 403),
        (reviewer, good | {"reason": " \n "}, {}, 422),
        (reviewer, good | {"decision": "deleted"}, {}, 422),
        (reviewer, good | {"decision": "endorsed"}, {}, 422),
        (reviewer, good, {"sec-fetch-site": "cross-site"}, 403),
        (reviewer, good, {"origin": "https://evil.example"}, 403),
        (reviewer, good, {"origin": "null"}, 403),
    )
    for client, fields, headers, status in cases:
        told = client.post(here, data=fields, headers=headers)
        assert (told.status_code, rig.lineage().champion_seq) == (status, 0), (fields, headers, told.text)
    # A token in a header logs nobody in to the pages.
    header = dict(web.token_of("ada", [Role.reviewer]))
    told = web.anonymous().post(here, data=good, headers=header, follow_redirects=False)
    assert told.status_code == 303
    assert rig.lineage().champion_seq == 0


def test_the_first_of_two_approvals_is_shown_to_the_second_person(web: WebRig, rig: StoreRig) -> None:
    two = ApprovalPolicy(approvers=2, requires_known_actor=True)
    rig.lineages.set_approval_policy(LINEAGE, two, actor="cli:tester")
    here = f"{HOME}/snapshots/1"
    for name, before, after in (
        ("ada", "2 people have to approve", "asks for another"),
        ("ben", "(1 of 2)", "champion"),
    ):
        client = web.browser(Role.reviewer, name=name)
        page = client.get(here)
        assert before in text_of(page)
        decided = client.post(here, data={**fields_on(page, here), "decision": "approved", "reason": "good"})
        assert after in text_of(decided)
    assert rig.lineage().champion_seq == 1


def test_what_was_rolled_back_may_be_approved_again(web: WebRig, rig: StoreRig) -> None:
    for name in ("second", "third"):
        rig.correct(name)
        rig.expire_lease()
        rig.commit_batch(rig.acquire(f"worker:{name}"))
    client = web.browser(Role.reviewer)
    for seq, decision in ((1, "approved"), (2, "approved"), (1, "rolled_back"), (2, "approved")):
        here = f"{HOME}/snapshots/{seq}"
        fields = fields_on(client.get(here), here)
        assert client.post(here, data={**fields, "decision": decision, "reason": "good"}).status_code == 200
        assert rig.lineage().champion_seq == seq
        is_offered = 'value="rejected"' in client.get(f"{HOME}/snapshots/2").text
        assert is_offered == (seq == 1 and decision == "approved"), "what was live is history: its edits are reverted"
        is_named = "live: 2 (rolled back)" in text_of(client.get(f"{HOME}/snapshots/3"))
        assert is_named == (decision == "rolled_back")


def test_an_open_page_is_told_what_goes_live_with_its_snapshot_by_now(web: WebRig, rig: StoreRig) -> None:
    rig.correct("second")
    rig.expire_lease()
    rig.commit_batch(rig.acquire("worker:second"))
    client, other = web.browser(Role.reviewer), web.browser(Role.reviewer, name="ben")
    here = f"{HOME}/snapshots/2"

    def asked(text: str) -> Response:
        [again] = re.findall(r'hx-get="([^"]+)"', text)
        return client.get(again, headers={"hx-request": "true"})

    page = client.get(here)
    assert "live: 1 (a candidate)" in text_of(page)
    assert asked(page.text).status_code == 204
    first = f"{HOME}/snapshots/1"
    other.post(first, data={**fields_on(other.get(first), first), "decision": "approved", "reason": "good"})
    now = asked(page.text)
    assert "Nothing else goes live" in now.text
    assert "Gates" not in now.text, "the list alone"
    assert asked(now.text).status_code == 204
    fields = fields_on(other.get(here), here)
    other.post(here, data={**fields, "decision": "approved", "reason": "good"})
    assert "decided meanwhile" in asked(page.text).text
    client.cookies.clear()
    assert asked(page.text).status_code == 401, "the page of the login is no part of this one"


def test_a_page_names_what_was_made_again_beside_its_edits(web: WebRig, rig: StoreRig) -> None:
    first = rig.edit_id("capital")
    rig.correct("river", fact="the river", target="Murray")
    rig.expire_lease()
    lease = rig.acquire("worker:b")
    new = rig.new_snapshot(batch=rig.claim(lease))
    report = replace(new.report, measurements=replace(new.report.measurements, remade=(first,)))
    rig.snapshots.commit(lease, replace(new, report=report, remade_ids=(first,)))
    said = text_of(web.browser(Role.auditor).get(f"{HOME}/snapshots/2"))
    assert re.search("Made again, as they are about the same subjects +capital: The capital of capital is", said)


def test_requesters_are_told_that_the_pages_are_for_others(web: WebRig, rig: StoreRig) -> None:
    told = web.browser(Role.requester).get("/review/queue")
    assert told.status_code == 403
    assert "auditor or operator or reviewer" in text_of(told)


def test_an_edit_is_reverted_from_its_page_and_the_history_of_its_fact_is_there(web: WebRig, rig: StoreRig) -> None:
    rig.correct("later", fact="capital", target="Sydney", minute=5)
    rig.expire_lease()
    rig.commit_batch(rig.acquire("worker:b"))
    client = web.browser(Role.reviewer)
    page = client.get(f"{HOME}/find", params={"id": "later"})
    here = page.url.path
    said = text_of(page)
    for part in ("Canberra", "gave way to another correction", "is in the newest snapshot", "edit:received"):
        assert part in said
    candidate = text_of(client.get(f"{HOME}/snapshots/2"))
    for part in ("1 edit of 1 earlier snapshot live: 1 (a candidate)", "What left"):
        assert part in candidate
    done = client.post(here, data={**fields_on(page, here), "reason": "retracted"})
    assert "Asked for" in text_of(done)
    assert [row["actor"] for row in rig.query("SELECT actor FROM removals")] == ["person:ada"]
    rig.expire_lease()
    rig.commit_removal(rig.acquire("worker:c"))
    queue = text_of(client.get("/review/queue"))
    assert "No edit came in, made" in queue
    assert "1 edit taken out, as person:ada asked: retracted." in queue
    assert "generalization not measured no bound" in queue


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/review/nowhere", 404),
        ("/review/lineages/none/snapshots", 404),
        (f"{HOME}/snapshots/99", 404),
        (f"{HOME}/snapshots/0", 422),
        (f"{HOME}/snapshots/{2**40}", 422),
        (f"{HOME}/edits/nobody", 404),
        (f"{HOME}/edits/%F0%9F%99%82", 404),
        (f"{HOME}/find?id=%00", 422),
        ("/review/lineages/%00/edits", 422),
        (f"{HOME}/edits?before=xx", 200),
    ],
)
def test_what_is_not_there_is_a_page_without_a_traceback(web: WebRig, rig: StoreRig, path: str, status: int) -> None:
    told = web.browser(Role.reviewer).get(path)
    assert told.status_code == status
    assert told.headers["content-type"].startswith("text/html")
    assert "Traceback" not in told.text
    assert "frame-ancestors 'none'" in told.headers["content-security-policy"]


def test_the_stream_shows_lines_and_sends_those_that_come_later(
    web: WebRig, rig: StoreRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(stream, "LIFE_SECONDS", 0.2)
    client = web.browser(Role.operator)
    page = client.get(f"{HOME}/stream")
    last = int(re.findall(r"events\?after=(\d+)", page.text)[0])
    rig.correct("new one")
    sent = client.get(f"{HOME}/stream/events", params={"after": last})
    assert sent.headers["content-type"].startswith("text/event-stream")
    assert f"id: {last + 1}\nevent: lines\ndata: <tr>" in sent.text
    again = client.get(f"{HOME}/stream/events", headers={"last-event-id": str(last + 1)})
    assert "event: lines" not in again.text
