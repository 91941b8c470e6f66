"""A lease is renewed until it is lost, and what goes wrong meanwhile is said."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from pipeline.domain.errors import LeaseLost, Unavailable
from pipeline.domain.lineages import Lease, Work
from pipeline.domain.rank_api import tell
from pipeline.services.lease_keeping import LeaseKeeper
from tests.support.waiting import eventually

LEASE = Lease(lineage="facts", owner="worker:a", epoch=1, expires_at=datetime(2026, 1, 1, tzinfo=UTC))


class Leases:
    """Renews as told, then always."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.renewed = 0
        self.released = False
        self.noted: list[tuple[Work, bool]] = []

    def note(self, lease: Lease, work: Work, *, begins: bool = False) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.noted.append((work, begins))

    def renew(self, lease: Lease, *, ttl: timedelta) -> Lease:
        if self.errors:
            raise self.errors.pop(0)
        self.renewed += 1
        return lease

    def release(self, lease: Lease, *, rings: bool = False) -> None:
        self.released = True


def keeper(leases: Any) -> LeaseKeeper:
    return LeaseKeeper(leases, LEASE, ttl=timedelta(milliseconds=30))


@pytest.mark.parametrize("error", [Unavailable("no database"), ValueError("not ours"), MemoryError()], ids=repr)
def test_a_renewal_that_fails_is_said_and_tried_again(error: Exception) -> None:
    leases = Leases(error, error)
    with capture_logs() as lines, keeper(leases) as kept:
        eventually(lambda: leases.renewed, "a renewal")
        assert kept.lease == LEASE
    assert leases.released
    assert [line["event"] for line in lines] == ["lease not renewed, tried again"] * 2
    assert lines[0]["error"].startswith(type(error).__name__)
    assert (lines[0]["lineage"], lines[0]["owner"], lines[0]["log_level"]) == ("facts", "worker:a", "warning")


def test_a_lease_that_is_lost_is_said_once_and_not_given_back() -> None:
    leases = Leases(LeaseLost("another owner has taken it", lineage="facts"))
    with capture_logs() as lines, keeper(leases) as kept:
        eventually(lambda: lines, "the loss")
        with pytest.raises(LeaseLost, match="another owner"):
            _ = kept.lease
    assert not leases.released
    assert [line["event"] for line in lines] == ["lease lost"]


def test_what_is_done_under_a_lease_is_noted_step_by_step() -> None:
    leases = Leases()
    kept = keeper(leases)
    with kept.doing("editing", 12):
        kept.tries(12)
        tell("pass", 1, 12)
        tell("pass", 2, 12)
        tell("measuring")
        kept.tries(6)
        tell("pass", 7, 12)
    tell("nobody listens any more")

    sentences = [work.sentence() for work, _ in leases.noted]
    assert sentences == [
        "editing a batch of 12 edits, loading the model",
        "editing a batch of 12 edits, loading the model",
        "editing a batch of 12 edits, pass 1 of at most 12",
        "editing a batch of 12 edits, measuring",
        "editing a batch of 12 edits, trial 2 with 6 edits, measuring",
        "editing a batch of 12 edits, trial 2 with 6 edits, pass 7 of at most 12",
    ]
    assert [begins for _, begins in leases.noted] == [True] + [False] * 5
    assert all(Work.from_json(work.as_json()) == work for work, _ in leases.noted)


def test_what_cannot_be_noted_stops_no_work() -> None:
    leases = Leases(Unavailable("no database"))
    with capture_logs() as lines, keeper(leases).doing("editing", 1):
        tell("measuring")
    assert [line["event"] for line in lines] == ["what is being done was not noted"]
    assert [work.sentence() for work, _ in leases.noted] == ["editing a batch of 1 edit, measuring"]


def test_each_step_is_a_sign_of_life_however_fast_they_come() -> None:
    steps: list[str] = []
    kept = LeaseKeeper(Leases(), LEASE, ttl=timedelta(seconds=1), on_step=lambda: steps.append("on"))  # type: ignore[arg-type]
    with kept.doing("rekeying", 3):
        for number in range(3):
            tell("reading", number + 1, 3)
    assert steps == ["on"] * 3
