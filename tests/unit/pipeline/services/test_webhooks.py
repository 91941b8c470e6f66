"""A receiver that lets us wait is left alone for a while, and others hear meanwhile."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.domain.contract.webhooks import WebhookEvent
from pipeline.domain.errors import CorrigendaError
from pipeline.domain.retries import OURS, rule_of
from pipeline.services.ports import OutboxItem
from pipeline.services.relaying import NotYet, OutboxRelay
from pipeline.services.webhooks import FIRST_REST, LONGEST_REST, WebhookTeller
from tests.support.fakes import MemoryDatabase, MemoryOutboxStore


class Refused(CorrigendaError):
    """A message that was not taken."""


class Receivers:
    """Two receivers, of which one takes its time; and the clock."""

    def __init__(self) -> None:
        self.now, self.slowness, self.is_away = 1_000.0, 10.0, True
        self.asked: list[Any] = []

    def owe(self, edit_id: str, *, event: WebhookEvent, result_key: str, payload: Mapping[str, Any]) -> None:
        """Nothing is owed here."""

    def target(self, webhook_id: str) -> tuple[str, str] | None:
        return (webhook_id, "whsec_c2VjcmV0") if webhook_id != "removed" else None

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> None:
        self.asked.append(url)
        if url == "slow":
            self.now += self.slowness
            if self.is_away:
                raise Refused("no answer")


def item(webhook_id: str) -> OutboxItem:
    payload = {"webhook_id": webhook_id, "event": "correction.live", "at": "2026-01-01T00:00:00Z", "data": {}}
    return OutboxItem(outbox_id="o", kind="webhook", dedup_key="k", payload=payload, attempts=0, claim="c")


@pytest.fixture
def receivers() -> Receivers:
    return Receivers()


@pytest.fixture
def teller(receivers: Receivers) -> WebhookTeller:
    return WebhookTeller(webhooks=receivers, post=receivers.post, clock=lambda: receivers.now)


def test_a_slow_receiver_rests_and_others_are_asked(teller: WebhookTeller, receivers: Receivers) -> None:
    with pytest.raises(Refused):
        teller.deliver(item("slow"))
    for seconds in (FIRST_REST, FIRST_REST / 2):
        with pytest.raises(NotYet, match="in time") as raised:
            teller.deliver(item("slow"))
        assert raised.value.wait.total_seconds() == seconds, "it was not sent, which is no try"
        receivers.now += FIRST_REST / 2
    receivers.now -= 1
    with pytest.raises(NotYet):
        teller.deliver(item("slow"))
    teller.deliver(item("quick"))
    assert receivers.asked == ["slow", "quick"]
    receivers.now += 1
    with pytest.raises(Refused):
        teller.deliver(item("slow"))


def test_a_message_that_makes_its_receiver_slow_costs_the_others_no_try(
    receivers: Receivers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def post(url: str, body: bytes, headers: Mapping[str, str]) -> None:
        number = json.loads(body)["data"]["number"]
        receivers.asked.append(number)
        if number == 0:
            receivers.now += receivers.slowness
            raise Refused("no answer")

    monkeypatch.setattr(
        "tests.support.fakes.datetime", SimpleNamespace(now=lambda zone: datetime.fromtimestamp(receivers.now, zone))
    )
    database = MemoryDatabase()
    for number in range(32):
        database.owe("webhook", f"k{number}", dict(item("slow").payload) | {"data": {"number": number}})
    teller = WebhookTeller(webhooks=receivers, post=post, clock=lambda: receivers.now)
    relay = OutboxRelay(outbox=MemoryOutboxStore(database), handlers={"webhook": teller.deliver})
    first, *others = database.outbox.values()
    while first.is_open:
        relay.run_once("webhook")
        receivers.now += 60.0
    assert [(one.is_done, one.item.attempts) for one in others] == [(True, 0)] * 31
    assert sorted(receivers.asked) == [0] * rule_of("webhook").max_failures + list(range(1, 32))


def test_rests_grow_to_a_bound_and_end_with_the_first_success(teller: WebhookTeller, receivers: Receivers) -> None:
    for _ in range(6):
        with pytest.raises(Refused):
            teller.deliver(item("slow"))
        receivers.now += LONGEST_REST
    receivers.is_away = False
    teller.deliver(item("slow"))
    receivers.is_away = True
    with pytest.raises(Refused):
        teller.deliver(item("slow"))
    receivers.now += FIRST_REST
    with pytest.raises(Refused):
        teller.deliver(item("slow"))


def test_a_receiver_that_refuses_at_once_is_asked_about_each_message(
    teller: WebhookTeller, receivers: Receivers
) -> None:
    receivers.slowness = 0.1
    for _ in range(3):
        with pytest.raises(Refused):
            teller.deliver(item("slow"))
    teller.deliver(item("removed"))
    assert receivers.asked == ["slow"] * 3


def test_messages_of_webhooks_are_tried_for_a_day_and_everything_else_for_minutes() -> None:
    for rule, least, most in ((rule_of("webhook"), 24, 30), (OURS, 0, 0.2)):
        waits = [rule.wait(attempts) for attempts in range(rule.max_failures - 1)]
        assert waits == sorted(waits)
        assert least < sum(wait.total_seconds() for wait in waits) / 3600 < most
        assert [rule.is_last(attempts) for attempts in (rule.max_failures - 2, rule.max_failures - 1)] == [False, True]
    assert rule_of("register") is OURS
