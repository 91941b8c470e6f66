"""A model registry in memory, as the pipeline and as a person see it. Passes the contract suite of the real one."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.domain.errors import Misconfigured, Unavailable
from pipeline.services.registry_ports import RegistryEntry, RegistryRequest


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

    def register(self, entry: RegistryEntry) -> str:
        """Make the model version of a snapshot, once."""
        self._answer_or_fail()
        model = self._models.setdefault(entry.lineage.settings.name, _Model())
        found = self._of_snapshot(model, entry.snapshot.snapshot_id)
        if not found:
            self._create(model, entry)
            found = self._of_snapshot(model, entry.snapshot.snapshot_id)
            if self.loses_reply:
                self.loses_reply = False
                raise Unavailable("the reply got lost")
        for other in found[1:]:
            model.tags[other].setdefault("corrigenda.duplicate_of", found[0])
        return found[0]

    def requests(self, lineage: str) -> tuple[RegistryRequest, ...]:
        """Versions on which somebody asks for a decision that is not answered yet."""
        self._answer_or_fail()
        model = self._models.get(lineage, _Model())
        by_alias = [(model.aliases[a], a, True) for a in ("approved", "rejected") if a in model.aliases]
        by_tag = [(v, tags["approval"], False) for v, tags in model.tags.items() if "approval" in tags]
        return tuple(_request(version, model.tags[version], *rest) for version, *rest in by_alias + by_tag)

    def answer(self, lineage: str, request: RegistryRequest, *, outcome: str) -> None:
        """Take the request off and write what became of it on the version."""
        self._answer_or_fail()
        model = self._models[lineage]
        tags = model.tags[request.version]
        tags |= {"approval.outcome": outcome, "approval.answered_at": "2026-11-01T12:00:00+00:00"}
        if request.actor:
            tags["approval.asked_by"] = request.actor
        if not request.by_alias:
            tags.pop("approval", None)
        elif model.aliases.get(request.decision) == request.version:
            del model.aliases[request.decision]
        tags.pop("approval.actor", None)
        tags.pop("approval.reason", None)

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
        version = str(len(model.tags) + 1)
        model.tags[version] = dict(tags)
        return version

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

    def _create(self, model: _Model, entry: RegistryEntry) -> None:
        snapshot = entry.snapshot
        model.tags[str(len(model.tags) + 1)] = {
            "corrigenda.snapshot_id": snapshot.snapshot_id,
            "corrigenda.digest": snapshot.digest,
            "corrigenda.seq": str(snapshot.seq),
            "corrigenda.audit_head": f"{entry.audit_head[0]}:{entry.audit_head[1]}",
        }

    def _answer_or_fail(self) -> None:
        if self.is_down:
            raise Unavailable("the registry is down")

    @staticmethod
    def _of_snapshot(model: _Model, snapshot_id: str) -> list[str]:
        found = [v for v, tags in model.tags.items() if tags.get("corrigenda.snapshot_id") == snapshot_id]
        return sorted(found, key=int)


def _request(version: str, tags: dict[str, str], decision: str, by_alias: bool) -> RegistryRequest:
    return RegistryRequest(
        version=version,
        snapshot_id=tags.get("corrigenda.snapshot_id", ""),
        digest=tags.get("corrigenda.digest", ""),
        decision=decision.strip().casefold(),
        actor=tags.get("approval.actor", "").strip() or None,
        reason=tags.get("approval.reason", "").strip(),
        by_alias=by_alias,
    )
