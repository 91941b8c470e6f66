"""A lease is renewed until it is lost, and what goes wrong meanwhile is said."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from pipeline.domain.errors import LeaseLost, Unavailable
from pipeline.domain.lineages import Lease
from pipeline.services.lease_keeping import LeaseKeeper
from tests.support.waiting import eventually

LEASE = Lease(lineage="facts", owner="worker:a", epoch=1, expires_at=datetime(2026, 1, 1, tzinfo=UTC))


class Leases:
    """Renews as told, then always."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.renewed = 0
        self.released = False

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
