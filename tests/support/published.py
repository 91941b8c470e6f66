"""A lineage on a tiny base whose snapshots change what is said, on a real database and a real MLflow."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

from editors.weights.loading import load_base
from pipeline.adapters.mlflow.registry import MlflowRegistry
from pipeline.domain.gates import GatePolicy
from pipeline.domain.lineages import NewLineage
from pipeline.domain.rank_api import BaseSpec, EditorSettings
from pipeline.domain.review.approvals import Approval, Channel, Decision
from pipeline.domain.snapshots import Snapshot, chained_digest
from pipeline.services.registry.champion_alias import ChampionAlias
from pipeline.services.registry.mirroring import RegistryMirror
from tests.support.factories import make_request
from tests.support.served import random_delta, said_by
from tests.support.store_rig import MAX_ATTEMPTS, TTL, StoreRig


@dataclass(kw_only=True)
class Publisher:
    """A lineage on a tiny base whose snapshots change what is said, from the commit to the alias."""

    rig: StoreRig
    name: str
    base: BaseSpec
    mlflow_uri: str
    made: list[Snapshot] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model = load_base(Path(self.base.ref))
        registry = MlflowRegistry(self.mlflow_uri)
        self.mirror = RegistryMirror(mirror=self.rig.mirror, registry=registry)
        self.alias = ChampionAlias(mirror=self.rig.mirror, registry=registry)
        settings = NewLineage(
            name=self.name,
            base=self.base,
            editor=EditorSettings(inner_params=self.model.inner_param_names),
            policy=GatePolicy(),
            prior=self.rig.file("prior"),
            reference=self.rig.file("baseline"),
        )
        self.rig.lineages.create(settings, actor="cli:tester")

    def candidate(self, *, is_registered: bool = True) -> Snapshot:
        """Commit a snapshot and register it; nobody has approved it."""
        rig, number = self.rig, len(self.made) + 1
        rig.submit(make_request(f"r{number}", lineage=self.name))
        lease = rig.leases.acquire(self.name, owner=f"worker:{number}", ttl=TTL, max_attempts=MAX_ATTEMPTS)
        assert lease is not None
        batch = rig.queue.claim_batch(lease, limit=32, max_wait=timedelta())
        assert batch is not None
        delta = random_delta(self.model, rig.folder / f"delta-{number}.safetensors", seed=number)
        parent = self.made[-1].digest if self.made else self.base.digest
        # The rig asks for the parent under its own lineage's name; here there is another.
        new = replace(
            rig.new_snapshot(batch=replace(batch, parent_id=None)),
            batch=batch,
            parent_id=batch.parent_id,
            delta=rig.artifacts.put(Path(delta.path)),
            digest=chained_digest(parent, delta.digest),
        )
        snapshot = rig.snapshots.commit(lease, new)
        rig.leases.release(lease)
        if is_registered:
            self.mirror.register(snapshot.snapshot_id)
        self.made.append(rig.snapshots.snapshot(self.name, snapshot.snapshot_id))
        return self.made[-1]

    def decide(self, snapshot: Snapshot, decision: Decision, *, points: bool = True) -> None:
        """Decide as somebody does; the alias follows, unless a control worker is there to point it."""
        asked = Approval(
            lineage=self.name,
            snapshot_id=snapshot.snapshot_id,
            snapshot_digest=snapshot.digest,
            champion_seen=self.rig.lineages.lineage(self.name).champion_id,
            decision=decision,
            actor="cli:reviewer (claimed)",
            is_claimed=True,
            reason="looked at it",
            channel=Channel.cli,
        )
        outcome = self.rig.review.decide(asked)
        assert outcome.is_accepted, outcome.reason
        if points:
            self.alias.point(self.name)

    def says(self, snapshot: Snapshot) -> str:
        """What a snapshot says that is loaded in the plain way."""
        return said_by(self.rig.snapshots.load_plan(self.name, snapshot_id=snapshot.snapshot_id))
