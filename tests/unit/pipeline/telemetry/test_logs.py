"""All lines of a process look alike, carry their ids, and hold no password."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from pipeline.telemetry.logs import without_passwords
from tests.support.paths import ROOT

PROGRAM = """
import logging, structlog
from pipeline.telemetry import tracing
from pipeline.telemetry.logs import log_to_stderr
log_to_stderr("intake")
log = structlog.get_logger("here")
with structlog.contextvars.bound_contextvars(lineage="facts", batch="b1"):
    log.info("batch claimed", edits=3)
    logging.getLogger("uvicorn.error").warning("a line of %s", "a library")
log.debug("left out")
logging.getLogger("kafka").info("left out")
try:
    raise RuntimeError("cannot open postgresql://me:hunter2@db:5432/x")
except RuntimeError:
    log.exception("broken", url={"deep": ["redis://:hunter2@redis/0"]})
    logging.getLogger("celery").exception("also broken")
"""


def said(log_format: str) -> str:
    environment = os.environ | {"CORRIGENDA_LOG_FORMAT": log_format, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return done.stderr


def test_events_and_lines_of_libraries_are_json_of_one_form() -> None:
    text = said("auto")
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["event"] for line in lines] == ["batch claimed", "a line of a library", "broken", "also broken"]
    assert [line["level"] for line in lines] == ["info", "warning", "error", "error"]
    assert all(line["process"] == "intake" and line["timestamp"].endswith("Z") for line in lines)
    assert all((line["lineage"], line["batch"]) == ("facts", "b1") for line in lines[:2])
    assert "lineage" not in lines[2]
    assert lines[1]["logger"] == "uvicorn.error"
    assert all("RuntimeError: cannot open" in line["exception"] for line in lines[2:])
    assert "hunter2" not in text
    assert text.count("***@") == 3


def test_a_person_gets_text() -> None:
    text = said("text")
    first = text.splitlines()[0]
    assert "batch claimed" in first
    assert "lineage=facts" in first
    assert not first.startswith("{")
    assert "hunter2" not in text


@pytest.mark.parametrize(
    ("text", "struck"),
    [
        ("redis://:secret@host:6379/0", "redis://:***@host:6379/0"),
        ("postgresql+psycopg://a:s%2Fx@[::1]/db and more", "postgresql+psycopg://a:***@[::1]/db and more"),
        ("http://host:8080/path@here", "http://host:8080/path@here"),
        ("ada@example.org: hello", "ada@example.org: hello"),
    ],
)
def test_passwords_of_urls_are_struck_out_and_nothing_else(text: str, struck: str) -> None:
    assert without_passwords(text) == struck
