"""Users of reviewers in MLflow: each logs in as themselves, reads everything and asks for decisions.

MLflow's own client of users lies in the package of its server, which takes seconds and warnings to import.
"""

from __future__ import annotations

import secrets
from typing import Any

from pipeline.adapters.mlflow.errors import bound_requests, is_code, log_in, translated

ROLE = "corrigenda-reviewers"
WORKSPACE = "default"
RIGHTS = (("registered_model", "EDIT"), ("experiment", "READ"))
"""What the role may do with every model and every experiment: set aliases and tags, and read files."""
ROUTES = "/api/3.0/mlflow"


def add_reviewer(uri: str, name: str, *, username: str, password: str) -> str:
    """Make a reviewer's user, or give one that is there a new password; return it.

    Args:
        uri: of the MLflow server.
        name: of the reviewer, which decisions are recorded under.
        username: Corrigenda's own user there.
        password: of Corrigenda's user.

    Raises:
        Unavailable: if MLflow does not answer.
        Misconfigured: if it refuses, or has no users.
    """
    bound_requests()
    log_in(username, password)
    with translated(f"add the user {name} to MLflow"):
        role, fresh = _role(uri), secrets.token_urlsafe(24)
        try:
            _ask(uri, "POST", "/api/2.0/mlflow/users/create", username=name, password=fresh)
        except Exception as error:
            if not is_code(error, "RESOURCE_ALREADY_EXISTS"):
                raise
            _ask(uri, "PATCH", "/api/2.0/mlflow/users/update-password", username=name, password=fresh)
        held = _ask(uri, "GET", f"{ROUTES}/users/roles/list", username=name)["roles"]
        if role not in [one["id"] for one in held]:
            _ask(uri, "POST", f"{ROUTES}/roles/assign", username=name, role_id=role)
        return fresh


def _role(uri: str) -> int:
    found = _ask(uri, "GET", f"{ROUTES}/roles/list", workspace=WORKSPACE)["roles"]
    roles = {one["name"]: int(one["id"]) for one in found}
    if ROLE not in roles:
        roles[ROLE] = int(_ask(uri, "POST", f"{ROUTES}/roles/create", workspace=WORKSPACE, name=ROLE)["role"]["id"])
        for kind, right in RIGHTS:
            said = {"role_id": roles[ROLE], "resource_type": kind, "resource_pattern": "*", "permission": right}
            _ask(uri, "POST", f"{ROUTES}/roles/permissions/add", **said)
    return roles[ROLE]


def _ask(uri: str, method: str, path: str, **said: Any) -> dict[str, Any]:
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request, verify_rest_response

    how: dict[str, Any] = {"params": said} if method == "GET" else {"json": said}
    answer = verify_rest_response(http_request(get_default_host_creds(uri), path, method, **how), path)
    found: dict[str, Any] = answer.json() if answer.content else {}
    return found
