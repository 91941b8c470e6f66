"""The health check of an image says what the process in it says."""

from __future__ import annotations

from datetime import timedelta

import pytest

from pipeline.entrypoints import probe
from pipeline.telemetry.health import Health, HealthServer, Heartbeat


@pytest.mark.parametrize(("within", "status", "said"), [(1, 0, ""), (-1, 1, "no progress")])
def test_it_fails_where_the_process_makes_no_progress(
    within: int, status: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    beat = Heartbeat("intake", within=timedelta(hours=within))
    monkeypatch.setattr("sys.argv", ["probe"])
    with HealthServer(Health(heartbeats=[beat]), host="127.0.0.1", port=0) as server:
        monkeypatch.setenv("CORRIGENDA_HEALTH_PORT", str(server.port))
        assert probe.main() == status
    assert said in capsys.readouterr().err
    assert probe.main() == 1
    assert "nothing answers" in capsys.readouterr().err
