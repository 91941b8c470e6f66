"""The doorbell of edit workers: a Celery message that says only that a lineage has work.

Workers are reached by the name of their task, so that nothing here imports them.
"""

from __future__ import annotations

from functools import cached_property

from celery import Celery

from pipeline.adapters.redis_errors import redis_errors
from pipeline.config import Settings

EDIT_LINEAGE = "corrigenda.edit_lineage"
"""Name of the task; its one argument is the lineage's name."""
SOCKET_TIMEOUT_SECONDS = 3


def edit_queue(base_digest: str) -> str:
    """Return the name of the queue of the workers that hold a base."""
    return f"edits.{base_digest[:12]}"


class CeleryDoorbell:
    """A Celery client that only sends."""

    def __init__(self, settings: Settings) -> None:
        """Connect at the first ring.

        Raises:
            Misconfigured: if no Redis is named.
        """
        settings.require("redis_url")
        self._settings = settings

    def ring(self, lineage: str, *, base_digest: str) -> None:
        """Say that a lineage has work; may be lost or repeated.

        Raises:
            Unavailable: within seconds, if Redis does not answer.
            LoginRefused: if it does not take our password.
        """
        with redis_errors():
            self._app.send_task(
                EDIT_LINEAGE, args=[lineage], queue=edit_queue(base_digest), ignore_result=True, retry=False
            )

    def close(self) -> None:
        """Close the connection to Redis."""
        self._app.close()

    @cached_property
    def _app(self) -> Celery:
        app = Celery("corrigenda", broker=self._settings.redis_url.get_secret_value(), set_as_current=False)
        app.conf.update(
            task_serializer="json",
            accept_content=["json"],
            broker_connection_timeout=SOCKET_TIMEOUT_SECONDS,
            broker_transport_options={
                "socket_connect_timeout": SOCKET_TIMEOUT_SECONDS,
                "socket_timeout": SOCKET_TIMEOUT_SECONDS,
                "max_retries": 0,
            },
        )
        return app
