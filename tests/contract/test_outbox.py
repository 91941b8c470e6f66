"""The order of side effects in a stream, and what becomes of those that fail for good."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.adapters.sql.database.engine import transaction
from pipeline.adapters.sql.outbox import Debt, SqlOutboxStore, owe_all
from pipeline.domain.audit import SYSTEM_CHAIN
from pipeline.domain.errors import Unavailable
from pipeline.domain.retries import MAX_FAILURES
from pipeline.services.ports import OutboxItem
from pipeline.services.relaying import OutboxRelay
from tests.support.store_rig import LINEAGE, StoreRig


def owe(rig: StoreRig, *names: str, stream: str | None = None) -> None:
    """Owe a result for each name, each in a transaction of its own."""
    for name in names:
        with transaction(rig.engine) as connection:
            payload = {"lineage": LINEAGE, "name": name}
            owe_all(connection, [Debt(kind="result", dedup_key=name, payload=payload, stream=stream)])


def hurry(rig: StoreRig) -> None:
    """Let every wait be over."""
    rig.query("UPDATE outbox SET next_attempt_at = clock_timestamp() WHERE claim IS NULL")


def keys(items: tuple[OutboxItem, ...]) -> list[str]:
    return [item.dedup_key for item in items]


def give_up(outbox: SqlOutboxStore, rig: StoreRig) -> None:
    """Fail what is due until nothing of it is tried any more."""
    for _ in range(MAX_FAILURES):
        hurry(rig)
        for item in outbox.due():
            outbox.failed(item, error="KeyError: 'lineage'\x00 \ud800")


def test_of_one_edit_only_the_oldest_result_is_handed_out(rig: StoreRig) -> None:
    outbox = SqlOutboxStore(rig.engine)
    owe(rig, "a1", "a2", stream="result:a")
    owe(rig, "b1", stream="result:b")
    owe(rig, "free")
    first, *_ = found = outbox.due("result")
    assert keys(found) == ["a1", "b1", "free"]
    assert outbox.due("result") == (), "not even while the first is claimed"
    outbox.postponed(first, error="the broker is away")
    assert outbox.due("result") == (), "nor while it waits for another try"
    hurry(rig)
    (again,) = outbox.due("result")
    outbox.done([again.outbox_id])
    assert keys(outbox.due("result")) == ["a2"]


@pytest.mark.parametrize("mishap", [Unavailable("the broker is away"), KeyError("lineage")])
def test_the_last_status_of_an_edit_is_told_last_whatever_fails_between(rig: StoreRig, mishap: Exception) -> None:
    outbox = SqlOutboxStore(rig.engine)
    owe(rig, *(f"a{n}" for n in range(4)), stream="result:a")
    owe(rig, *(f"b{n}" for n in range(4)), stream="result:b")
    told: list[str] = []
    mishaps = [mishap] * 5

    def tell(item: OutboxItem) -> None:
        if len(told) % 2 and mishaps:
            raise mishaps.pop()
        told.append(item.dedup_key)

    relay = OutboxRelay(outbox=outbox, handlers={"result": tell})
    while len(told) < 8:
        relay.run_once("result")
        hurry(rig)
    for edit in "ab":
        assert [name for name in told if name[0] == edit] == [f"{edit}{n}" for n in range(4)]


def test_what_fails_for_good_is_given_up_shown_and_sent_again(rig: StoreRig) -> None:
    outbox = SqlOutboxStore(rig.engine)
    owe(rig, "broken", stream="result:a")
    give_up(outbox, rig)
    assert outbox.due() == ()
    (row,) = outbox.given_up()
    assert (row["dedup_key"], row["attempts"]) == ("broken", MAX_FAILURES)
    assert row["error"].startswith("KeyError: 'lineage'")
    assert outbox.counts()["given_up"] == 1
    assert outbox.resend(None, actor="cli:ada") == (str(row["outbox_id"]),)
    (again,) = outbox.due("result")
    assert (again.dedup_key, again.attempts) == ("broken", 0)
    outbox.done([again.outbox_id])
    assert outbox.counts() == {"owed": 0, "owed_since": None, "failing": 0, "given_up": 0, "given_up_since": None}
    assert outbox.resend(None, actor="cli:ada") == ()
    assert rig.actions(row["outbox_id"]) == ["side_effect:given_up", "side_effect:resent"]
    assert rig.audit.verify(LINEAGE) is None


def test_what_belongs_to_no_lineage_is_noted_in_the_history_of_the_system(rig: StoreRig) -> None:
    outbox = SqlOutboxStore(rig.engine)
    with transaction(rig.engine) as connection:
        owe_all(connection, [Debt(kind="dead_letter", dedup_key="letter", payload={"dead_letter_id": "7"})])
    give_up(outbox, rig)
    assert [event.action for event in rig.audit.events(SYSTEM_CHAIN)] == ["side_effect:given_up"]


def test_a_service_that_is_away_for_long_makes_nothing_be_given_up(rig: StoreRig) -> None:
    outbox = SqlOutboxStore(rig.engine)
    owe(rig, "patient")
    for _ in range(2 * MAX_FAILURES):
        hurry(rig)
        (item,) = outbox.due()
        outbox.postponed(item, error="MLflow is away")
    hurry(rig)
    assert keys(outbox.due()) == ["patient"]


def test_a_result_that_was_given_up_lets_later_ones_pass_and_is_never_told_after_them(rig: StoreRig) -> None:
    outbox = SqlOutboxStore(rig.engine)
    owe(rig, "a1", stream="result:a")
    give_up(outbox, rig)
    owe(rig, "a2", stream="result:a")
    (later,) = outbox.due()
    assert later.dedup_key == "a2"
    outbox.done([later.outbox_id])
    (overtaken,) = outbox.resend(None, actor="cli:ada")
    assert outbox.due() == ()
    assert outbox.counts()["given_up"] == 0
    assert rig.actions(overtaken) == ["side_effect:given_up", "side_effect:closed"]


@pytest.mark.parametrize("choose", [lambda one: [one], lambda one: [one, "00000000-0000-0000-0000-000000000007"]])
def test_one_of_several_is_sent_again(rig: StoreRig, choose: Callable[[str], list[str]]) -> None:
    outbox = SqlOutboxStore(rig.engine)
    owe(rig, "one", "two")
    give_up(outbox, rig)
    chosen = str(outbox.given_up()[0]["outbox_id"])
    assert outbox.resend(choose(chosen), actor="cli:ada") == (chosen,)
    assert outbox.counts()["given_up"] == 1
    assert keys(outbox.due()) == ["one"]


def test_only_kinds_of_which_something_is_due_are_looked_at(rig: StoreRig) -> None:
    outbox = SqlOutboxStore(rig.engine)
    kinds = ("doorbell", "result", "register")
    assert outbox.kinds_due(kinds) == frozenset()
    owe(rig, "a")
    assert outbox.kinds_due(kinds) == {"result"}
    assert outbox.kinds_due(("doorbell",)) == frozenset()
    (item,) = outbox.due("result")
    assert outbox.kinds_due(kinds) == frozenset(), "it is claimed"
    outbox.postponed(item, error="the broker is away")
    assert outbox.kinds_due(kinds) == frozenset(), "it waits"
    hurry(rig)
    assert outbox.kinds_due(kinds) == {"result"}
    outbox.done([item.outbox_id])
    assert outbox.kinds_due(kinds) == frozenset()
