"""The deployed profile as files: a compose file of the right shape, settings that exist, images that agree.

No container engine is asked; what only an engine can tell is not tested here.
"""

import json
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
OURS = {"intake", "control-worker", "web", "edit-worker", "edit-worker-gpu", "serve"}
"""Our own processes that run on."""
HEALTH_PORT, SERVING_PORT = 9464, 8100
"""Of all of them but the serving process, which has the same paths at its own port."""
KNOWN_KEYS = {
    "build", "cap_drop", "command", "depends_on", "deploy", "entrypoint", "environment", "healthcheck", "image", "init",
    "ports", "profiles", "read_only", "restart", "secrets", "security_opt", "shm_size", "stop_grace_period",
    "stop_signal", "tmpfs", "user", "volumes",
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
    theirs = {"kafka", "postgres", "redis", "mlflow", "objects", "prometheus", "grafana"}
    assert {*theirs, *OURS, *JOBS} == set(services)


def test_what_is_ours_runs_without_rights_on_files_that_nobody_changes(services: dict[str, dict[str, Any]]) -> None:
    for name in {*OURS, *JOBS}:
        assert services[name]["read_only"], name
        assert services[name]["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in services[name]["security_opt"], name
        assert "/tmp" in services[name]["tmpfs"], name


def test_each_of_our_processes_is_asked_itself_whether_it_goes_on(services: dict[str, dict[str, Any]]) -> None:
    for name in OURS:
        assert services[name]["healthcheck"]["test"] == ["CMD", "python", "-m", "pipeline.entrypoints.probe"], name
        settings = services[name]["environment"]
        port = SERVING_PORT if name == "serve" else HEALTH_PORT
        assert settings["CORRIGENDA_HEALTH_PORT"] == str(port), name
        assert settings["CORRIGENDA_LOG_FORMAT"] == "json", name
    scraped = yaml.safe_load((INFRA / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    ports = {name: found["port"] for job in scraped for found in job["dns_sd_configs"] for name in found["names"]}
    assert ports == {name: SERVING_PORT if name == "serve" else HEALTH_PORT for name in OURS}
    words = services["serve"]["command"][-1]
    assert f"--host 0.0.0.0 --port {SERVING_PORT} --token-file" in words
    for image in IMAGES:
        text = image.read_text()
        assert f"CORRIGENDA_HEALTH_PORT={HEALTH_PORT}" in text
        assert re.search(r"^HEALTHCHECK .*pipeline.entrypoints.probe", text, flags=re.MULTILINE)


def test_nothing_but_loopback_is_published(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name


def test_the_device_worker_has_as_many_ranks_as_it_is_told(services: dict[str, dict[str, Any]]) -> None:
    for name in ("edit-worker", "edit-worker-gpu"):
        assert services[name]["environment"]["CORRIGENDA_NUM_RANKS"] == "${NUM_RANKS:-1}", name


def test_artifacts_of_ours_and_of_mlflow_lie_in_one_bucket_that_our_key_opens(
    services: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "--artifacts-destination s3://corrigenda/mlflow" in services["mlflow"]["command"][-1]
    for name in ("control-worker", "edit-worker", "edit-worker-gpu", "migrate", "cli", "mlflow"):
        settings = services[name]["environment"]
        assert settings["AWS_SHARED_CREDENTIALS_FILE"] == "/run/secrets/s3_credentials", name
        assert "s3_credentials" in given_as(services[name]), name
        assert settings.get("CORRIGENDA_ARTIFACT_BUCKET", "s3://corrigenda/artifacts") == "s3://corrigenda/artifacts"
        address = settings.get("CORRIGENDA_ARTIFACT_ENDPOINT") or settings["MLFLOW_S3_ENDPOINT_URL"]
        assert address == "http://objects:8333", name
    from infra import make_secrets

    monkeypatch.setattr(make_secrets, "FOLDER", tmp_path / "secrets")
    make_secrets.main()
    [identity] = json.loads((tmp_path / "secrets" / "s3_identities").read_text())["identities"]
    held = (tmp_path / "secrets" / "s3_credentials").read_text()
    assert all(value in held for value in identity["credentials"][0].values())


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
            name.removeprefix("CORRIGENDA_").lower(): re.sub(r"\$\{\w+:-(.*)\}", r"\1", value)
            for name, value in service.get("environment", {}).items()
            if name.startswith("CORRIGENDA_")
        }
        Settings.model_validate(given)


def test_every_secret_file_of_ours_is_named_like_its_setting(services: dict[str, dict[str, Any]]) -> None:
    known = {f"corrigenda_{name}" for name in Settings.model_fields}
    ours = {secret for s in services.values() for secret in given_as(s) if secret.startswith("corrigenda")}
    passwords = {"corrigenda_mlflow_password", "corrigenda_web_session_key"}
    assert ours == {"corrigenda_database_url", "corrigenda_redis_url", *passwords}
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
        "web": "web_database_url",
        "serve": "serving_database_url",
    }
    for name in set(services) - {"migrate"}:
        own = {logins[name], "corrigenda_redis_url", "redis_password", "postgres_password", "mlflow_store_url"}
        own |= {"s3_credentials"} if name not in ("intake", "web", "serve") else {"serving_tokens"}
        own |= {"corrigenda_web_session_key"} if name == "web" else set()
        own |= {"s3_identities"} if name == "objects" else {"grafana_password"} if name == "grafana" else set()
        own |= (
            {"mlflow_password", "mlflow_forms_key"} if name in ("mlflow", "control-worker", "cli", "serve") else set()
        )
        assert set(given_as(services[name]).values()) <= own, name
    assert given_as(services["postgres"]) == {"postgres_password": "postgres_password"}
    wanted = {"mlflow_store_url", "mlflow_password", "mlflow_forms_key", "s3_credentials"}
    assert set(given_as(services["mlflow"])) == wanted
    assert {f"{login.name}_database_url" for login in Login} <= set(given_as(services["migrate"]))


def test_sessions_outlive_a_start_and_pages_link_where_browsers_are(services: dict[str, dict[str, Any]]) -> None:
    assert "corrigenda_web_session_key" in given_as(services["web"])
    for name in ("web", "control-worker"):
        told = services[name]["environment"]["CORRIGENDA_WEB_PUBLIC_URL"]
        assert told == "${WEB_PUBLIC_URL:-http://localhost:8080}", name


def test_mlflow_lets_nobody_in_without_a_password_and_says_who_asks(services: dict[str, dict[str, Any]]) -> None:
    mlflow, words = services["mlflow"], services["mlflow"]["command"][-1]
    assert "--app-name basic-auth" in words
    assert "default_permission = NO_PERMISSIONS" in words
    assert "infra.mlflow_login:authenticate" in words
    assert mlflow["environment"]["MLFLOW_AUTH_CONFIG_PATH"] in words
    names = (mlflow["environment"]["MLFLOW_AUTH_ADMIN_USERNAME"], services["control-worker"]["environment"])
    assert names[0] == names[1]["CORRIGENDA_MLFLOW_USERNAME"]


@pytest.mark.parametrize("file", ["compose.yaml", "kubernetes/mlflow.yaml"])
def test_the_store_is_upgraded_without_its_password_among_a_programs_arguments(file: str) -> None:
    lines = [line.partition("#")[0] for line in (INFRA / file).read_text().splitlines()]
    assert not [line for line in lines if "mlflow db" in line]
    [upgrades] = [line for line in lines if "upgrade" in line]
    assert 'os.environ["MLFLOW_BACKEND_STORE_URI"]' in upgrades


def test_everything_that_is_named_is_declared(compose: dict[str, Any], services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert set(given_as(service).values()) <= set(compose["secrets"]), name
        assert set(service.get("depends_on", {})) <= set(services), name
        volumes = {volume.split(":")[0] for volume in service.get("volumes", [])}
        ours = {volume for volume in volumes if volume.startswith(".")}
        assert all((INFRA / volume).is_dir() for volume in ours), name
        assert {volume for volume in volumes - ours if not volume.startswith("$")} <= set(compose["volumes"]), name


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
            is_secret = re.search("PASSWORD|TOKEN|DATABASE_URL|REDIS_URL|CREDENTIALS", variable)
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
    build, run = text.split("\nFROM ", 2)[1:]
    copied = set(re.findall(r"^COPY (.+) \S+$", build, flags=re.MULTILINE))
    files = {name for line in copied for name in line.split()}
    wanted = {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    assert files == wanted | {"pipeline", "editors", "workers", "migrations", "infra"}
    assert "--only-binary=:all:" in text
    assert "-c constraints.txt" in text
    assert re.findall(r"^COPY (.+)$", run, flags=re.MULTILINE) == ["--from=build /opt/corrigenda /opt/corrigenda"]
    assert "pip install" not in run, "what runs has no more in it than what was installed"
    assert re.search(r"^USER corrigenda$", run, flags=re.MULTILINE)


def test_every_image_that_is_built_has_its_file(services: dict[str, dict[str, Any]]) -> None:
    built = {service["build"]["dockerfile"] for service in services.values() if "build" in service}
    assert {INFRA.parent / path for path in built} == set(IMAGES)
