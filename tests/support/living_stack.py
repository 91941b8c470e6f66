"""The embedded stack as `corrigenda up` starts it, under corrections that keep coming; edit workers are left out."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg

from infra.local import LocalStack, ProcessStatus
from pipeline.adapters.kafka.publisher import KafkaPublisher
from pipeline.config import Settings
from pipeline.domain.errors import CorrigendaError
from pipeline.entrypoints.processes import start_control_worker, start_intake, start_stack, start_supervisor
from tests.support.intake_parts import correction, encoded
from tests.support.store_rig import LINEAGE, StoreRig

PAUSE_SECONDS = 0.1


class LivingStack:
    """A stack under load, and a way to see that all of it goes on."""

    def __init__(self, stack: LocalStack, settings: Settings) -> None:
        self.stack = stack
        self.settings = settings
        self.acknowledged: list[str] = []
        self._stop = threading.Event()
        self._numbers = itertools.count()
        self._thread = threading.Thread(target=self._produce, name="producer", daemon=True)

    def __enter__(self) -> LivingStack:
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._stop.set()
        self._thread.join()

    def process(self, name: str) -> ProcessStatus:
        """How one process is."""
        return next(process for process in self.stack.status() if process.name == name)

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to a process, without asking the stack."""
        os.kill(self.process(name).pid, number)

    def everything_goes_on(self) -> float:
        """Wait until work that begins now has come through every part; return the seconds that took.

        A correction is taken in from the topic, a batch with it is committed as a worker does, its result is in the
        topic of results, a doorbell has rung, and the snapshot is a version in MLflow.
        """
        began = time.monotonic()
        broker, request_id = self._broker(), self._send()
        while not self._is_through(request_id):
            time.sleep(PAUSE_SECONDS)
            if broker != self._broker():  # it keeps nothing: what it had is sent again, as a producer would
                broker, request_id = self._broker(), self._send()
        return time.monotonic() - began

    def missing(self) -> set[str]:
        """Corrections that the broker has acknowledged and the database does not hold."""
        with self.rig() as rig:
            return set(self.acknowledged) - {
                row["request_id"] for row in rig.query("SELECT request_id FROM edit_requests")
            }

    def logs(self) -> str:
        """The last lines of every log, for the message of a failure."""
        ends = (f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in self._log_files())
        return "\n".join(ends)

    def _log_files(self) -> list[Path]:
        return sorted((self.stack.root / "logs").glob("*.log"))

    def _produce(self) -> None:
        while not self._stop.wait(PAUSE_SECONDS):
            self.acknowledged.append(self._send())

    def _send(self) -> str:
        """Send a correction until the broker has it; return its request id."""
        request_id = f"r{next(self._numbers)}"
        value = encoded(correction(request_id, prompt=f"The capital of land {request_id} is"))
        while True:
            with suppress(CorrigendaError), KafkaPublisher(self.settings) as publisher:
                publisher.publish(self.settings.requests_topic, key=LINEAGE, value=value)
                return request_id
            time.sleep(PAUSE_SECONDS)

    def _broker(self) -> int:
        return self.process("kafka").pid

    def _is_through(self, request_id: str) -> bool:
        with suppress(CorrigendaError, psycopg.Error), self.rig() as rig:
            found = rig.query("SELECT edit_id, status FROM edit_requests WHERE request_id = %s", request_id)
            if found and found[0]["status"] == "received":
                rig.expire_lease()
                rig.commit_batch(rig.acquire(), limit=1_000)
            if not found:
                return False
            done = rig.query(
                """SELECT (SELECT registry_version FROM snapshots s JOIN edit_rows r ON r.since_seq = s.seq
                           WHERE r.edit_id = %s) IS NOT NULL
                      AND EXISTS (SELECT FROM outbox WHERE stream = %s AND done_at IS NOT NULL)
                      AND NOT EXISTS (SELECT FROM outbox WHERE kind = 'doorbell' AND done_at IS NULL
                                      AND created_at < clock_timestamp() - interval '5 seconds') AS all_done""",
                found[0]["edit_id"],
                f"result:{found[0]['edit_id']}",
            )
            return bool(done[0]["all_done"])
        return False

    @contextmanager
    def rig(self) -> Iterator[StoreRig]:
        """Every store of the stack's database, on connections of its own."""
        rig = StoreRig(url=self.stack.endpoints().database_url, folder=self.settings.home)
        try:
            yield rig
        finally:
            rig.close()


@contextmanager
def living_stack(home: Path) -> Iterator[LivingStack]:
    """Start everything in a folder, with one lineage; stop it at the end."""
    try:
        stack, settings = start_stack(home)
        rig = StoreRig(url=stack.endpoints().database_url, folder=settings.home)
        rig.new_lineage()
        rig.close()
        start_intake(stack, settings)
        start_control_worker(stack, settings)
        start_supervisor(stack, settings)
        with LivingStack(stack, settings) as living:
            yield living
    finally:
        LocalStack(home).stop()
