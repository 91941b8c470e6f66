"""Who asks for a decision in MLflow: a part of the server that Corrigenda starts, embedded or composed.

MLflow's basic-auth app knows who sends a request, and its registry forgets it: an alias has no author. The function
below stands where the app asks who somebody is (`authorization_function` of its configuration). It leaves that to
MLflow, and writes the name into a tag of the version when a request for a decision has succeeded. Nobody but
Corrigenda's own user can write that tag by hand.
"""

import json
import os
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from flask import Response, after_this_request, request
from werkzeug.datastructures import Authorization

DECISIONS = ("approved", "rejected")
REQUEST_TAG = "approval"
AUTHENTICATED_TAG = "approval.authenticated"
"""JSON of who asked, what for, and whether by alias; the reconciler reads it."""
SET_ALIAS = "/mlflow/registered-models/alias"
SET_TAG = "/mlflow/model-versions/set-tag"
NEW_VERSION = "/mlflow/model-versions/create"


def authenticate() -> Authorization | Response:
    """Return who sends the request, as MLflow's own function does, or what it answers to a stranger."""
    from mlflow.server.auth import authenticate_request_basic_auth

    known: Authorization | Response = authenticate_request_basic_auth()
    if isinstance(known, Response) or request.method != "POST":
        return known
    sender, said = str(known.username), request.get_json(force=True, silent=True)
    if not isinstance(said, Mapping) or sender == os.environ.get("MLFLOW_AUTH_ADMIN_USERNAME"):
        return known  # Corrigenda's own user is no person
    if AUTHENTICATED_TAG in _tags_to_write(said):
        return Response(f"expected another tag: the server alone writes {AUTHENTICATED_TAG}", HTTPStatus.FORBIDDEN)
    asked = _asked(said)
    if asked is not None:
        _note_afterwards(sender, asked, said)
    return known


def _asked(said: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the decision that a request asks for, and whether by alias."""
    if request.path.endswith(SET_ALIAS) and said.get("alias") in DECISIONS:
        return {"decision": said["alias"], "by_alias": True}
    if request.path.endswith(SET_TAG) and said.get("key") == REQUEST_TAG:
        return {"decision": str(said.get("value")).strip().casefold(), "by_alias": False}
    return None


def _tags_to_write(said: Mapping[str, Any]) -> list[Any]:
    if request.path.endswith(SET_TAG):
        return [said.get("key")]
    if request.path.endswith(NEW_VERSION):
        return [tag.get("key") for tag in said.get("tags") or () if isinstance(tag, Mapping)]
    return []


def _note_afterwards(sender: str, asked: Mapping[str, Any], said: Mapping[str, Any]) -> None:
    # Afterwards, because only then is it known that the sender may do this.
    @after_this_request
    def note(response: Response) -> Response:
        if response.status_code == HTTPStatus.OK:
            from mlflow.entities.model_registry import ModelVersionTag
            from mlflow.server.handlers import _get_model_registry_store

            tag = ModelVersionTag(AUTHENTICATED_TAG, json.dumps({"name": sender, **asked}))
            _get_model_registry_store().set_model_version_tag(said["name"], str(said["version"]), tag)
        return response
