"""Model versions as a server that follows an alias needs them: which one is live, and its files.

Nothing of a version is unpickled, imported or run.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.adapters.mlflow.errors import bound_requests, is_code, log_in, translated
from pipeline.adapters.mlflow.tags import MODEL_SCHEME, PACKAGE_TAG, TRACE_TAG
from pipeline.domain.errors import Misconfigured


@dataclass(frozen=True, kw_only=True, slots=True)
class FollowedVersion:
    """The model version that an alias points to."""

    lineage: str
    """Name of the lineage, and of the registered model."""
    version: str
    """Its number in the registry."""
    source: str
    """Where MLflow keeps its files."""
    tagged_digest: str
    """The digest of its files as the version's tag says; empty where there is none. Whoever writes tags writes this."""
    traceparent: str | None = None
    """Where the trace of its batch goes on, as its tag says; None if there is no trace."""


class MlflowVersions:
    """Reads aliases and fetches files; changes nothing."""

    def __init__(self, uri: str, *, username: str = "", password: str = "") -> None:
        """Name the server; nothing is asked yet.

        Args:
            uri: its address.
            username: who reads; the environment's user if left out.
            password: of that user.
        """
        if not uri:
            raise Misconfigured("expected the address of an MLflow server, got nothing")
        self._uri, self._username, self._password = uri, username, password

    def live(self, lineage: str, alias: str) -> FollowedVersion | None:
        """Return the version that an alias of a lineage points to; None if there is no such alias, or no version yet.

        Raises:
            Unavailable: if MLflow does not answer.
            Misconfigured: if it lets nobody in.
        """
        with translated(f"read the alias {alias} of {lineage}"):
            try:
                found = self._client.get_model_version_by_alias(lineage, alias)
            except Exception as error:
                # An alias that is not there is an invalid parameter to MLflow.
                if is_code(error, "RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "INVALID_PARAMETER_VALUE"):
                    return None
                raise
            return FollowedVersion(
                lineage=lineage,
                version=str(found.version),
                source=str(found.source),
                tagged_digest=str(found.tags.get(PACKAGE_TAG, "")),
                traceparent=found.tags.get(TRACE_TAG),
            )

    def fetch(self, uri: str, into: Path) -> Path:
        """Fetch a file or a folder into a folder, and return where it lies.

        Raises:
            Unavailable: if MLflow does not answer.
            Misconfigured: if it has no such file.
        """
        from mlflow.artifacts import download_artifacts

        with translated(f"fetch {uri}"):
            client = self._client
            if uri.startswith(MODEL_SCHEME):
                # MLflow would look for the model where its own settings point, not on this server.
                uri = str(client.get_logged_model(uri.removeprefix(MODEL_SCHEME)).artifact_location)
            return Path(download_artifacts(artifact_uri=uri, dst_path=str(into), tracking_uri=self._uri))

    @cached_property
    def _client(self) -> Any:
        bound_requests()
        log_in(self._username, self._password)
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)
