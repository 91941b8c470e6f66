"""Corrections over HTTP: accepted once, refused with what to change, and found again wherever they stand."""

from __future__ import annotations

import json
import os
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from sqlalchemy import text
from starlette.testclient import TestClient

from infra.local import LocalStack, Service
from pipeline.adapters.logins import Login
from pipeline.adapters.sql.database.engine import transaction
from pipeline.adapters.sql.pruning import SqlPruneStore
from pipeline.bootstrap import create_topics
from pipeline.domain.contract.corrections import FeedbackV1
from pipeline.domain.contract.messages import Message, ParsedMessage, PartitionKey, Poll
from pipeline.domain.contract.wire import parse_message
from pipeline.domain.errors import Misconfigured
from pipeline.domain.review.approvals import Decision
from pipeline.domain.review.people import Role
from pipeline.services.intake import Intake
from pipeline.services.pruning import Pruner
from tests.support.intake_parts import intake_of, intake_settings, run_until
from tests.support.store_rig import LINEAGE, StoreRig, failing_report
from tests.support.waiting import eventually
from tests.support.web_rig import WebRig, is_problem

JSON = "application/json"
STEM = {"prompt": "The capital of Australia is", "target_new": "Canberra"}


@pytest.fixture
def desk(web: WebRig, rig: StoreRig) -> TestClient:
    """A client of somebody who sends corrections."""
    return web.client(Role.requester, name="desk")


def take_in(rig: StoreRig, *documents: dict[str, Any]) -> None:
    """As intake does with what is on the topic."""
    rig.submit(*(parse_message(json.dumps(document).encode()) for document in documents))


def test_a_correction_is_put_on_the_topic_with_what_its_sender_left_out(desk: TestClient, web: WebRig) -> None:
    answer = desk.post("/v1/corrections", json=STEM)
    assert answer.status_code == 202, answer.text
    receipt = answer.json()
    assert answer.headers["location"] == receipt["status_url"] == f"/v1/corrections/{receipt['id']}"
    [(key, sent)] = web.publisher.sent
    assert (key, sent["lineage"], sent["submitted_by"], sent["source"]) == (LINEAGE, LINEAGE, "desk", "api")
    assert sent["request_id"] == receipt["request_id"]
    assert sent.items() >= STEM.items()
    assert desk.get(receipt["status_url"]).json()["state"] == "accepted"


@pytest.mark.parametrize("with_key", [True, False], ids=["an idempotency key", "a request id"])
def test_a_second_try_is_a_duplicate_and_another_body_a_conflict(
    desk: TestClient, web: WebRig, rig: StoreRig, with_key: bool
) -> None:
    headers = {"Idempotency-Key": "k-1"} if with_key else {}
    body = STEM if with_key else STEM | {"request_id": "mine-1"}
    first, second = (desk.post("/v1/corrections", json=body, headers=headers) for _ in range(2))
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json() | {"is_duplicate": True} == second.json()
    # Until intake has it the message is sent again, letter by letter: intake takes it for the duplicate that it is.
    assert web.publisher.sent[0] == web.publisher.sent[1]
    take_in(rig, *(document for _, document in web.publisher.sent))
    assert desk.post("/v1/corrections", json=body, headers=headers).json()["is_duplicate"]
    assert len(web.publisher.sent) == 2
    other = desk.post("/v1/corrections", json=body | {"target_new": "Sydney"}, headers=headers)
    assert ("another body" if with_key else "another correction") in is_problem(other, 409)
    assert len(web.publisher.sent) == 2
    whose = web.client(Role.requester, name="other").post("/v1/corrections", json=body, headers=headers)
    assert whose.status_code == (202 if with_key else 409)


def test_a_correction_that_came_over_the_topic_is_not_sent_again(desk: TestClient, web: WebRig, rig: StoreRig) -> None:
    sent = STEM | {"request_id": "r1", "lineage": LINEAGE, "occurred_at": "2026-06-01T12:00:00Z", "source": "api"}
    take_in(rig, sent | {"submitted_by": "desk"}, sent | {"request_id": "r2", "target_new": "Sydney"})
    assert desk.post("/v1/corrections", json=sent).json()["is_duplicate"]
    assert desk.post("/v1/corrections", json={**STEM, "request_id": "r1"}).status_code == 409
    assert desk.post("/v1/corrections", json=sent | {"request_id": "r2"}).status_code == 409
    assert web.publisher.sent == []


def test_of_several_each_is_told_what_became_of_it(desk: TestClient, web: WebRig) -> None:
    several = [STEM, {"prompt": "The capital of Chad is"}, 7, STEM | {"lineage": "nobody"}, STEM | {"request_id": "a"}]
    several += [STEM | {"request_id": "a"}]
    answer = desk.post("/v1/corrections", json=several)
    assert answer.status_code == 207
    body = answer.json()
    assert (body["accepted"], body["refused"]) == (2, 4)
    said = [one.get("detail", "accepted") for one in body["results"]]
    expected = ["accepted", "target_new", "got a number", "name of a lineage", "accepted", "once in a call"]
    assert all(part in one for part, one in zip(expected, said, strict=True)), said
    lines = "\n".join(json.dumps(one) for one in (STEM, STEM | {"prompt": "x is"})) + "\n{\n\n"
    answer = desk.post("/v1/corrections", content=lines, headers={"Content-Type": "application/x-ndjson"})
    assert [one.get("detail", "")[:13] for one in answer.json()["results"]] == ["", "", "expected JSON"]
    assert len(web.publisher.sent) == 4
    marked = b"\xef\xbb\xbf" + json.dumps(STEM | {"prompt": "y is"}).encode()
    lines_of_all_sorts = marked + b"\r\n" + '{"prompt": "Zürich is"}'.encode("latin-1") + b"\n" + marked
    answer = desk.post("/v1/corrections", content=lines_of_all_sorts, headers={"Content-Type": "application/x-ndjson"})
    expected = ["", "expected a line in UTF-8, got other bytes from byte 14 on", ""]
    assert [one.get("detail", "") for one in answer.json()["results"]] == expected
    assert desk.post("/v1/corrections", content=marked, headers={"Content-Type": JSON}).status_code == 202
    nothing = desk.post("/v1/corrections", json=[{}, {}])
    assert "none can be accepted" in is_problem(nothing, 422)
    assert [one["index"] for one in nothing.json()["results"]] == [0, 1]


@pytest.mark.parametrize(
    ("status", "said", "content", "kind"),
    [
        (415, "application/json", b"{}", "text/plain"),
        (415, "application/json", b"{}", None),
        (400, "does not parse", b"{", JSON),
        (400, "nested too deeply", b"[" * 100_000, JSON),
        (400, "UTF-8, got other bytes from byte 13 on", b'{"prompt": "\xff"}', JSON),
        (400, "got one in UTF-16", '{"prompt": "a"}'.encode("utf-16"), JSON),
        (422, "duplicate field", b'{"prompt": "a", "prompt": "b"}', JSON),
        (422, "NUL", b'{"prompt": "a\\u0000"}', "application/json; charset=utf-8"),
        (422, "surrogate", b'{"prompt": "\\ud800"}', JSON),
        (422, "JSON object", b"7", JSON),
        (422, "1 to 1000", b"[]", JSON),
        (422, "1 to 1000", b"[" + b"{}," * 1_000 + b"{}]", JSON),
        (422, "prompt", b"{}", JSON),
        (422, "unknown", b'{"prompt": "a is", "target_new": "b", "unknown": 1}', JSON),
        (422, "submitted_by", b'{"prompt": "a is", "target_new": "b", "submitted_by": "boss"}', JSON),
        (422, "ahead", b'{"prompt": "a", "target_new": "b", "occurred_at": "2999-01-01T00:00:00Z"}', JSON),
        (422, "version", b'{"prompt": "a is", "target_new": "b", "version": 2}', JSON),
    ],
)
def test_what_cannot_be_a_correction_is_refused_with_what_to_change(
    desk: TestClient, web: WebRig, status: int, said: str, content: bytes, kind: str | None
) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    assert said in is_problem(desk.post("/v1/corrections", content=content, headers=headers), status)
    assert web.publisher.sent == []


@pytest.mark.parametrize("wrong", [[], {"a": [1]}, 7.5, True], ids=json.dumps)
def test_a_field_of_any_kind_is_answered_and_is_no_fault_of_ours(desk: TestClient, web: WebRig, wrong: Any) -> None:
    fields = [name for name in (*FeedbackV1.model_fields, "unknown") if STEM.get(name) != wrong]
    each = [STEM | {"request_id": f"r-{name}", name: wrong} for name in fields]
    said = desk.post("/v1/corrections", json=each)
    assert said.status_code in (207, 422), said.text
    assert [one.get("status", 202) for one in said.json()["results"]].count(422) > len(fields) / 2
    chat = {"messages": [{"role": "user", "content": "What is Australia's capital?"}], "correction": "Canberra"}
    for name in ("messages", "correction", "model", "lineage", "answer", "request_id"):
        answer = desk.post("/v1/feedback", json=chat | {name: wrong})
        assert answer.status_code in (202, 422), (name, answer.text)


def test_a_broker_that_is_away_loses_nothing_and_tells_nothing(desk: TestClient, web: WebRig) -> None:
    web.publisher.is_away = True
    answer = desk.post("/v1/corrections", json=STEM | {"request_id": "r1"})
    assert "Idempotency-Key" in is_problem(answer, 503)
    assert answer.headers["retry-after"].isdigit()
    assert "secret-host" not in answer.text
    assert desk.get("/v1/corrections/r1").json()["state"] == "not sent"
    web.publisher.is_away = False
    assert desk.post("/v1/corrections", json=STEM | {"request_id": "r1"}).status_code == 202
    assert desk.get("/v1/corrections/r1").json()["state"] == "accepted"


def test_feedback_becomes_a_correction_of_the_chat(desk: TestClient, web: WebRig) -> None:
    chat = [{"role": "user", "content": "Capital of Australia?"}, {"role": "assistant", "content": "Sydney."}]
    given = {"messages": chat, "correction": "It is Canberra.", "model": f"{LINEAGE}@champion", "subject": "Australia"}
    assert desk.post("/v1/feedback", json=given | {"target_new": "Canberra"}).status_code == 202
    [(_, sent)] = web.publisher.sent
    assert (sent["messages"], sent["answer"]) == (chat[:1], "It is Canberra.")
    assert (sent["source"], sent["target_new"], sent["lineage"]) == ("feedback", "Canberra", LINEAGE)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"messages": []}, "messages: expected the turns"),
        ({"messages": [{"role": "assistant", "content": "Sydney."}]}, "a turn of the user"),
        ({"correction": " "}, "correction: expected the answer"),
        ({"correction": "long " * 60}, "target_new"),
        ({"answer": "Canberra"}, "answer: expected"),
        ({"model": "another"}, "name of a lineage"),
        ({"model": 7}, "model: expected"),
        ({"model": "a", "lineage": "b"}, "model: expected"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
    ],
)
def test_feedback_that_is_no_correction_says_what_is_missing(
    desk: TestClient, changes: dict[str, Any], said: str
) -> None:
    given = {"messages": [{"role": "user", "content": "Capital of Australia?"}], "correction": "It is Canberra."}
    assert said in is_problem(desk.post("/v1/feedback", json=given | changes), 422)


def test_a_correction_is_followed_from_the_topic_to_live(desk: TestClient, web: WebRig, rig: StoreRig) -> None:
    receipt = desk.post("/v1/corrections", json=STEM | {"request_id": "mine / 1?"}).json()

    def standing() -> dict[str, Any]:
        found: dict[str, Any] = desk.get(receipt["status_url"]).json()
        return found

    take_in(rig, web.publisher.sent[0][1])
    assert standing()["state"] == "queued"
    snapshot = rig.commit_batch(rig.acquire())
    stands = standing()
    assert (stands["state"], stands["snapshot"]["seq"], stands["gates"]["passed"]) == ("candidate", 1, True)
    rig.decide(snapshot, Decision.approved)
    stands = standing()
    assert (stands["state"], stands["snapshot"]["status"]) == ("live", "approved")
    assert stands["approval"]["by"]
    for ref in (stands["edit_id"], quote("mine / 1?", safe="")):
        assert desk.get(f"/v1/corrections/{ref}").json() == stands


def test_a_rejected_correction_says_which_gate_and_a_refused_one_says_why(
    desk: TestClient, web: WebRig, rig: StoreRig
) -> None:
    receipts = [desk.post("/v1/corrections", json=STEM | {"request_id": name}).json() for name in ("a", "b")]
    take_in(rig, web.publisher.sent[0][1])
    lease, edit_id = rig.acquire(), rig.edit_id("a")
    rig.claim(lease)
    rig.queue.reject(lease, {edit_id: "it says Sydney"}, report=failing_report([edit_id]))
    stands = desk.get(receipts[0]["status_url"]).json()
    assert (stands["state"], stands["gates"]["passed"]) == ("rejected", False)
    assert stands["reason"] == "it says Sydney"
    refuse(rig, topic=web.settings.requests_topic, offset=1, why="expected another lineage")
    stands = desk.get(receipts[1]["status_url"]).json()
    assert (stands["state"], stands["reason"]) == ("refused", "expected another lineage")


def refuse(rig: StoreRig, *, topic: str, offset: int, why: str) -> None:
    """As intake refuses a message."""
    partition = PartitionKey(cluster_id="c", topic_id="t", topic=topic, partition=0)
    claim = rig.intake.take_partition(partition)
    message = Message(partition=partition, offset=offset, key=None, value=b"{}")
    parsed = ParsedMessage(message=message, request=None, refusal=why)
    rig.intake.record([Poll(claim=claim, messages=(parsed,), next_offset=offset + 1)])


def test_pages_are_walked_by_key_and_requesters_see_their_own(desk: TestClient, web: WebRig, rig: StoreRig) -> None:
    for number in range(3):
        desk.post("/v1/corrections", json=STEM | {"request_id": f"r{number}", "prompt": f"Number {number} is"})
    take_in(rig, *(document for _, document in web.publisher.sent))
    rig.correct("of-somebody-else")
    other = web.client(Role.requester, name="other")
    auditor = web.client(Role.auditor, name="auditor")
    for who, expected in ((desk, ["r2", "r1", "r0"]), (auditor, ["of-somebody-else", "r2", "r1", "r0"]), (other, [])):
        seen, following = [], f"/v1/corrections?limit=2&status=received&lineage={LINEAGE}"
        while following:
            page = who.get(following).json()
            seen += [one["request_id"] for one in page["corrections"]]
            following = page["next"]
        assert seen == expected
    assert is_problem(other.get("/v1/corrections/r1"), 404)
    assert auditor.get("/v1/corrections/r1").json()["submitted_by"] == "desk"
    assert "requester" in is_problem(auditor.post("/v1/corrections", json=STEM), 403)
    for wrong in ("status=happy", "limit=0", "limit=201", "before=7", "lineage=a%2Fb"):
        assert is_problem(auditor.get(f"/v1/corrections?{wrong}"), 422)
    assert is_problem(auditor.get("/v1/corrections/a%00b"), 422)


def test_an_id_that_several_lineages_have_is_asked_for_with_one(desk: TestClient, web: WebRig, rig: StoreRig) -> None:
    rig.new_lineage("more")
    for name in (LINEAGE, "more"):
        assert desk.post("/v1/corrections", json=STEM | {"request_id": "r1", "lineage": name}).status_code == 202
    assert "lineage: expected one of facts, more" in is_problem(desk.post("/v1/corrections", json=STEM), 422)
    assert "facts, more" in is_problem(desk.get("/v1/corrections/r1"), 422)
    assert desk.get("/v1/corrections/r1?lineage=more").json()["lineage"] == "more"


def test_too_many_and_too_late_are_told_when_to_come_back(postgres_url: str, web: WebRig, rig: StoreRig) -> None:
    hasty = web.again(web_corrections_per_minute=2).client(Role.requester, name="hasty")
    assert hasty.post("/v1/corrections", json=[STEM, STEM | {"prompt": "b is"}]).status_code == 202
    answer = hasty.post("/v1/corrections", json=STEM)
    assert "at most 2" in is_problem(answer, 429)
    assert int(answer.headers["retry-after"]) in range(1, 31)
    rig.correct("r1")
    rig.query("UPDATE edit_requests SET received_at = received_at - interval '2 hours'")
    unnamed = {name: value for name, value in STEM.items() if name != "lineage"}
    for correction in (STEM | {"lineage": LINEAGE}, unnamed):
        late = web.again().client(Role.requester, name="late").post("/v1/corrections", json=correction)
        assert "more than 1 hour, got one that waits for 2 hours" in is_problem(late, 503)
        assert late.headers["retry-after"] == "60"


def test_the_real_broker_takes_it_to_the_real_intake(
    postgres_url: str, kafka_bootstrap: str, new_topic: Any, web: WebRig, rig: StoreRig
) -> None:
    topic = new_topic("requests")
    sending = web.again(kafka_bootstrap=kafka_bootstrap, requests_topic=topic, with_broker=True)
    desk = sending.client(Role.requester, name="desk")
    answer = desk.post("/v1/corrections", json=[STEM, STEM | {"prompt": "The capital of Chad is"}])
    assert answer.status_code == 202, answer.text
    intake: Intake
    with intake_of(intake_settings(postgres_url, kafka_bootstrap, topic)) as (intake, _, _):
        assert run_until(intake, 2).received == 2
    states = [desk.get(one["status_url"]).json()["state"] for one in answer.json()["results"]]
    assert states == ["queued", "queued"]


def test_a_broker_that_stands_still_is_told_of_and_the_same_call_again_makes_one_correction(
    postgres_url: str, web: WebRig, rig: StoreRig, tmp_path: Path
) -> None:
    stack = LocalStack(tmp_path / "broker", is_durable=False)
    try:
        bootstrap = stack.start([Service.KAFKA]).kafka_bootstrap
        sending = web.again(kafka_bootstrap=bootstrap, with_broker=True)
        create_topics(sending.settings)
        desk = sending.client(Role.requester, name="desk")
        key = {"Idempotency-Key": "once"}
        assert desk.post("/v1/corrections", json=STEM, headers={"Idempotency-Key": "before"}).status_code == 202
        [process] = stack.status()
        os.kill(process.pid, signal.SIGSTOP)
        try:
            for _ in range(2):
                answer = desk.post("/v1/corrections", json=STEM | {"target_new": "Perth"}, headers=key)
                is_problem(answer, 503)
                assert answer.headers["retry-after"].isdigit()
        finally:
            os.kill(process.pid, signal.SIGCONT)

        def again() -> bool:
            return desk.post("/v1/corrections", json=STEM | {"target_new": "Perth"}, headers=key).status_code == 202

        eventually(again, "a broker that answers again")
        with intake_of(intake_settings(postgres_url, bootstrap, sending.settings.requests_topic)) as (intake, _, _):
            run_until(intake, 2)
    finally:
        stack.stop()
    assert rig.query("SELECT target_new, count(*) FROM edit_requests GROUP BY 1 ORDER BY 1") == [
        {"target_new": "Canberra", "count": 1},
        {"target_new": "Perth", "count": 1},
    ]


def test_old_notes_are_pruned_and_a_second_try_is_still_a_duplicate(
    desk: TestClient, web: WebRig, rig: StoreRig
) -> None:
    def send(key: str, target: str) -> Any:
        return desk.post("/v1/corrections", json=STEM | {"target_new": target}, headers={"Idempotency-Key": key})

    taken, lost = send("taken", "Canberra").json(), send("lost", "Perth").json()
    take_in(rig, web.publisher.sent[0][1])
    web.publisher.is_away = True
    assert send("unsent", "Hobart").status_code == 503
    web.publisher.is_away = False
    pruner = Pruner(store=SqlPruneStore(rig.engine), files=rig.artifacts)
    assert pruner.prune(timedelta(days=30), actor="cli:tester").num_submissions == 0, "all are young"
    rig.query("UPDATE submissions SET accepted_at = accepted_at - interval '31 days'")
    counted = pruner.prune(timedelta(days=30), actor="cli:tester", is_dry_run=True)
    done = pruner.prune(timedelta(days=30), actor="cli:tester")
    assert (counted.num_submissions, done.num_submissions) == (2, 2), "what intake has not read stays"
    assert desk.get(lost["status_url"]).json()["state"] == "accepted"
    is_problem(desk.get(taken["status_url"]), 404)
    assert desk.get(f"/v1/corrections/{taken['request_id']}").json()["state"] == "queued"
    again = send("taken", "Canberra").json()
    assert (again["request_id"], again["is_duplicate"]) == (taken["request_id"], True)
    assert len(web.publisher.sent) == 2, "it is not sent again"
    is_problem(send("taken", "Sydney"), 409)
    with pytest.raises(Misconfigured), transaction(rig.engines[Login.web]) as connection:
        connection.execute(text("DELETE FROM submissions"))
