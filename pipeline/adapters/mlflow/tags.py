"""What stands in the tags of model versions, and names as MLflow takes them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.domain.audit import Anchor
from pipeline.domain.snapshots import Snapshot
from pipeline.services.registry.registry_ports import RegisteredVersion, RegistryEntry, RegistryRequest

SNAPSHOT_TAG = "corrigenda.snapshot_id"
DIGEST_TAG = "corrigenda.digest"
PACKAGE_TAG = "corrigenda.package_digest"
EDITOR_TAG = "corrigenda.editor"
EDITOR_DIGEST_TAG = "corrigenda.editor_digest"
AUDIT_TAG = "corrigenda.audit_head"
SYSTEM_AUDIT_TAG = "corrigenda.system_audit_head"
TRACE_TAG = "corrigenda.traceparent"
"""Anchors of the lineage's chain and of the chain `system`; `corrigenda audit verify` reads them."""
DUPLICATE_TAG = "corrigenda.duplicate_of"
REQUEST_TAG = "approval"
ACTOR_TAG = "approval.actor"
AUTHENTICATED_TAG = "approval.authenticated"
REASON_TAG = "approval.reason"
OUTCOME_TAG = "approval.outcome"
ANSWERED_TAG = "approval.answered_at"
ASKED_BY_TAG = "approval.asked_by"
BECAUSE_TAG = "approval.because"
"""The reason of the last request that was answered: that of a new one is asked for in `approval.reason`."""
NOTE_TAG = "corrigenda.note"
MODEL_SCHEME = "models:/"


def is_sealed(package_digest: str | None) -> Callable[[Any], bool]:
    """Return what tells versions whose files have this digest, which Corrigenda has recorded before it sent them."""
    return lambda version: version.tags.get(PACKAGE_TAG) == package_digest


def is_of_before(snapshot: Snapshot, found: Sequence[Any]) -> bool:
    """Return whether the snapshot has a version from before digests of files were kept; it stays as it is."""
    return snapshot.registry_version is not None and any(map(is_sealed(None), found))


def model_id_of(version: Any) -> str | None:
    """Return the id of the logged model that a version points to; versions of before that have none."""
    source = str(version.source)
    return source.removeprefix(MODEL_SCHEME) if source.startswith(MODEL_SCHEME) else None


def tags_of(entry: RegistryEntry) -> dict[str, str]:
    """Return what a version says of its snapshot; the digest of its files comes later."""
    snapshot = entry.snapshot
    editor = entry.lineage.settings.editor_identity
    return {
        SNAPSHOT_TAG: snapshot.snapshot_id,
        "corrigenda.parent_id": snapshot.parent_id or "",
        "corrigenda.seq": str(snapshot.seq),
        DIGEST_TAG: snapshot.digest,
        "corrigenda.base_digest": entry.plan.base.digest,
        "corrigenda.delta_digest": snapshot.delta.digest,
        EDITOR_TAG: editor.transform,
        EDITOR_DIGEST_TAG: editor.digest or "",
        "corrigenda.gate_verdict": str(entry.report.get("verdict", "")),
        AUDIT_TAG: _anchor(entry.audit_head),
        SYSTEM_AUDIT_TAG: _anchor(entry.system_audit_head),
        **({TRACE_TAG: snapshot.traceparent} if snapshot.traceparent else {}),
    }


def _anchor(head: tuple[int, str]) -> str:
    seq, digest = head
    return str(Anchor(seq=seq, hash=digest))


def version_of(found: Any) -> RegisteredVersion:
    """Return what the tags of a version say."""
    return RegisteredVersion(
        version=str(found.version),
        snapshot_id=found.tags.get(SNAPSHOT_TAG, ""),
        digest=found.tags.get(DIGEST_TAG, ""),
        package_digest=found.tags.get(PACKAGE_TAG, ""),
    )


def request_of(version: Any, *, decision: str, by_alias: bool, tells: bool) -> RegistryRequest:
    """Return the request for a decision on a version; `tells` is whether the server writes down who asks."""
    tags = version.tags
    return RegistryRequest(
        version=str(version.version),
        snapshot_id=tags.get(SNAPSHOT_TAG, ""),
        digest=tags.get(DIGEST_TAG, ""),
        decision=decision,
        actor=tags.get(ACTOR_TAG, "").strip() or None,
        authenticated=_sender(tags, decision=decision, by_alias=by_alias) if tells else None,
        reason=tags.get(REASON_TAG, "").strip(),
        by_alias=by_alias,
    )


def _sender(tags: Mapping[str, str], *, decision: str, by_alias: bool) -> str | None:
    """Return the user who has asked for exactly this, as the server wrote it down; None where it did not."""
    try:
        noted = json.loads(tags.get(AUTHENTICATED_TAG, "null"))
    except ValueError:
        return None
    asked = {"decision": decision, "by_alias": by_alias}
    is_of_this = isinstance(noted, dict) and noted.items() >= asked.items()
    return str(noted["name"]) if is_of_this else None


def logged_name(label: str) -> str:
    """Return a label as a logged model may have it: MLflow takes fewer characters there than in a registered name."""
    return re.sub("[./:%'\"]", "_", label)


def quoted(name: str) -> str:
    """Return a name as MLflow's filters read it."""
    quote = '"' if "'" in name else "'"
    return f"{quote}{name}{quote}"
