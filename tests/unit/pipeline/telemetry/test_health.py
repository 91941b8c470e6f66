"""`/livez` means progress, `/readyz` asks what a process depends on, `/metrics` has what was counted."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter

from pipeline.config import Settings
from pipeline.domain.errors import Misconfigured, Unavailable
from pipeline.entrypoints import liveness
from pipeline.entrypoints.liveness import StuckProcesses, asked, health_file
from pipeline.entrypoints.watched import watched
from pipeline.telemetry import health
from pipeline.telemetry.health import Health, HealthServer, Heartbeat

NEVER, ALWAYS = timedelta(hours=1), timedelta(seconds=-1)
"""A limit that no test reaches, and one that every age is beyond."""


def told(health: Health, path: str) -> tuple[int, dict[str, object]]:
    status, _, body = health.answer(path)
    return status, json.loads(body)


def test_a_loop_that_goes_on_is_alive_and_one_that_does_not_is_not() -> None:
    assert told(Health(heartbeats=[Heartbeat("relay", within=NEVER)]), "/livez") == (200, {"status": "ok"})
    stuck = Heartbeat("relay", within=ALWAYS)
    stuck.beat()
    status, said = told(Health(heartbeats=[Heartbeat("ring", within=NEVER), stuck]), "/livez")
    assert status == 503
    assert said == {"status": "failing", "failing": {"relay": "no progress for 0 s"}}


def test_a_loop_at_rest_is_late_only_while_it_works() -> None:
    beat = Heartbeat("edit", within=ALWAYS, rests=True)
    assert beat.is_late, "0 is beyond a limit below it"
    beat = Heartbeat("edit", within=timedelta(0), rests=True)
    assert not beat.is_late
    with beat.working():
        assert beat.is_late
    assert not beat.is_late


def test_a_condition_that_a_loop_asks_is_its_sign_of_life() -> None:
    beat = Heartbeat("intake", within=NEVER)
    before = beat.age_seconds
    asked_again = beat.told(lambda: True)
    assert asked_again()
    assert beat.age_seconds <= before + 1


def test_readiness_names_what_does_not_answer_and_does_not_ask_each_time() -> None:
    asks: list[str] = []

    def away() -> None:
        asks.append("database")
        raise Unavailable("the database does not answer")

    health = Health(checks={"database": away, "redis": lambda: None})
    for _ in range(3):
        status, said = told(health, "/readyz")
        assert status == 503
        assert said["failing"] == {"database": "the database does not answer"}
    assert asks == ["database"]
    assert told(health, "/livez")[0] == 200, "an outage elsewhere restarts nobody"


def test_a_check_that_breaks_is_a_failing_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "REMEMBERED", timedelta(0))
    checks = {"odd": lambda: {}["missing"]}
    assert told(Health(checks=checks), "/readyz")[1]["failing"] == {"odd": "KeyError: 'missing'"}


def test_it_answers_over_http_with_metrics_and_ages() -> None:
    registry = CollectorRegistry()
    Counter("made_for_this", "Things that were made.", registry=registry).inc(3)
    made = Health(heartbeats=[Heartbeat("ring", within=NEVER)], registry=registry)
    with HealthServer(made, host="127.0.0.1", port=0) as server:
        text = urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics").read().decode()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://127.0.0.1:{server.port}/secrets?x=1")
        with pytest.raises(Misconfigured, match=f"cannot listen on 127.0.0.1:{server.port}"):
            HealthServer(made, host="127.0.0.1", port=server.port)
    assert "made_for_this_total 3.0" in text
    assert 'corrigenda_heartbeat_age_seconds{loop="ring"}' in text


def test_a_process_says_in_a_file_where_it_answers(tmp_path: Path) -> None:
    file = health_file(tmp_path, "intake")
    assert asked(tmp_path, "intake") is None
    beat = Heartbeat("intake", within=NEVER)
    with watched("intake", Settings(health_file=file), heartbeats=[beat]):
        found = asked(tmp_path, "intake")
        assert found is not None
        assert found.is_answering
        assert found.failing == {}
        [entry] = json.loads(file.read_text())
        assert entry["labels"]["job"] == "intake", "as Prometheus' file_sd_configs read it"
    assert not file.exists()


def test_nothing_listens_unless_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.entrypoints.watched.HealthServer", None)
    with watched("intake", Settings(), heartbeats=[]):
        pass


def test_a_process_that_says_it_is_stuck_is_stuck_and_one_that_is_silent_only_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, stuck = health_file(tmp_path, "intake"), StuckProcesses(tmp_path)
    assert stuck.reason("intake") is None, "it is starting"
    late = Heartbeat("intake", within=ALWAYS)
    with watched("intake", Settings(health_file=file), heartbeats=[late]):
        assert (stuck.reason("intake") or "").startswith("intake: no progress")
        kept = file.read_text()
    file.write_text(kept)  # it is there, and nothing answers at that port
    assert stuck.reason("intake") is None
    monkeypatch.setattr(liveness, "SILENT_FOR", timedelta(seconds=-1))
    assert stuck.reason("intake") is not None
    file.write_text(re.sub(r'(?<="__meta_pid": ")\d+', "999999999", kept))
    assert stuck.reason("intake") is None, "whoever wrote this has ended"
