"""The deployed profile as files: a compose file of the right shape, settings that exist, images that agree.

No container engine is asked; what only an engine can tell is not tested here.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.adapters.logins import Login
from pipeline.config import Settings

INFRA = Path(__file__).parents[3] / "infra"
IMAGES = sorted((INFRA / "images").glob("*.Dockerfile"))
JOBS = {"migrate", "cli"}
KNOWN_KEYS = {
    "build", "command", "depends_on", "deploy", "entrypoint", "environment", "healthcheck", "image", "init",
    "ports", "profiles", "restart", "secrets", "shm_size", "stop_grace_period", "stop_signal", "user", "volumes",
}  # fmt: skip


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((INFRA / "compose.yaml").read_text())
    return loaded


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose["services"]
    return found


def given_as(service: dict[str, Any]) -> dict[str, str]:
    """The secrets of a service: the name of the file it sees, and which secret that is."""
    secrets = service.get("secrets", [])
    return dict((s, s) if isinstance(s, str) else (s["target"], s["source"]) for s in secrets)


def test_it_has_every_part_of_the_deployed_profile(services: dict[str, dict[str, Any]]) -> None:
    parts = {"kafka", "postgres", "redis", "mlflow", "migrate", "intake", "control-worker", "edit-worker"}
    assert parts <= set(services)


def test_services_use_keys_that_compose_knows(compose: dict[str, Any], services: dict[str, dict[str, Any]]) -> None:
    top = {key for key in compose if not key.startswith("x-")}
    assert top == {"name", "services", "secrets", "volumes"}
    for name, service in services.items():
        assert set(service) <= KNOWN_KEYS, name
        assert isinstance(service["image"], str), name


def test_every_variable_is_a_setting_that_exists(services: dict[str, dict[str, Any]]) -> None:
    known = {f"CORRIGENDA_{name.upper()}" for name in Settings.model_fields}
    text = "\n".join(path.read_text() for path in (INFRA / "compose.yaml", *IMAGES))
    used = set(re.findall(r"\bCORRIGENDA_[A-Z0-9_]+", text))
    assert used
    assert used <= known


def test_values_are_valid_settings(services: dict[str, dict[str, Any]]) -> None:
    for service in services.values():
        given = {
            name.removeprefix("CORRIGENDA_").lower(): value
            for name, value in service.get("environment", {}).items()
            if name.startswith("CORRIGENDA_")
        }
        Settings.model_validate(given)


def test_every_secret_file_of_ours_is_named_like_its_setting(services: dict[str, dict[str, Any]]) -> None:
    known = {f"corrigenda_{name}" for name in Settings.model_fields}
    ours = {secret for s in services.values() for secret in given_as(s) if secret.startswith("corrigenda")}
    assert ours == {"corrigenda_database_url", "corrigenda_redis_url", "corrigenda_mlflow_password"}
    assert ours <= known


def test_each_service_has_a_database_login_of_its_own_and_no_secret_of_another(
    services: dict[str, dict[str, Any]],
) -> None:
    logins = {name: given_as(service).get("corrigenda_database_url") for name, service in services.items()}
    assert {name: login for name, login in logins.items() if login} == {
        "migrate": "owner_database_url",
        "intake": "intake_database_url",
        "control-worker": "control_database_url",
        "edit-worker": "editor_database_url",
        "edit-worker-gpu": "editor_database_url",
        "cli": "console_database_url",
    }
    for name in set(services) - {"migrate"}:
        own = {logins[name], "corrigenda_redis_url", "redis_password", "postgres_password", "mlflow_store_url"}
        own |= {"mlflow_password", "mlflow_forms_key"} if name in ("mlflow", "control-worker", "cli") else set()
        assert set(given_as(services[name]).values()) <= own, name
    assert given_as(services["postgres"]) == {"postgres_password": "postgres_password"}
    assert set(given_as(services["mlflow"])) == {"mlflow_store_url", "mlflow_password", "mlflow_forms_key"}
    assert {f"{login.name}_database_url" for login in Login} <= set(given_as(services["migrate"]))


def test_mlflow_lets_nobody_in_without_a_password_and_says_who_asks(services: dict[str, dict[str, Any]]) -> None:
    mlflow, words = services["mlflow"], services["mlflow"]["command"][-1]
    assert "--app-name basic-auth" in words
    assert "default_permission = NO_PERMISSIONS" in words
    assert "infra.mlflow_login:authenticate" in words
    assert mlflow["environment"]["MLFLOW_AUTH_CONFIG_PATH"] in words
    names = (mlflow["environment"]["MLFLOW_AUTH_ADMIN_USERNAME"], services["control-worker"]["environment"])
    assert names[0] == names[1]["CORRIGENDA_MLFLOW_USERNAME"]


def test_everything_that_is_named_is_declared(compose: dict[str, Any], services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert set(given_as(service).values()) <= set(compose["secrets"]), name
        assert set(service.get("depends_on", {})) <= set(services), name
        volumes = {volume.split(":")[0] for volume in service.get("volumes", [])}
        assert {volume for volume in volumes if not volume.startswith("$")} <= set(compose["volumes"]), name


def test_nobody_waits_for_the_health_of_a_service_without_a_check(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        for other, wanted in service.get("depends_on", {}).items():
            if wanted["condition"] == "service_healthy":
                assert "healthcheck" in services[other], f"{name} waits for {other}"


def test_what_runs_on_has_a_health_check_and_starts_again(services: dict[str, dict[str, Any]]) -> None:
    for name in set(services) - JOBS:
        assert services[name]["restart"] == "unless-stopped", name
        assert "test" in services[name]["healthcheck"], name


def test_no_secret_is_written_into_the_file(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        for variable, value in service.get("environment", {}).items():
            is_secret = re.search("PASSWORD|TOKEN|DATABASE_URL|REDIS_URL", variable)
            assert not is_secret or str(value).startswith("/run/secrets/"), f"{name}: {variable}"


def test_secrets_are_made_once_and_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compose: dict[str, Any]
) -> None:
    from infra import make_secrets

    monkeypatch.setattr(make_secrets, "FOLDER", tmp_path / "secrets")
    make_secrets.main()
    first = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    make_secrets.main()
    assert {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()} == first
    assert set(first) == set(compose["secrets"])
    assert first["postgres_password"] in first["owner_database_url"]
    others = [text for name, text in first.items() if name not in ("owner_database_url", "postgres_password")]
    assert not any(first["postgres_password"] in text for text in others)
    assert len(set(first.values())) == len(first)
    assert first["redis_password"] in first["corrigenda_redis_url"]


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.name)
def test_an_image_copies_what_the_package_needs_and_runs_as_nobody_special(image: Path) -> None:
    text = image.read_text()
    copied = set(re.findall(r"^COPY (.+) \S+$", text, flags=re.MULTILINE))
    files = {name for line in copied for name in line.split()}
    wanted = {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    assert files == wanted | {"pipeline", "editors", "workers", "migrations", "infra"}
    assert "--only-binary=:all:" in text
    assert "-c constraints.txt" in text
    assert re.search(r"^USER corrigenda$", text, flags=re.MULTILINE)


def test_every_image_that_is_built_has_its_file(services: dict[str, dict[str, Any]]) -> None:
    built = {service["build"]["dockerfile"] for service in services.values() if "build" in service}
    assert {INFRA.parent / path for path in built} == set(IMAGES)
