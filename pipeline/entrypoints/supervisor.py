"""The supervisor of the embedded stack: `python -m pipeline.entrypoints.supervisor`, which `corrigenda up` starts.

It starts again whatever ends by itself. The embedded broker keeps nothing, so its topics are made anew with it. It has
no state: one that was killed is started again by the next `corrigenda up`.
"""

from __future__ import annotations

import time

import structlog

from infra.local import LocalStack, LocalStackError, Service, Supervisor
from pipeline.bootstrap import create_topics
from pipeline.config import load_settings
from pipeline.domain.errors import CorrigendaError
from pipeline.entrypoints.process_logs import log_to_stderr

LOOK_EVERY_SECONDS = 0.5


def main() -> None:
    """Look after the stack until the process is ended; SIGTERM ends it at once, between two looks or in one."""
    log_to_stderr()
    log = structlog.get_logger(__name__)
    settings = load_settings()
    supervisor = Supervisor(LocalStack(settings.home))
    log.info("supervisor_started", home=str(settings.home))
    has_topics = True
    while True:
        time.sleep(LOOK_EVERY_SECONDS)
        try:
            has_topics &= Service.KAFKA not in supervisor.run_once()
            if not has_topics:
                create_topics(settings)
                has_topics = True
        except (CorrigendaError, LocalStackError) as error:
            log.warning("supervisor_failed", error=str(error))
        except Exception:
            # It is the last one that may end.
            log.exception("supervisor_broken")


if __name__ == "__main__":
    main()
