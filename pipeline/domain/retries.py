"""How often a side effect that fails is tried again, and after which waits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

MAX_FAILURES = 10
"""An item that failed so often, some six minutes long, for another reason than a service that was away is given up."""
WEBHOOK = "webhook"
"""The kind of side effect whose receiver is not ours: where it fails, nothing here may be broken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryRule:
    """Waits that double from try to try up to a longest one, until an item is given up."""

    first_wait: timedelta
    """How long after the first failure it is tried again."""
    longest_wait: timedelta
    """No wait is longer."""
    max_failures: int
    """An item that failed so often is given up."""

    def wait(self, attempts: int) -> timedelta:
        """Return how long to wait after a failure, when so many tries had failed before it."""
        doubled: int = 2 ** min(attempts, 20)
        return min(self.first_wait * doubled, self.longest_wait)

    def is_last(self, attempts: int) -> bool:
        """Return whether a failure is the last one, when so many tries had failed before it."""
        return attempts + 1 >= self.max_failures


OURS = RetryRule(first_wait=timedelta(seconds=1), longest_wait=timedelta(minutes=2), max_failures=MAX_FAILURES)
"""For what is ours to mend: a person is called within minutes."""
RULES: Mapping[str, RetryRule] = {
    # Five seconds, doubling to two hours: a receiver that is mended the next day has lost nothing.
    WEBHOOK: RetryRule(first_wait=timedelta(seconds=5), longest_wait=timedelta(hours=2), max_failures=24),
}
"""Rules of kinds that have one of their own."""


def rule_of(kind: str) -> RetryRule:
    """Return the rule of a kind of side effect."""
    return RULES.get(kind, OURS)
