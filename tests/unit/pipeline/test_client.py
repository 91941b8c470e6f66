"""The typed client against answers that a test makes up: what it tries again, how long, and what it says."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import httpx2
import pytest

from pipeline.client import Correction, CorrectionStatus, CorrigendaClient, CorrigendaRefused, Probe
from pipeline.domain.contract.answers import MEANINGS
from pipeline.domain.contract.corrections import CorrectionV1, filled_in
from pipeline.domain.contract.wire import parse_object
from pipeline.domain.errors import InvalidInput, Unavailable

NOT_SAID = {"version", "submitted_by"}
"""Fields of a correction that the API fills in, whatever a program says."""
AT = datetime(2026, 6, 1, tzinfo=UTC)
Answers = Callable[[httpx2.Request], httpx2.Response]


def client_of(answers: Answers, patience: float = 0.0) -> tuple[CorrigendaClient, list[str]]:
    """Return a client of an API that answers so, and what it tells while it tries again."""
    told: list[str] = []
    transport = httpx2.MockTransport(answers)
    made = CorrigendaClient(
        "http://api/", "desk:x", patience=timedelta(seconds=patience), tell=told.append, transport=transport
    )
    return made, told


def standing(state: str) -> httpx2.Response:
    """Return the API's answer about a correction in a state."""
    found = CorrectionStatus(
        id="1", request_id="r1", lineage="facts", state=state, meaning=state, occurred_at=AT, links={}
    )
    return httpx2.Response(200, text=found.model_dump_json())


def test_a_correction_has_the_fields_of_the_contract() -> None:
    assert {field.name for field in dataclasses.fields(Correction)} == set(CorrectionV1.model_fields) - NOT_SAID


def test_what_a_program_writes_is_what_the_api_takes() -> None:
    given = Correction(
        prompt="The capital of Chad is",
        target_new="N'Djamena",
        rephrases=["Chad is governed from"],
        locality=["The capital of Mali is", Probe(prompt="The capital of Niger is", target="Niamey")],
        occurred_at=datetime(2026, 6, 2, tzinfo=UTC),
    )
    sent = json.loads(json.dumps(given.document()))
    read = parse_object(filled_in(sent, request_id="r1", lineage="facts", submitted_by="desk", occurred_at=AT))
    assert [(probe.prompt, probe.target) for probe in read.locality] == [
        ("The capital of Mali is", None),
        ("The capital of Niger is", "Niamey"),
    ]
    assert (read.rephrases, read.occurred_at) == (("Chad is governed from",), given.occurred_at)
    assert Correction(target_new="x").document() == {"target_new": "x"}


@pytest.mark.parametrize("url", ["", "127.0.0.1:8080", "ftp://api", "http://", "http://api:port", "localhost"])
def test_an_address_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(InvalidInput, match="url: expected an address such as"):
        CorrigendaClient(url, "desk:x")


@pytest.mark.parametrize("token", ["", " \n", "desk:sec\nret", "desk:secrét", "desk: secret"])
def test_a_token_that_is_none_is_refused_at_once_and_not_shown(token: str) -> None:
    with pytest.raises(InvalidInput, match="token: expected NAME:PASSWORD") as refused:
        CorrigendaClient("http://api", token)
    assert "sec" not in str(refused.value)


def test_an_api_that_asks_for_more_time_than_there_is_patience_is_not_waited_for() -> None:
    tried = []

    def busy(request: httpx2.Request) -> httpx2.Response:
        tried.append(request)
        return httpx2.Response(429, json={"detail": "expected fewer"}, headers={"Retry-After": "3600"})

    client, told = client_of(busy, patience=60.0)
    with pytest.raises(Unavailable, match="expected fewer; it asks to come back in 3600 s"):
        client.submit(Correction(prompt="a", target_new="b"))
    assert (len(tried), told) == (1, [])


def test_a_wait_that_the_api_asks_for_is_told_and_then_over() -> None:
    receipt = {"id": "1", "request_id": "r", "lineage": "facts", "status_url": "/v1", "is_duplicate": False}
    busy = httpx2.Response(429, json={"detail": "expected fewer"}, headers={"Retry-After": "1"})
    answers = [busy, httpx2.Response(202, json=receipt)]
    client, told = client_of(lambda request: answers.pop(0), patience=60.0)
    assert client.submit({"prompt": "a", "target_new": "b"}).request_id == "r"
    assert told == [
        "expected the API at http://api to take the request, got: expected fewer; trying again in 1 s, as it asks"
    ]


def test_a_time_to_come_back_that_is_no_number_is_not_read() -> None:
    answers = [httpx2.Response(503, headers=[(b"Retry-After", "²".encode("latin-1"))])]
    receipt = {"id": "1", "request_id": "r", "lineage": "facts", "status_url": "/v1", "is_duplicate": False}
    answers.append(httpx2.Response(202, json=receipt))
    client, told = client_of(lambda request: answers.pop(0), patience=60.0)
    assert client.submit({"prompt": "a", "target_new": "b"}).request_id == "r"
    assert len(told) == 1


def test_a_try_that_failed_is_told_and_the_next_has_the_same_key() -> None:
    keys = []

    def at_last(request: httpx2.Request) -> httpx2.Response:
        keys.append(request.headers["idempotency-key"])
        if len(keys) == 1:
            raise httpx2.ConnectError("connection refused")
        if len(keys) == 2:
            return httpx2.Response(503, headers={"Retry-After": "0"})
        receipt = {"id": "1", "request_id": "r", "lineage": "facts", "status_url": "/v1", "is_duplicate": False}
        return httpx2.Response(202, json=receipt)

    client, told = client_of(at_last, patience=60.0)
    assert client.submit({"prompt": "a", "target_new": "b"}).request_id == "r"
    assert len(set(keys)) == 1
    assert told[0] == "expected the API at http://api to answer, got: connection refused; trying again"
    assert "HTTP 503" in told[1]


def test_an_answer_that_never_comes_says_how_long_it_was_waited_for() -> None:
    def silent(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ReadTimeout("")

    with pytest.raises(Unavailable, match="http://api to answer within 30 s, got nothing"):
        client_of(silent)[0].status("r1")


def test_what_is_no_answer_of_the_api_says_so() -> None:
    client, _ = client_of(lambda request: httpx2.Response(404, text="<html>"))
    with pytest.raises(CorrigendaRefused, match="answer of the Corrigenda API, got HTTP 404") as refused:
        client.status("r1")
    assert refused.value.status == 404


def test_waiting_tells_each_state_and_takes_only_states_that_there_are() -> None:
    states, asked, told = ["queued", "candidate"], [], []

    def moving(request: httpx2.Request) -> httpx2.Response:
        asked.append(request.url.params.get("lineage"))
        return standing(states[len(asked) - 1])

    client, _ = client_of(moving)
    found = client.wait("r1", until="candidate", lineage="facts", tell=lambda one: told.append(one.state))
    assert (found.state, told, set(asked)) == ("candidate", ["queued"], {"facts"})
    with pytest.raises(InvalidInput, match=r"until: expected states among .*'live'.*; got 'aproved'"):
        client.wait("r1", until={"aproved", *MEANINGS})
