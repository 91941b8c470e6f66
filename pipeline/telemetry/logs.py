"""How our processes log: one JSON object a line on standard error, or a line for people where that is a terminal.

Events of ours and lines of libraries (Celery, uvicorn, kafka-python, Alembic) look alike. Each has the name of its
process, the ids that are bound around it, and the id of the trace if one is recorded. Passwords in URLs are struck out.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Sequence

import structlog
from structlog.types import EventDict, Processor, WrappedLogger

from pipeline.telemetry.tracing import current_trace_id

FORMAT_VARIABLE = "CORRIGENDA_LOG_FORMAT"

QUIET = ("alembic", "botocore", "httpx", "kafka", "torch")
"""Libraries that tell of every connection, request, retry or cache; their warnings are enough."""
SILENT = ("kafka.net.selector", "urllib3")
"""Libraries that warn of every retry, and of every moment in which a busy machine was slow. What came of it we tell."""

_PASSWORD = re.compile(r"(?P<before>[A-Za-z][A-Za-z0-9+.-]*://[^\s:/@]*:)[^\s/@]+(?=@)")


def log_to_stderr(process: str, level: int = logging.INFO) -> None:
    """Send events and the libraries' lines to standard error, in the format that `CORRIGENDA_LOG_FORMAT` names.

    Args:
        process: name of the process, in every line.
        level: what is less important is left out.
    """
    is_text = _is_text(os.environ.get(FORMAT_VARIABLE, "auto"))
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _Named(process),
        structlog.processors.StackInfoRenderer(),
    ]
    renderer = _rendering(is_text)
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=level, force=True)
    for name in QUIET:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    for name in SILENT:
        logging.getLogger(name).setLevel(max(level, logging.ERROR))


def without_passwords(text: str) -> str:
    """Return a text in which the passwords of URLs are struck out."""
    return _PASSWORD.sub(r"\g<before>***", text)


class _Named:
    """Puts the name of the process and the id of the trace into every event."""

    def __init__(self, process: str) -> None:
        self._process = process

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        event["process"] = self._process
        trace_id = current_trace_id()
        if trace_id is not None:
            event["trace_id"] = trace_id
        return event


def _rendering(is_text: bool) -> Sequence[Processor]:
    if is_text:
        return [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()), _strike_out]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str), _strike_out]


def _strike_out(logger: WrappedLogger, method: str, line: EventDict | str) -> str:
    # The last step, so that nothing gets past it: not a traceback, nor a value deep inside a field.
    return without_passwords(str(line))


def _is_text(wanted: str) -> bool:
    return sys.stderr.isatty() if wanted not in ("json", "text") else wanted == "text"
