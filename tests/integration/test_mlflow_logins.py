"""Who is let into MLflow, and what the registry can tell of who asks for a decision."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from infra.local import LocalStack
from infra.local.records import Endpoints
from pipeline.adapters import reachability
from pipeline.adapters.mlflow.registry import MlflowRegistry
from pipeline.adapters.mlflow.users import add_reviewer
from pipeline.domain.errors import LoginRefused
from tests.support.registry_entries import entry, lineage
from tests.support.sealed import registered
from tests.support.waiting import patience


@pytest.fixture
def endpoints(local_stack: LocalStack, mlflow_uri: str) -> Endpoints:
    return local_stack.endpoints()


@pytest.fixture
def registry(endpoints: Endpoints) -> MlflowRegistry:
    """The registry as the control worker has it."""
    username, password = endpoints.mlflow_username, endpoints.mlflow_password
    return MlflowRegistry(endpoints.mlflow_uri, username=username, password=password, tells_actor=True)


@pytest.fixture
def ada(endpoints: Endpoints) -> str:
    """Password of a reviewer."""
    username, password = endpoints.mlflow_username, endpoints.mlflow_password
    return add_reviewer(endpoints.mlflow_uri, "ada", username=username, password=password)


@pytest.fixture
def logged_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Any]:
    """Runs a block as somebody: MLflow's client looks for its user at each request."""

    @contextmanager
    def as_user(name: str, password: str) -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_USERNAME", name)
            patch.setenv("MLFLOW_TRACKING_PASSWORD", password)
            yield

    return as_user


@pytest.fixture
def client(endpoints: Endpoints) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=endpoints.mlflow_uri, registry_uri=endpoints.mlflow_uri)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/2.0/mlflow/experiments/search?max_results=1"),
        ("GET", "/api/2.0/mlflow/registered-models/search"),
        ("PUT", "/api/2.0/mlflow-artifacts/artifacts/1/models/m-1/artifacts/artifacts/code.zip"),
        ("GET", "/api/2.0/mlflow-artifacts/artifacts?path=1"),
        ("DELETE", "/api/2.0/mlflow-artifacts/artifacts/1"),
        ("POST", "/api/2.0/mlflow/registered-models/alias"),
        ("POST", "/ajax-api/2.0/mlflow/registered-models/alias"),
        ("POST", "/graphql"),
        ("GET", "/api/2.0/mlflow/users/current"),
    ],
)
@pytest.mark.parametrize("header", [{}, {"Authorization": "Basic Y29ycmlnZW5kYTp3cm9uZw=="}])
def test_nobody_without_a_password_reads_or_writes_anything(
    mlflow_uri: str, method: str, path: str, header: dict[str, str]
) -> None:
    with requests.request(method, f"{mlflow_uri}{path}", data=b"{}", headers=header, timeout=patience(60)) as refused:
        assert refused.status_code == 401


@pytest.mark.parametrize("by_alias", [True, False])
def test_the_user_who_asks_is_known_whatever_name_is_claimed(
    registry: MlflowRegistry, client: Any, ada: str, logged_in: Any, lineage_name: str, tmp_path: Path, by_alias: bool
) -> None:
    version = registered(registry, entry(lineage(lineage_name), tmp_path))
    with logged_in("ada", ada):
        client.set_model_version_tag(lineage_name, version, "approval.actor", "ceo")
        if by_alias:
            client.set_registered_model_alias(lineage_name, "approved", version)
        else:
            client.set_model_version_tag(lineage_name, version, "approval", "approved")
    (request,) = registry.requests(lineage_name)
    assert (request.authenticated, request.actor) == ("ada", "ceo")
    (by_name,) = MlflowRegistry(registry._uri).requests(lineage_name)
    assert by_name.authenticated is None, "a server that is not known to write it down"
    registry.answer(lineage_name, request, outcome="approved")
    tags = client.get_model_version(lineage_name, version).tags
    assert tags["approval.asked_by"] == "ada"
    assert "approval.authenticated" not in tags


def test_a_name_that_stands_for_another_request_is_not_taken(
    registry: MlflowRegistry, client: Any, ada: str, logged_in: Any, lineage_name: str, tmp_path: Path
) -> None:
    version = registered(registry, entry(lineage(lineage_name), tmp_path))
    with logged_in("ada", ada):
        client.set_registered_model_alias(lineage_name, "rejected", version)
    client.delete_registered_model_alias(lineage_name, "rejected")
    client.set_registered_model_alias(lineage_name, "approved", version)
    (request,) = registry.requests(lineage_name)
    assert request.authenticated is None


@pytest.mark.parametrize("name", ["ada", "bob"])
def test_a_reviewer_cannot_write_who_asked(
    registry: MlflowRegistry, client: Any, ada: str, logged_in: Any, lineage_name: str, tmp_path: Path, name: str
) -> None:
    from mlflow.exceptions import MlflowException

    version = registered(registry, entry(lineage(lineage_name), tmp_path))
    forged = json.dumps({"name": name, "decision": "approved", "by_alias": True})
    with logged_in("ada", ada), pytest.raises(MlflowException, match="the server alone writes"):
        client.set_model_version_tag(lineage_name, version, "approval.authenticated", forged)


def test_a_reviewer_reads_and_asks_and_changes_no_file(
    registry: MlflowRegistry, client: Any, ada: str, logged_in: Any, lineage_name: str, tmp_path: Path
) -> None:
    made = entry(lineage(lineage_name), tmp_path)
    version = registered(registry, made)
    (tmp_path / "code.zip").write_bytes(b"not ours")
    with logged_in("ada", ada):
        found = client.get_model_version(lineage_name, version)
        assert client.list_artifacts(found.run_id)
        with pytest.raises(Exception, match=r"403|Permission denied"):
            client.log_artifact(found.run_id, str(tmp_path / "code.zip"))
        with pytest.raises(Exception, match=r"403|Permission denied"):
            client.log_model_artifact(found.source.removeprefix("models:/"), str(tmp_path / "code.zip"))
        with pytest.raises(Exception, match=r"403|Permission denied"):
            client.delete_registered_model(lineage_name)


def test_a_wrong_password_is_one_sentence(mlflow_uri: str, lineage_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "wrong")
    said = "MLflow does not accept the user 'corrigenda' or its password, which CORRIGENDA_MLFLOW_PASSWORD gives"
    with pytest.raises(LoginRefused, match=f"^cannot read the alias champion of {lineage_name}: {said}$"):
        MlflowRegistry(mlflow_uri, username="corrigenda", password="wrong").champion(lineage_name)
    with pytest.raises(LoginRefused, match=f"^{said}$"):
        reachability.mlflow(mlflow_uri, username="corrigenda", password="wrong")()
    with pytest.raises(LoginRefused, match=r"^MLflow asks for a login; CORRIGENDA_MLFLOW_USERNAME"):
        reachability.mlflow(mlflow_uri)()


def test_a_server_that_takes_our_password_is_ready(endpoints: Endpoints) -> None:
    reachability.mlflow(endpoints.mlflow_uri, username=endpoints.mlflow_username, password=endpoints.mlflow_password)()
