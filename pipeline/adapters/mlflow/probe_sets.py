"""What a snapshot was measured on, as datasets of its run: MLflow's pages tell runs apart by their digests."""

from __future__ import annotations

import json
from typing import Any

from pipeline.adapters.mlflow.answers import measurements_of
from pipeline.domain.formats.canonical import sha256_json
from pipeline.services.registry.registry_ports import RegistryEntry

MAX_DIGEST_CHARS = 36
"""MLflow keeps no more of a dataset's digest."""


def probe_sets(entry: RegistryEntry) -> list[Any]:
    """Return the edits, the lineage's suite and all that was asked, as MLflow's inputs of a run.

    The edits' digest is that of their requests' payloads; equal ones were measured on the same edits.
    """
    candidate = measurements_of(entry).get("candidate") or {}
    suite = entry.lineage.settings.reference
    requests = [edit.request for edit in entry.edits]
    found = [
        _input(
            "edits",
            sha256_json([request.payload_digest for request in requests]),
            context="editing",
            source={"requests": [request.request_id for request in requests[:100]]},
            profile={
                "num_edits": len(requests),
                "num_rephrases": sum(len(request.rephrases) for request in requests),
                "num_neighbours": sum(len(request.locality) for request in requests),
            },
        ),
        _input(
            "suite",
            suite.digest,
            context="gates",
            source={"uri": suite.uri},
            profile={"num_asked": candidate.get("num_suite"), "num_left_out": candidate.get("num_suite_left_out")},
        ),
    ]
    if digest := measurements_of(entry).get("probe_set_digest"):
        profile = {"num_retained": candidate.get("num_retained"), "num_edits": len(requests)}
        found.append(_input("probes", str(digest), context="gates", source={"probe_set": digest}, profile=profile))
    return found


def _input(name: str, digest: str, *, context: str, source: dict[str, Any], profile: dict[str, Any]) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    return DatasetInput(
        dataset=Dataset(
            name=name,
            digest=digest[:MAX_DIGEST_CHARS],
            source_type="corrigenda",
            source=json.dumps(source | {"digest": digest}),
            profile=json.dumps(profile),
        ),
        tags=[InputTag(key="mlflow.data.context", value=context)],
    )
