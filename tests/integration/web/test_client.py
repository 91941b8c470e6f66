"""The typed client against the real API, with an API that is away, refuses, or asks to come back."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import httpx2
import pytest
from typer.testing import CliRunner, Result

from pipeline.client import Correction, CorrigendaClient, CorrigendaRefused, Receipt, Refusal
from pipeline.domain.contract.wire import parse_message
from pipeline.domain.errors import InvalidInput, Unavailable
from pipeline.domain.review.approvals import Decision
from pipeline.domain.review.people import Role
from pipeline.entrypoints.cli.app import app
from pipeline.entrypoints.console import ExitCode
from pipeline.services.submission import encoded
from tests.support.store_rig import LINEAGE, StoreRig
from tests.support.web_rig import WebRig

STEM = Correction(prompt="The capital of Australia is", target_new="Canberra", subject="Australia")


class OverHttp(httpx2.BaseTransport):
    """Hands requests to the application in this process, after the failures that a test wants."""

    def __init__(self, web: WebRig) -> None:
        self._client = web.anonymous()
        self.before: list[Callable[[httpx2.Request], httpx2.Response]] = []
        self.num_requests = 0

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Answer a request."""
        self.num_requests += 1
        if self.before:
            return self.before.pop(0)(request)
        return self.answer(request)

    def answer(self, request: httpx2.Request) -> httpx2.Response:
        """Hand a request to the application."""
        answer = self._client.request(
            request.method, str(request.url.raw_path, "ascii"), content=request.read(), headers=dict(request.headers)
        )
        return httpx2.Response(answer.status_code, headers=answer.headers, content=answer.content)


@pytest.fixture
def transport(web: WebRig, rig: StoreRig) -> OverHttp:
    """The way to the API of this test."""
    return OverHttp(web)


@pytest.fixture
def corrigenda(web: WebRig, transport: OverHttp) -> Iterator[CorrigendaClient]:
    """A client of somebody who sends corrections."""
    token = web.token_of("desk", [Role.requester])["Authorization"].removeprefix("Bearer ")
    with CorrigendaClient("http://api", f"{token}\n", transport=transport) as made:
        yield made


def test_a_correction_is_sent_and_followed(corrigenda: CorrigendaClient, web: WebRig, rig: StoreRig) -> None:
    receipt = corrigenda.submit(STEM)
    assert corrigenda.status(receipt.id).state == "accepted"
    rig.submit(parse_message(encoded(web.publisher.sent[0][1])))
    assert corrigenda.wait(receipt.id, timeout=timedelta()).state == "queued"
    snapshot = rig.commit_batch(rig.acquire())
    assert corrigenda.wait(receipt.id, until=["candidate"]).state == "candidate"
    rig.decide(snapshot, Decision.approved)
    found = corrigenda.wait(receipt.request_id)
    assert (found.state, found.lineage) == ("live", LINEAGE)


def test_several_and_feedback_are_sent_too(corrigenda: CorrigendaClient) -> None:
    first, second = corrigenda.submit_all([STEM, {"prompt": "The capital of Chad is"}])
    assert isinstance(first, Receipt)
    assert isinstance(second, Refusal)
    assert "target_new" in second.detail
    [refused] = corrigenda.submit_all([{}])
    assert isinstance(refused, Refusal)
    chat = [{"role": "user", "content": "Capital of Australia?"}]
    assert corrigenda.feedback(chat, correction="It is Canberra.", target_new="Canberra").lineage == LINEAGE


def test_a_lost_answer_makes_no_second_correction(
    corrigenda: CorrigendaClient, transport: OverHttp, web: WebRig
) -> None:
    def lost(request: httpx2.Request) -> httpx2.Response:
        transport.answer(request)
        raise httpx2.ReadError("reset")

    transport.before = [lost, lambda request: httpx2.Response(503, headers={"Retry-After": "0"})]
    receipt = corrigenda.submit(STEM)
    assert receipt.is_duplicate
    assert len({document["request_id"] for _, document in web.publisher.sent}) == 1


def test_what_cannot_succeed_is_not_tried_again(corrigenda: CorrigendaClient, transport: OverHttp) -> None:
    with pytest.raises(CorrigendaRefused, match="name of a lineage") as refused:
        corrigenda.submit(replace(STEM, lineage="nobody"))
    assert refused.value.status == 422
    with pytest.raises(CorrigendaRefused, match="1 to 1000"):
        corrigenda.submit_all([])
    with pytest.raises(CorrigendaRefused, match="expected the id"):
        corrigenda.status("a / ? % b")
    assert transport.num_requests == 3


def test_an_api_that_stays_away_or_is_another_is_told_in_our_words(transport: OverHttp) -> None:
    def away(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("no route")

    with CorrigendaClient("http://api", "x", patience=timedelta(milliseconds=1), transport=transport) as hasty:
        transport.before = [away] * 20
        with pytest.raises(Unavailable, match="http://api to answer, got: no route"):
            hasty.status("r1")
        transport.before = [lambda request: httpx2.Response(200, text="<html>")]
        with pytest.raises(InvalidInput, match="answer of the Corrigenda API"):
            hasty.status("r1")
        transport.before = [lambda request: httpx2.Response(500, text="<html>")]
        with pytest.raises(CorrigendaRefused, match="HTTP 500"):
            hasty.status("r1")


def test_submit_goes_over_http_where_an_api_is_named(
    web: WebRig, transport: OverHttp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("CORRIGENDA_")]:
        monkeypatch.delenv(name)
    file = tmp_path / "corrections.jsonl"
    file.write_text('{"prompt": "The capital of Chad is", "target_new": "Ndjamena"}\n{"prompt": "The capital of"}\n')
    token = web.token_of("desk", [Role.requester])["Authorization"].removeprefix("Bearer ")
    monkeypatch.setenv("CORRIGENDA_API_URL", "http://api")
    client = httpx2.Client
    monkeypatch.setattr(httpx2, "Client", lambda **options: client(**(options | {"transport": transport})))

    def corrigenda(*words: str) -> Result:
        return CliRunner().invoke(app, ["submit", *words])

    assert "CORRIGENDA_API_TOKEN" in corrigenda(str(file)).stderr
    monkeypatch.setenv("CORRIGENDA_API_TOKEN", token)
    told = [json.loads(corrigenda(str(file), "--json").stdout) for _ in range(2)]
    assert told[0] == told[1]
    assert (len(told[0]["sent"]), told[0]["refused"][0]["line"]) == (1, 2)
    first, second = (document for _, document in web.publisher.sent)
    assert first == second
    assert (first["submitted_by"], first["source"]) == ("desk", "cli")
    away = httpx2.Response(503, json={"detail": "expected fewer"}, headers={"Retry-After": "3600"})
    transport.before = [lambda request: away]
    late = corrigenda(str(file))
    assert late.exit_code == ExitCode.unavailable
    assert "0 of 2 are sent, others may be; sending again is safe" in " ".join(late.stderr.split())
    one = corrigenda("--prompt", "The capital of Mali is", "--target", "Bamako")
    assert one.exit_code == 0, one.stderr
    assert "to the HTTP API" in one.stdout


def test_submit_waits_for_verdicts_over_http_too(
    web: WebRig, rig: StoreRig, transport: OverHttp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "corrections.jsonl"
    file.write_text('{"prompt": "The capital of Chad is", "target_new": "Ndjamena"}\n')
    token = web.token_of("desk", [Role.requester])["Authorization"].removeprefix("Bearer ")
    for name, value in (("URL", "http://api"), ("TOKEN", token)):
        monkeypatch.setenv(f"CORRIGENDA_API_{name}", value)
    client = httpx2.Client
    monkeypatch.setattr(httpx2, "Client", lambda **options: client(**(options | {"transport": transport})))
    assert CliRunner().invoke(app, ["submit", str(file)]).exit_code == 0
    rig.submit(parse_message(encoded(web.publisher.sent[0][1])))
    rig.query("UPDATE edit_requests SET status = 'rejected', reason = 'it says Cairo'")
    done = CliRunner().invoke(app, ["submit", str(file), "--wait"])
    assert (done.exit_code, "rejected" in done.stderr, "it says Cairo" in done.stderr) == (1, True, True)
    told = json.loads(CliRunner().invoke(app, ["submit", str(file), "--wait", "--json"]).stdout)
    assert [one["state"] for one in told["edits"]] == ["rejected"]
