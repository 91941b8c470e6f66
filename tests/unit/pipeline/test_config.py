"""Where settings come from, and what is said of one that cannot be right."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from pipeline import config
from pipeline.config import load_settings
from pipeline.domain.errors import Misconfigured


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder and an environment without settings of ours."""
    monkeypatch.chdir(tmp_path)
    for name in config.Settings.model_fields:
        monkeypatch.delenv(f"CORRIGENDA_{name.upper()}", raising=False)
    monkeypatch.setattr(config, "SECRETS_FOLDER", tmp_path / "secrets")
    return tmp_path


def test_an_env_file_in_the_working_folder_is_read(folder: Path) -> None:
    (folder / ".env").write_text("CORRIGENDA_KAFKA_BOOTSTRAP=broker:9092\n")
    assert load_settings().kafka_bootstrap == "broker:9092"


def test_a_secret_file_is_read_and_its_value_is_not_shown(folder: Path) -> None:
    (folder / "secrets").mkdir()
    (folder / "secrets" / "CORRIGENDA_DATABASE_URL").write_text("postgresql://somebody:hidden@db/corrigenda")
    settings = load_settings()
    assert settings.database_url.get_secret_value().endswith("@db/corrigenda")
    assert "hidden" not in repr(settings)


def test_the_environment_wins_over_the_env_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / ".env").write_text("CORRIGENDA_INTAKE_MODE=group\n")
    monkeypatch.setenv("CORRIGENDA_INTAKE_MODE", "assigned")
    assert load_settings().intake_mode == "assigned"


@pytest.mark.parametrize("text", ["12.5", "PT12.5S", "00:00:12.5"])
def test_a_duration_is_seconds_or_a_standard_form(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("CORRIGENDA_LEASE_TTL", text)
    assert load_settings().lease_ttl == timedelta(seconds=12.5)


@pytest.mark.usefixtures("folder")
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORRIGENDA_NUM_RANKS", "none")
    with pytest.raises(Misconfigured, match="CORRIGENDA_NUM_RANKS"):
        load_settings()


@pytest.mark.usefixtures("folder")
def test_a_setting_that_is_needed_and_missing_is_named() -> None:
    with pytest.raises(Misconfigured, match="CORRIGENDA_MLFLOW_URI"):
        load_settings().require("mlflow_uri")
