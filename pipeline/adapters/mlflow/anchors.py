"""The anchors of audit chains, in the tags of model versions on an MLflow server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.adapters.mlflow.errors import bound_requests, is_code, log_in, translated
from pipeline.adapters.mlflow.tags import AUDIT_TAG, SYSTEM_AUDIT_TAG, quoted
from pipeline.domain.audit import AnchoredVersion, parse_anchor

PAGE = 500


class MlflowAnchors:
    """Reads what the versions of a lineage were registered with; writes nothing."""

    def __init__(self, uri: str, *, username: str = "", password: str = "") -> None:
        self._uri = uri
        self._username = username
        self._password = password

    def versions(self, lineage: str) -> Iterator[AnchoredVersion]:
        """Yield the versions of a lineage by number; none if MLflow has no such model.

        Raises:
            Unavailable, Misconfigured: if MLflow cannot be asked.
        """
        token = None
        while True:
            with translated(f"read the audit anchors of {lineage}"):
                page = self._page(lineage, token)
            for version in page:
                yield AnchoredVersion(
                    version=int(version.version),
                    lineage_anchor=parse_anchor(version.tags.get(AUDIT_TAG)),
                    system_anchor=parse_anchor(version.tags.get(SYSTEM_AUDIT_TAG)),
                )
            token = getattr(page, "token", None)
            if not token:
                return

    def _page(self, lineage: str, token: str | None) -> Any:
        bound_requests()
        log_in(self._username, self._password)
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)
        try:
            return client.search_model_versions(
                f"name = {quoted(lineage)}", max_results=PAGE, order_by=["version_number ASC"], page_token=token
            )
        except Exception as error:
            if is_code(error, "RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"):
                return []
            raise
