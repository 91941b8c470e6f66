"""What commands pass on to the processes that they start."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from pipeline.config import Settings
from pipeline.entrypoints.local_settings import asking_environment, serving_environment

COLLECTOR = "http://collector:4318/v1/traces"


def test_a_serving_process_is_told_where_traces_go_and_no_secret_of_another() -> None:
    given = serving_environment(Settings(traces_endpoint=COLLECTOR, web_session_key=SecretStr("of the pages")))
    assert given["CORRIGENDA_TRACES_ENDPOINT"] == COLLECTOR
    assert "of the pages" not in given.values()


def test_the_process_behind_ask_is_told_where_snapshots_are_wherever_it_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of the store")
    settings = Settings(
        home=Path("home"),
        database_url=SecretStr("postgresql://a:b@c/d"),
        artifact_root=Path("artifacts"),
        api_token=SecretStr("of a person"),
        redis_url=SecretStr("redis://of-workers"),
    )
    given = asking_environment(settings)
    assert {"PGSSLMODE": "verify-full", "AWS_SECRET_ACCESS_KEY": "of the store"}.items() <= given.items()
    own = {name: text for name, text in given.items() if name.startswith("CORRIGENDA_")}
    assert own == {
        "CORRIGENDA_HOME": str(tmp_path / "home"),
        "CORRIGENDA_DATABASE_URL": "postgresql://a:b@c/d",
        "CORRIGENDA_DATABASE_ROLE": "",
        "CORRIGENDA_ARTIFACT_ROOT": str(tmp_path / "artifacts"),
        "CORRIGENDA_ARTIFACT_BUCKET": "",
        "CORRIGENDA_ARTIFACT_ENDPOINT": "",
    }
