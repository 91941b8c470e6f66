"""Results go to URLs that people registered: signed, once, in order, and never into our own network."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from prometheus_client import REGISTRY

from pipeline import bootstrap
from pipeline.adapters import webhook_poster
from pipeline.adapters.logins import Login
from pipeline.adapters.sql.outbox import SqlOutboxStore
from pipeline.adapters.sql.standing import SqlStanding
from pipeline.adapters.webhook_poster import WebhookRefused, checked, post
from pipeline.domain.contract.webhooks import check_signature
from pipeline.domain.errors import InvalidInput
from pipeline.domain.retries import rule_of
from pipeline.domain.review.approvals import Decision
from pipeline.domain.review.people import Role
from pipeline.services.relaying import OutboxRelay
from pipeline.services.standing import StandingTeller
from pipeline.services.webhooks import WebhookTeller
from tests.support.factories import make_request
from tests.support.store_rig import LINEAGE, StoreRig, failing_report
from tests.support.web_rig import WebRig, is_problem


class Receiver:
    """A server that remembers what is posted to it."""

    def __init__(self) -> None:
        self.heard: list[tuple[dict[str, str], bytes]] = []
        self.status = 204
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.heard.append((dict(self.headers), body))
                self.send_response(receiver.status)
                self.send_header("Location", "http://127.0.0.1:1/")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                return

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://localhost:{self.server.server_port}/hook?a=b"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Somebody's server."""
    made = Receiver()
    yield made
    made.close()


def relay_of(web: WebRig) -> OutboxRelay:
    """A relay as the control worker has it, with its login, without topics."""
    kept = bootstrap.stores(web.settings.model_copy(update={"database_role": str(Login.control)}))
    teller = WebhookTeller(
        webhooks=kept.api.webhooks, post=lambda url, body, headers: post(url, body, headers, allow_private=True)
    )
    return OutboxRelay(outbox=kept.outbox, handlers={"result": teller.owe, "webhook": teller.deliver})


def events(receiver: Receiver) -> list[tuple[str, str]]:
    said = [json.loads(body) for _, body in receiver.heard]
    return [(one["type"], one["data"]["request_id"]) for one in said]


def test_a_webhook_hears_of_its_owners_corrections_alone_signed(web: WebRig, rig: StoreRig, receiver: Receiver) -> None:
    web = web.again(webhook_private_networks=True)
    desk = web.client(Role.requester, name="desk")
    made = desk.post("/v1/webhooks", json={"url": receiver.url}).json()
    relay = relay_of(web)

    owners = {"bad": "desk", "of-another": "another"}
    rig.submit(*(make_request(name, prompt=f"{name} is", submitted_by=who) for name, who in owners.items()))
    lease, ids = rig.acquire(), [rig.edit_id(name) for name in owners]
    rig.claim(lease)
    rig.queue.reject(lease, dict.fromkeys(ids, "it says Sydney"), report=failing_report(ids))
    relay.run_once("result")
    relay.run_once("webhook")
    assert events(receiver) == [("correction.rejected", "bad")]
    headers, body = receiver.heard[0]
    check_signature(made["secret"], headers, body, now=datetime.now(UTC))
    assert json.loads(body)["data"]["reason"] == "it says Sydney"
    for changed, late in ((body + b" ", timedelta()), (body, timedelta(hours=1))):
        with pytest.raises(InvalidInput, match="expected a webhook"):
            check_signature(made["secret"], headers, changed, now=datetime.now(UTC) + late)


def test_live_and_withdrawn_are_told_as_the_champion_moves_each_once(
    web: WebRig, rig: StoreRig, receiver: Receiver
) -> None:
    web = web.again(webhook_private_networks=True)
    operator = web.client(Role.operator, name="operator")
    wanted = ["correction.live", "correction.withdrawn", "correction.reverted"]
    answer = operator.post("/v1/webhooks", json={"url": receiver.url, "lineage": LINEAGE, "events": wanted})
    assert answer.status_code == 201, answer.text
    relay = relay_of(web)

    def told() -> list[tuple[str, str]]:
        receiver.heard.clear()
        relay.run_once("result")
        relay.run_once("webhook")
        return events(receiver)

    rig.correct("r1")
    first = rig.commit_batch(rig.acquire())
    rig.correct("r2")
    second = rig.commit_batch(rig.acquire())
    assert told() == []
    rig.decide(first, Decision.approved)
    assert told() == [("correction.live", "r1")]
    rig.decide(second, Decision.approved)
    assert told() == [("correction.live", "r2")]
    rig.decide(first, Decision.rolled_back)
    assert told() == [("correction.withdrawn", "r2")]
    rig.review.request_revert(LINEAGE, [rig.edit_id("r1")], actor="test", reason="wrong")
    rig.lineages.resume(LINEAGE, actor="test")
    third = rig.commit_removal(rig.acquire())
    assert told() == [("correction.reverted", "r1")]
    rig.decide(third, Decision.approved)
    assert sorted(told()) == [("correction.live", "r2"), ("correction.withdrawn", "r1")]
    assert told() == []


def test_a_webhook_hears_nothing_more_once_its_owner_has_left(web: WebRig, rig: StoreRig, receiver: Receiver) -> None:
    web = web.again(webhook_private_networks=True)
    for name, role, lineage in (("desk", Role.requester, None), ("ops", Role.operator, LINEAGE)):
        wanted = {"url": receiver.url, "events": ["correction.candidate"], "lineage": lineage}
        made = web.client(role, name=name).post("/v1/webhooks", json=wanted)
        assert made.status_code == 201, made.text
    relay = relay_of(web)
    for request_id in ("r1", "r2"):
        rig.submit(make_request(request_id, submitted_by="desk"))
        rig.commit_batch(rig.acquire())
        relay.run_once("result")
        # What was owed before they left is not sent either.
        rig.query("UPDATE people SET roles = '{auditor}' WHERE name = 'ops'")
        rig.query("UPDATE people SET roles = '{}', removed_at = clock_timestamp() WHERE name = 'desk'")
        relay.run_once("webhook")
    assert events(receiver) == []


def test_a_receiver_that_fails_hears_again_with_the_same_id_and_a_removed_one_no_more(
    web: WebRig, rig: StoreRig, receiver: Receiver
) -> None:
    web = web.again(webhook_private_networks=True)
    desk = web.client(Role.requester, name="desk")
    made = desk.post("/v1/webhooks", json={"url": receiver.url, "events": ["correction.candidate"]}).json()
    rig.submit(make_request("r1", submitted_by="desk"))
    rig.commit_batch(rig.acquire())
    relay = relay_of(web)
    relay.run_once("result")
    for status in (500, 302, 204):
        receiver.status = status
        rig.query("UPDATE outbox SET next_attempt_at = clock_timestamp()")
        relay.run_once("webhook")
    ids = [headers["webhook-id"] for headers, _ in receiver.heard]
    assert len(ids) == 3
    assert len(set(ids)) == 1
    [row] = rig.query("SELECT attempts, done_at FROM outbox WHERE kind = 'webhook'")
    assert row["attempts"] == 2
    assert row["done_at"]
    assert desk.delete(f"/v1/webhooks/{made['id']}").status_code == 204
    assert is_problem(desk.delete(f"/v1/webhooks/{made['id']}"), 404)
    rig.submit(make_request("r2", prompt="another is", submitted_by="desk"))
    rig.commit_batch(rig.acquire())
    relay.run_once("result")
    assert relay.run_once("webhook") == 0


def test_a_receiver_that_is_away_for_a_day_hears_afterwards_and_is_seen_to_be_away_meanwhile(
    web: WebRig, rig: StoreRig, receiver: Receiver
) -> None:
    web = web.again(webhook_private_networks=True)
    wanted = {"url": receiver.url, "events": ["correction.candidate"]}
    desk = web.client(Role.requester, name="desk")
    assert desk.post("/v1/webhooks", json=wanted).json()["failing"] is None
    rig.submit(make_request("r1", submitted_by="desk"))
    rig.commit_batch(rig.acquire())
    relay, outbox = relay_of(web), SqlOutboxStore(rig.engine)
    relay.run_once("result")
    receiver.status = 503
    waited, rule = timedelta(), rule_of("webhook")
    for _ in range(rule.max_failures - 1):
        assert relay.run_once("webhook") == 0
        [row] = outbox.failing()
        waited += row["next_attempt_at"] - rig.now()
        rig.query("UPDATE outbox SET next_attempt_at = clock_timestamp() WHERE kind = 'webhook'")
    assert waited > timedelta(hours=24)
    assert (row["attempts"], "with 2xx, got 503" in row["error"]) == (rule.max_failures - 1, True)
    counts = outbox.counts()
    assert (counts["failing"], counts["given_up"]) == (1, 0)
    [told] = desk.get("/v1/webhooks").json()["webhooks"]
    assert (told["failing"]["messages"], told["failing"]["given_up"]) == (1, 0)
    assert "with 2xx, got 503" in told["failing"]["last_error"]
    assert datetime.fromisoformat(told["failing"]["since"]) == row["created_at"]
    StandingTeller(SqlStanding(rig.engines[Login.control]), kinds=relay.kinds).run_once()
    assert REGISTRY.get_sample_value("corrigenda_outbox_failing", {"kind": "webhook"}) == 1
    receiver.status = 204
    assert relay.run_once("webhook") == 1
    assert events(receiver)[-1] == ("correction.candidate", "r1")
    assert len({headers["webhook-id"] for headers, _ in receiver.heard}) == 1
    assert (outbox.failing(), outbox.counts()["failing"]) == ((), 0)
    assert desk.get("/v1/webhooks").json()["webhooks"][0]["failing"] is None


def test_what_was_given_up_is_told_to_the_owner_of_the_webhook_alone(
    web: WebRig, rig: StoreRig, receiver: Receiver
) -> None:
    web = web.again(webhook_private_networks=True)
    wanted = {"url": receiver.url, "events": ["correction.candidate"]}
    desk, other = (web.client(Role.requester, name=name) for name in ("desk", "other"))
    for client in (desk, other):
        assert client.post("/v1/webhooks", json=wanted).status_code == 201
    rig.submit(make_request("r1", submitted_by="desk"))
    rig.commit_batch(rig.acquire())
    relay = relay_of(web)
    relay.run_once("result")
    receiver.status = 503
    rig.query("UPDATE outbox SET attempts = 100 WHERE kind = 'webhook'")
    relay.run_once("webhook")
    [told] = desk.get("/v1/webhooks").json()["webhooks"]
    assert (told["failing"]["messages"], told["failing"]["given_up"]) == (0, 1)
    assert [one["failing"] for one in other.get("/v1/webhooks").json()["webhooks"]] == [None]


def test_secrets_are_shown_once_and_registrations_to_their_owner(web: WebRig, rig: StoreRig) -> None:
    web = web.again(webhook_private_networks=True)
    desk = web.client(Role.requester, name="desk")
    other = web.client(Role.requester, name="other")
    made = desk.post("/v1/webhooks", json={"url": "http://127.0.0.1:9/"}).json()
    assert made["secret"].startswith("whsec_")
    listed = desk.get("/v1/webhooks")
    assert [one["id"] for one in listed.json()["webhooks"]] == [made["id"]]
    assert made["secret"] not in listed.text
    assert other.get("/v1/webhooks").json() == {"webhooks": []}
    assert is_problem(other.delete(f"/v1/webhooks/{made['id']}"), 404)
    assert is_problem(desk.delete("/v1/webhooks/no-id"), 404)
    mine = {"url": "http://127.0.0.1:9/", "lineage": LINEAGE}
    assert "operator" in is_problem(desk.post("/v1/webhooks", json=mine), 403)
    assert "events" in is_problem(desk.post("/v1/webhooks", json={"url": "http://127.0.0.1/", "events": ["x"]}), 422)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/",
        "ftp://127.0.0.1/",
        "https://",
        "https:///path",
        "https://127.0.0.1/",
        "https://2130706433/",
        "https://0x7f.1/",
        "https://localhost:8080/",
        "https://10.0.0.1/",
        "https://169.254.169.254/latest/meta-data",
        "https://[::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://[64:ff9b::a00:1]/",
        "https://[64:ff9b:1::a00:1]/",
        "https://[2002:a00:1::1]/",
        "https://[::10.0.0.1]/",
        "https://[fec0::1]/",
        "https://bücher.example/",
        "https://[fe80::1%25eth0]/",
        "https://224.0.0.1/",
        "https://0.0.0.0/",
        "https://user:secret@8.8.8.8/",
        "https://8.8.8.8/#fragment",
        "https://8.8.8.8:99999/",
        "https://8.8.8.8/\r\nX: y",
        "https://no-such-host.invalid/",
        "https://8.8.8.8/" + "a" * 2_000,
    ],
)
def test_a_url_that_leads_inside_or_is_none_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match=r"^url: expected") as refused:
        checked(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "169.254.170.2",
        "0xa9fea9fe",
        "[fe80::1]",
        "[::ffff:169.254.169.254]",
        "[64:ff9b::a9fe:a9fe]",
        "[64:ff9b:1::a9fe:a9fe]",
        "[::169.254.169.254]",
        "[2002:a9fe:a9fe::1]",
        "[fd00:ec2::254]",
        "[fd20:ce::254]",
        "100.100.100.200",
        "168.63.129.16",
    ],
)
def test_a_clouds_metadata_is_refused_where_private_networks_are_allowed(host: str) -> None:
    with pytest.raises(InvalidInput, match=r"^url: expected the host of a receiver, got .* link-local or metadata"):
        checked(f"http://{host}/latest/meta-data", allow_private=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "10.0.0.1", "192.168.1.1", "[::1]", "[fd12:3456::1]"])
def test_a_private_network_is_good_where_it_is_allowed(host: str) -> None:
    assert checked(f"http://{host}/hook", allow_private=True).host == host


def test_a_public_address_is_good_and_is_what_is_connected_to() -> None:
    target = checked("https://8.8.8.8:8443/hook?a=b")
    assert (target.url, target.host, target.name) == ("https://8.8.8.8:8443/hook?a=b", "8.8.8.8:8443", "8.8.8.8")


def test_a_receiver_that_is_away_is_an_error_that_names_no_path(receiver: Receiver) -> None:
    receiver.close()
    with pytest.raises(WebhookRefused, match=r"expected localhost:\d+ to answer, got: .*refused") as refused:
        post(receiver.url, b"{}", {}, allow_private=True)
    assert "hook" not in str(refused.value)


def test_a_receiver_that_says_nothing_or_sends_elsewhere_is_told_in_words(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver.status = 302
    with pytest.raises(WebhookRefused, match="got 302, which leads elsewhere and is not followed"):
        post(receiver.url, b"{}", {}, allow_private=True)
    monkeypatch.setattr(webhook_poster, "TIMEOUT_SECONDS", 0.1)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(WebhookRefused, match=r"127\.0\.0\.1:\d+ to answer in 0\.1 s, got nothing"),
    ):
        post(f"http://127.0.0.1:{silent.getsockname()[1]}/", b"{}", {}, allow_private=True)


def test_a_receiver_that_never_comes_to_an_answer_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook_poster, "DELIVERY_SECONDS", 0.3)

    def talk(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        # A byte of this comes before each read has waited too long, for ever.
        with connection, suppress(OSError):
            while True:
                connection.sendall(b"HTTP/1.1 102 Processing\r\n\r\n")
                pause.wait(0.01)

    pause = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        talker = threading.Thread(target=talk, args=(listener,), daemon=True)
        talker.start()
        with pytest.raises(WebhookRefused, match=r"expected 127\.0\.0\.1:\d+ to answer"):
            post(f"http://127.0.0.1:{listener.getsockname()[1]}/", b"{}", {}, allow_private=True)
        talker.join()


def test_the_control_worker_sends_results_to_both_places(web: WebRig) -> None:
    settings: Any = web.settings.model_copy(update={"redis_url": web.settings.database_url, "mlflow_uri": "http://x"})
    assert {"result", "webhook"} <= set(bootstrap.relay(settings).kinds)
