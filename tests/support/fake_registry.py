"""A model registry in memory, as the pipeline and as a person see it. Passes the contract suite of the real one."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import uuid4

from pipeline.domain.errors import IntegrityBroken, Misconfigured, Unavailable
from pipeline.domain.formats.canonical import sha256_text
from pipeline.services.registry.registry_ports import RegisteredVersion, RegistryEntry, RegistryRequest, Seal


@dataclass
class _Model:
    aliases: dict[str, str] = field(default_factory=dict)
    tags: dict[str, dict[str, str]] = field(default_factory=dict)


class FakeRegistry:
    """Versions, tags and aliases of each lineage; `is_down` and `loses_reply` make it fail."""

    def __init__(self) -> None:
        self._models: dict[str, _Model] = {}
        self.is_down = False
        self.loses_reply = False
        self.changed: set[tuple[str, str]] = set()
        """Versions whose files somebody changed."""
        self.senders: dict[tuple[str, str], str] = {}
        """Who asked for a decision about a version, where the server knows."""

    def register(self, entry: RegistryEntry, *, seal: Seal) -> str:
        """Make the model version of a snapshot, once."""
        self._answer_or_fail()
        model = self._models.setdefault(entry.lineage.settings.name, _Model())
        sealed = entry.snapshot.package_digest
        found = self._of_snapshot(model, entry.snapshot.snapshot_id, sealed)
        if not found:
            sealed = sha256_text(str(uuid4()))
            seal(sealed)
            self._create(model, entry, sealed)
            found = self._of_snapshot(model, entry.snapshot.snapshot_id, sealed)
            if self.loses_reply:
                self.loses_reply = False
                raise Unavailable("the reply got lost")
        for other in self._of_snapshot(model, entry.snapshot.snapshot_id):
            if other != found[0]:
                model.tags[other].setdefault("corrigenda.duplicate_of", found[0])
        return found[0]

    def find(self, lineage: str, version: str) -> RegisteredVersion | None:
        """A version with what its tags say, if it is there."""
        self._answer_or_fail()
        tags = self._models.get(lineage, _Model()).tags.get(version)
        if tags is None:
            return None
        return RegisteredVersion(
            version=version,
            snapshot_id=tags.get("corrigenda.snapshot_id", ""),
            digest=tags.get("corrigenda.digest", ""),
            package_digest=tags.get("corrigenda.package_digest", ""),
        )

    def check_package(self, lineage: str, version: str, expected: str) -> None:
        """Refuse a version whose files somebody changed."""
        self._answer_or_fail()
        if (lineage, version) in self.changed:
            raise IntegrityBroken(f"expected the files of the model version to have the digest {expected}, got others")

    def requests(self, lineage: str) -> tuple[RegistryRequest, ...]:
        """Versions on which somebody asks for a decision that is not answered yet."""
        self._answer_or_fail()
        model = self._models.get(lineage, _Model())
        by_alias = [(model.aliases[a], a, True) for a in ("approved", "rejected") if a in model.aliases]
        by_tag = [(v, tags["approval"], False) for v, tags in model.tags.items() if "approval" in tags]
        return tuple(
            _request(version, model.tags[version], self.senders.get((lineage, version)), *rest)
            for version, *rest in by_alias + by_tag
        )

    def answer(self, lineage: str, request: RegistryRequest, *, outcome: str) -> None:
        """Take the request off and write what became of it on the version."""
        self._answer_or_fail()
        model = self._models[lineage]
        tags = model.tags[request.version]
        tags |= {"approval.outcome": outcome, "approval.answered_at": "2026-11-01T12:00:00+00:00"}
        tags["approval.asked_by"] = request.authenticated or f"{request.actor or 'unknown'} (claimed)"
        tags |= {"approval.because": request.reason} if request.reason else {}
        if not request.by_alias:
            tags.pop("approval", None)
        elif model.aliases.get(request.decision) == request.version:
            del model.aliases[request.decision]
        tags.pop("approval.actor", None)
        tags.pop("approval.reason", None)
        self.senders.pop((lineage, request.version), None)

    def champion(self, lineage: str) -> str | None:
        """The version that the alias `champion` points to."""
        self._answer_or_fail()
        return self._models.get(lineage, _Model()).aliases.get("champion")

    def point_champion(self, lineage: str, version: str | None) -> None:
        """Set or remove the alias `champion`."""
        self._answer_or_fail()
        model = self._models.setdefault(lineage, _Model())
        if version is None:
            model.aliases.pop("champion", None)
        elif version not in model.tags:
            raise Misconfigured(f"no version {version} of {lineage}")
        else:
            model.aliases["champion"] = version

    def note(self, lineage: str, version: str, *, text: str) -> None:
        """Write a sentence for people on a version."""
        self._answer_or_fail()
        model = self._models.get(lineage, _Model())
        if version in model.tags:
            model.tags[version]["corrigenda.note"] = text

    def add_version(self, lineage: str, tags: dict[str, str]) -> str:
        """Make a version by hand, as a person or a lost reply does."""
        model = self._models.setdefault(lineage, _Model())
        version = str(max(map(int, model.tags), default=0) + 1)  # as MLflow counts: a number may come again
        model.tags[version] = dict(tags)
        return version

    def delete_version(self, lineage: str, version: str) -> None:
        """Delete a version by hand, with its aliases."""
        model = self._models[lineage]
        del model.tags[version]
        model.aliases = {alias: to for alias, to in model.aliases.items() if to != version}

    def delete_model(self, lineage: str) -> None:
        """Delete a lineage's model by hand, or give it another name."""
        del self._models[lineage]

    def set_alias(self, lineage: str, alias: str, version: str) -> None:
        """Set an alias by hand."""
        self._models[lineage].aliases[alias] = version

    def set_tag(self, lineage: str, version: str, key: str, value: str) -> None:
        """Set a tag by hand."""
        self._models[lineage].tags[version][key] = value

    def tags(self, lineage: str, version: str) -> dict[str, str]:
        """The tags of a version."""
        return dict(self._models[lineage].tags[version])

    def aliases(self, lineage: str) -> dict[str, str]:
        """The aliases of a lineage's model."""
        return dict(self._models[lineage].aliases)

    def _create(self, model: _Model, entry: RegistryEntry, package_digest: str) -> None:
        snapshot = entry.snapshot
        model.tags[str(max(map(int, model.tags), default=0) + 1)] = {
            "corrigenda.package_digest": package_digest,
            "corrigenda.snapshot_id": snapshot.snapshot_id,
            "corrigenda.digest": snapshot.digest,
            "corrigenda.seq": str(snapshot.seq),
            "corrigenda.audit_head": f"{entry.audit_head[0]}:{entry.audit_head[1]}",
        }

    def _answer_or_fail(self) -> None:
        if self.is_down:
            raise Unavailable("the registry is down")

    @staticmethod
    def _of_snapshot(model: _Model, snapshot_id: str, *sealed: str | None) -> list[str]:
        """Versions of a snapshot, lowest first; only those with this digest of their files, if one is given."""
        found = [v for v, tags in model.tags.items() if tags.get("corrigenda.snapshot_id") == snapshot_id]
        of = [v for v in found if not sealed or model.tags[v].get("corrigenda.package_digest") in sealed]
        return sorted(of, key=int)


def _request(version: str, tags: dict[str, str], sender: str | None, decision: str, by_alias: bool) -> RegistryRequest:
    return RegistryRequest(
        version=version,
        snapshot_id=tags.get("corrigenda.snapshot_id", ""),
        digest=tags.get("corrigenda.digest", ""),
        decision=decision.strip().casefold(),
        actor=tags.get("approval.actor", "").strip() or None,
        authenticated=sender,
        reason=tags.get("approval.reason", "").strip(),
        by_alias=by_alias,
    )
