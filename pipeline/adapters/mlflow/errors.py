"""MLflow's exceptions as our own, and bounds on how long its client tries."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

from pipeline.domain.errors import CorrigendaError, LoginRefused, Misconfigured, Unavailable

_BOUNDS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}
_NOT_LOGGED_IN = ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED")
_HOPELESS = frozenset(
    {
        "PERMISSION_DENIED",
        "INVALID_PARAMETER_VALUE",
        "BAD_REQUEST",
        "ENDPOINT_NOT_FOUND",
        "RESOURCE_DOES_NOT_EXIST",
        "NOT_FOUND",
        "NOT_IMPLEMENTED",
    }
)
"""Codes that the same call would meet again."""


def bound_requests() -> None:
    """Bound MLflow's own retries, which go on for four minutes; what the environment says already stays."""
    for name, value in _BOUNDS.items():
        os.environ.setdefault(name, value)


def log_in(username: str, password: str) -> None:
    """Let MLflow's client in this process log in as a user. It looks for one nowhere but in the environment."""
    if username:
        os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"] = username, password


@contextmanager
def translated(action: str) -> Iterator[None]:
    """Turn what MLflow raises into `Unavailable`, `Misconfigured` or `LoginRefused`, saying what was being done."""
    try:
        yield
    except CorrigendaError:
        raise
    except Exception as error:
        if isinstance(error, ImportError):
            raise Misconfigured(f"cannot {action}: MLflow does not import: {_first_line(error)}") from error
        kind = _kind(error)
        if kind is None:
            raise
        user = os.environ.get("MLFLOW_TRACKING_USERNAME", "")
        said = not_accepted(user) if kind is LoginRefused else _away(error) or _first_line(error)
        raise kind(f"cannot {action}: {said}") from error


def not_accepted(user: str) -> str:
    """Return what to say of an MLflow server that does not let a user in; an empty name stands for no login."""
    if not user:
        return "MLflow asks for a login; CORRIGENDA_MLFLOW_USERNAME and CORRIGENDA_MLFLOW_PASSWORD give one"
    return f"MLflow does not accept the user {user!r} or its password, which CORRIGENDA_MLFLOW_PASSWORD gives"


def is_code(error: Exception, *codes: str) -> bool:
    """Return whether MLflow gave one of these error codes."""
    return getattr(error, "error_code", None) in codes


def _kind(error: Exception) -> type[CorrigendaError] | None:
    import requests
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        if error.error_code in _NOT_LOGGED_IN:
            return LoginRefused
        return Misconfigured if error.error_code in _HOPELESS else Unavailable
    if isinstance(error, requests.HTTPError) and error.response is not None and 400 <= error.response.status_code < 500:
        return LoginRefused if error.response.status_code == HTTPStatus.UNAUTHORIZED else Misconfigured
    return Unavailable if isinstance(error, requests.RequestException | OSError) else None


def _away(error: BaseException) -> str | None:
    """Return why nothing answered, which MLflow and its libraries wrap into half a page; None if something did."""
    import requests
    from urllib3.exceptions import ReadTimeoutError

    chain: list[BaseException] = []
    found: BaseException | None = error
    while found is not None and found not in chain:
        chain.append(found)
        found = found.__cause__ or found.__context__
    if any(isinstance(one, requests.Timeout | ReadTimeoutError | TimeoutError) for one in chain):
        return "MLflow does not answer in time"
    if not any(isinstance(one, requests.ConnectionError) for one in chain):
        return None
    reasons = [one.strerror for one in chain if isinstance(one, OSError) and one.strerror]
    return f"MLflow does not answer: {reasons[-1]}" if reasons else None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:500]
