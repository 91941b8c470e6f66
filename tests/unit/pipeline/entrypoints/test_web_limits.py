"""How fast a caller may send, by a clock of the test, and when everybody has to wait."""

from __future__ import annotations

from datetime import timedelta

import pytest

from pipeline.entrypoints.web.limits import BackPressure, RateLimit
from pipeline.entrypoints.web.problems import Problem


class Clock:
    """Seconds that the test moves."""

    now = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def test_an_allowance_fills_up_again_and_is_each_callers_own() -> None:
    clock = Clock()
    limit = RateLimit(60, clock=clock)
    limit.take("ada", 60)
    with pytest.raises(Problem, match="at most 60") as refused:
        limit.take("ada", 1)
    assert refused.value.headers == {"Retry-After": "1"}
    limit.take("bob", 60)
    clock.now = 10
    limit.take("ada", 10)
    with pytest.raises(Problem):
        limit.take("ada", 1)


def test_a_call_that_is_larger_than_the_allowance_waits_until_it_is_full_and_is_paid_off() -> None:
    clock = Clock()
    limit = RateLimit(60, clock=clock)
    limit.take("ada", 180)
    clock.now = 120
    with pytest.raises(Problem):
        limit.take("ada", 1)
    clock.now = 121
    limit.take("ada", 1)


def test_a_refused_call_takes_nothing() -> None:
    clock = Clock()
    limit = RateLimit(60, clock=clock)
    limit.take("ada", 50)
    for _ in range(3):
        with pytest.raises(Problem):
            limit.take("ada", 20)
    limit.take("ada", 10)


def test_the_age_of_the_queue_is_asked_once_a_moment() -> None:
    ages = [timedelta(minutes=2), timedelta(0)]
    pressure = BackPressure(timedelta(minutes=1), lambda lineage: ages.pop(0))
    for _ in range(2):
        with pytest.raises(Problem, match="more than 1 minute, got one that waits for 2 minutes: no more are taken"):
            pressure.check(["facts"])
    pressure.check([])
    assert len(ages) == 1
