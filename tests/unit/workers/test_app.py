"""The Celery application is set up as a lossy, repeating doorbell needs it, and imports nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from pipeline import bootstrap
from pipeline.adapters.celery_doorbell import EDIT_LINEAGE
from pipeline.domain.errors import EditorFailed, EngineFailed, LeaseLost, Misconfigured
from tests.support.paths import ROOT
from tests.support.waiting import patience
from workers import tasks
from workers.app import app, configuration


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that name a broker."""
    monkeypatch.setenv("CORRIGENDA_REDIS_URL", "redis://127.0.0.1:1/0")


class Service:
    """Stands for the edit service."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.asked: list[str] = []

    def run(self, lineage: str) -> int:
        self.asked.append(lineage)
        if self.error is not None:
            raise self.error
        return 0


def use(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def edit_service(*_: Any, **__: Any) -> Service:
        return service

    monkeypatch.setattr(bootstrap, "edit_service", edit_service)


def test_a_doorbell_is_acknowledged_late_and_one_at_a_time() -> None:
    found = configuration()
    assert found["task_acks_late"]
    assert found["task_retry_on_worker_lost"]
    assert found["worker_prefetch_multiplier"] == 1
    assert found["worker_pool_start_method"] == "spawn"
    assert found["accept_content"] == ["json"]
    assert found["task_ignore_result"]
    assert tasks.edit_lineage.max_retries == 3


def test_the_doorbell_is_the_only_task_and_a_broker_that_is_away_is_waited_for() -> None:
    found = configuration()
    assert [name for name in app.tasks if name.startswith("corrigenda.")] == [EDIT_LINEAGE]
    assert found["broker_connection_retry_on_startup"]
    assert found["broker_connection_max_retries"] is None


def test_a_missing_broker_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CORRIGENDA_REDIS_URL")
    with pytest.raises(SystemExit, match="CORRIGENDA_REDIS_URL"):
        configuration()


def test_a_doorbell_names_the_lineage(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service()
    use(service, monkeypatch)
    tasks.edit_lineage("facts")
    assert service.asked == ["facts"]


IDS = dict.fromkeys(("lineage", "event", "error", "level", "task", "name", "exc_info"), "facts")
"""Ids under the names of whatever a line of the log is told besides."""


@pytest.mark.parametrize(
    "error",
    [
        EngineFailed("died"),
        EngineFailed("died", **IDS),
        LeaseLost("taken", lineage="facts", owner="w"),
        Misconfigured("the database does not accept us"),
    ],
)
def test_what_can_be_tried_again_or_mended_does_not_fail_the_task(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(error)
    use(service, monkeypatch)
    tasks.edit_lineage("facts")
    assert service.asked == ["facts"]


def test_what_cannot_be_tried_again_fails_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    use(Service(EditorFailed("NaN")), monkeypatch)
    with pytest.raises(EditorFailed, match="NaN"):
        tasks.edit_lineage("facts")


def test_the_tasks_import_without_torch_and_without_mlflow() -> None:
    text = "import sys, workers.tasks; print([m for m in ('torch', 'deepspeed', 'mlflow') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, timeout=patience(), check=True
    )
    assert done.stdout.strip() == "[]"
