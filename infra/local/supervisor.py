"""Starts again what ended by itself, services of a stack and processes under the same roof, and bounds their logs."""

import logging
import time
from dataclasses import dataclass

from infra.local.errors import LocalStackError
from infra.local.log_files import bound
from infra.local.records import ProcessState
from infra.local.stack import LocalStack

FIRST_WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 30.0
RAN_WELL_SECONDS = 60.0
"""A process that ran for so long is started again at once, as if it had never ended before."""

log = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class _Trouble:
    """How a process that ended is doing; times are of the monotonic clock."""

    started_at: float
    wait_seconds: float


class Supervisor:
    """Looks after one stack: the first restart comes at once, the next ones after waits that double."""

    def __init__(self, stack: LocalStack) -> None:
        self._stack = stack
        self._troubles: dict[str, _Trouble] = {}

    def run_once(self) -> list[str]:
        """Start again what ended and has waited long enough; return the names of what was started."""
        bound(self._stack.root / "logs")
        died = [process.name for process in self._stack.status() if process.state is ProcessState.DIED]
        return [name for name in died if self._is_its_turn(name) and self._revive(name)]

    def _is_its_turn(self, name: str) -> bool:
        trouble = self._troubles.get(name)
        return trouble is None or time.monotonic() >= trouble.started_at + trouble.wait_seconds

    def _revive(self, name: str) -> bool:
        self._note(name)
        try:
            is_started = self._stack.revive(name)
        except LocalStackError as error:
            log.warning("cannot start %s again: %s", name, error)
            return False
        if is_started:
            log.warning("%s had ended and was started again", name)
        return is_started

    def _note(self, name: str) -> None:
        before, now = self._troubles.get(name), time.monotonic()
        wait = FIRST_WAIT_SECONDS
        if before is not None and now - before.started_at < RAN_WELL_SECONDS + before.wait_seconds:
            wait = min(before.wait_seconds * 2, LONGEST_WAIT_SECONDS)
        self._troubles[name] = _Trouble(started_at=now, wait_seconds=wait)
