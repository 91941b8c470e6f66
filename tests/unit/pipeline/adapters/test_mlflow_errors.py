"""Every way in which MLflow fails becomes one of our errors, and in time."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos.databricks_pb2 import ErrorCode

from pipeline.adapters.mlflow.errors import translated
from pipeline.adapters.mlflow.registry import MlflowRegistry
from pipeline.domain.errors import CorrigendaError, IntegrityBroken, LoginRefused, Misconfigured, Unavailable


def http_error(status: int) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(f"{status} for url", response=response)


@pytest.mark.parametrize(
    ("foreign", "ours"),
    [
        (MlflowException("the database is locked"), Unavailable),
        (RestException({"error_code": "TEMPORARILY_UNAVAILABLE", "message": "later"}), Unavailable),
        (RestException({"error_code": "REQUEST_LIMIT_EXCEEDED", "message": "slower"}), Unavailable),
        (RestException({"error_code": "PERMISSION_DENIED", "message": "no"}), Misconfigured),
        (RestException({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such version"}), Misconfigured),
        (http_error(503), Unavailable),
        (http_error(403), Misconfigured),
        (http_error(401), LoginRefused),
        (MlflowException("You are not authenticated.", error_code=ErrorCode.Value("UNAUTHENTICATED")), LoginRefused),
        (requests.ConnectionError("refused"), Unavailable),
        (requests.Timeout("too slow"), Unavailable),
        (OSError(28, "No space left on device"), Unavailable),
        (ImportError("No module named 'mlflow'"), Misconfigured),
    ],
)
def test_a_foreign_error_says_what_was_being_done(foreign: Exception, ours: type[CorrigendaError]) -> None:
    with pytest.raises(ours, match=r"cannot register snapshot s-1: .+") as caught, translated("register snapshot s-1"):
        raise foreign
    assert type(caught.value) is ours


@pytest.mark.parametrize("error", [IntegrityBroken("a digest differs"), ValueError("a mistake of ours")])
def test_our_own_errors_and_mistakes_are_left_as_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, translated("register snapshot s-1"):
        raise error
    assert caught.value is error


def test_an_empty_address_is_refused_at_once() -> None:
    with pytest.raises(Misconfigured, match="MLflow server"):
        MlflowRegistry("")


class _Broken(BaseHTTPRequestHandler):
    """Answers 500 without a word of JSON."""

    def do_GET(self) -> None:
        self.send_response(500)
        self.end_headers()
        self.wfile.write(b"<html>proxy error</html>")

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


class _Silent(_Broken):
    """Accepts and never answers, until the test is over."""

    is_over = threading.Event()

    def do_GET(self) -> None:
        self.is_over.wait(60)


@pytest.fixture(params=[_Broken, _Silent])
def bad_server(request: pytest.FixtureRequest) -> Iterator[str]:
    """Address of a server that is not well."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), request.param)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    _Silent.is_over.set()
    server.shutdown()
    server.server_close()
    thread.join()
    _Silent.is_over.clear()


def test_a_server_that_is_away_or_hangs_is_told_in_a_few_words(
    bad_server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(Unavailable) as hung:
        MlflowRegistry(bad_server).champion("demo")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(Unavailable) as away:
        MlflowRegistry(nobody).champion("demo")

    reading = "cannot read the alias champion of demo: MLflow does not answer"
    assert str(away.value) == f"{reading}: Connection refused"
    if request.node.callspec.params["bad_server"] is _Silent:
        assert str(hung.value) == f"{reading} in time"


def test_a_server_that_fails_or_hangs_is_unavailable(bad_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(Unavailable, match="cannot read the alias champion of demo"):
        MlflowRegistry(bad_server).champion("demo")
