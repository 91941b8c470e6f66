"""Lineages in PostgreSQL, and the holds that let no batch of one start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Engine, Row, Select, func, select, update
from sqlalchemy.dialects.postgresql import insert

from pipeline.adapters.sql.audit import AuditLine, append, append_all
from pipeline.adapters.sql.database.engine import transaction
from pipeline.adapters.sql.database.locks import lineage_id_of, lock_lineage
from pipeline.adapters.sql.database.rows import artifact_json, artifact_of, record_of
from pipeline.adapters.sql.database.tables import edit_requests, lineages, snapshots
from pipeline.adapters.sql.outbox import owe
from pipeline.domain.audit import AuditAction
from pipeline.domain.bounds import changed
from pipeline.domain.errors import IllegalTransition, InvalidInput, UnknownLineage
from pipeline.domain.formats.canonical import sha256_json
from pipeline.domain.gates import GatePolicy
from pipeline.domain.ledger.upkeep import Upkeep
from pipeline.domain.lineages import Lineage, NewLineage, TrainedArtifacts, check_name
from pipeline.domain.rank_api import BaseSpec, EditorSettings
from pipeline.domain.review.policies import ApprovalPolicy, policy_of

PARAMS = ("inner_params", "subject_params")
"""Settings of an editor that are lists of names."""
BASE_READER = "edit-worker"
"""The process whose ranks read a base, and so say what its configurations are."""
TRAINED = "trained"
"""Where the column `editor` holds, beside the settings, which files a trained editor is made of."""


class SqlLineageStore:
    """Makes, reads, holds and resumes lineages."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def create(self, new: NewLineage, *, actor: str, origin: Mapping[str, Any] | None = None) -> Lineage:
        """Make a lineage.

        Args:
            new: what it is made with.
            actor: who makes it.
            origin: which lineage was folded into its base, if one was; both get a line of audit.

        Raises:
            InvalidInput: if the name is taken or cannot be one.
        """
        check_name(new.name)
        row = _row(new)
        with transaction(self._engine) as connection:
            made = insert(lineages).values(row).on_conflict_do_nothing().returning(lineages.c.lineage_id)
            lineage_id = connection.execute(made).scalar_one_or_none()
            if lineage_id is None:
                raise InvalidInput(f"expected a free name for a lineage, got {new.name!r}, taken", lineage=new.name)
            lines = [_line(new.name, actor, AuditAction.lineage_created, lineage_id, row)]
            if origin is not None:
                told = {**origin, "new_lineage": new.name}
                chains = (new.name, str(origin["lineage"]))
                lines += [_line(chain, actor, AuditAction.lineage_folded, lineage_id, told) for chain in chains]
            append_all(connection, lines)
            return _one(connection, new.name)

    def lineage(self, name: str) -> Lineage:
        """Return one lineage.

        Raises:
            UnknownLineage: if there is none.
        """
        with transaction(self._engine) as connection:
            return _one(connection, name)

    def lineages(self) -> tuple[Lineage, ...]:
        """Return every lineage, sorted by name."""
        with transaction(self._engine) as connection:
            return tuple(_lineage(row) for row in connection.execute(_query().order_by(lineages.c.name)))

    def counts(self, name: str) -> Mapping[str, int]:
        """Return the number of edits by status. It counts them: for people, not for every batch.

        Raises:
            UnknownLineage: if there is none.
        """
        status = edit_requests.c.status
        with transaction(self._engine) as connection:
            is_mine = edit_requests.c.lineage_id == lineage_id_of(connection, name)
            found = connection.execute(select(status, func.count()).where(is_mine).group_by(status))
            return {row[0]: row[1] for row in found}

    def hold(self, name: str, *, reason: str, actor: str) -> None:
        """Let no batch start until a person resumes; a second hold keeps the first reason.

        Raises:
            UnknownLineage: if there is none.
        """
        with transaction(self._engine) as connection:
            on = lock_lineage(connection, name)
            if on.hold is not None:
                return
            self._set_hold(connection, on.lineage_id, reason)
            append(
                connection,
                chain=name,
                actor=actor,
                action=AuditAction.lineage_held,
                subject=on.lineage_id,
                payload={"reason": reason},
            )

    def resume(self, name: str, *, actor: str, reason: str = "", seen: str | None = None) -> None:
        """Lift a hold and ring the doorbell; nothing happens if there is none.

        Args:
            name: of the lineage.
            actor: who asks, for the history.
            reason: why, in their words.
            seen: the hold that the person saw; None lifts whichever there is.

        Raises:
            UnknownLineage: if there is no such lineage.
            IllegalTransition: if it is held for another reason than the person saw.
        """
        with transaction(self._engine) as connection:
            on = lock_lineage(connection, name)
            if on.hold is None:
                return
            # Forms of browsers change how lines end.
            if seen is not None and on.hold.split() != seen.split():
                raise IllegalTransition(f"expected the hold {seen!r:.200}, got another: {on.hold}", lineage=name)
            base_digest = self._set_hold(connection, on.lineage_id, None)
            event = append(
                connection,
                chain=name,
                actor=actor,
                action=AuditAction.lineage_resumed,
                subject=on.lineage_id,
                payload={"was": on.hold} | ({"reason": reason} if reason else {}),
            )
            payload = {"lineage": name, "base_digest": base_digest}
            owe(connection, kind="doorbell", dedup_key=f"doorbell:{name}:resumed:{event.seq}", payload=payload)

    def set_approval_policy(self, name: str, policy: ApprovalPolicy, *, actor: str) -> None:
        """Change who has to approve from now on, with an audit line; nothing happens if that is so already.

        Raises:
            UnknownLineage: if there is no such lineage.
        """
        with transaction(self._engine) as connection:
            on = lock_lineage(connection, name)
            if on.approval == policy:
                return
            values = {"approval_rule": policy.rule.value, "approval_policy": asdict(policy)}
            connection.execute(update(lineages).where(lineages.c.lineage_id == on.lineage_id).values(values))
            append(
                connection,
                chain=name,
                actor=actor,
                action=AuditAction.lineage_ruled,
                subject=on.lineage_id,
                payload={
                    "approval_rule": policy.rule.value,
                    "was": on.approval.rule.value,
                    "policy": asdict(policy),
                    "policy_was": asdict(on.approval),
                },
            )

    def change_policy(self, name: str, given: Mapping[str, str], *, actor: str, reason: str) -> GatePolicy:
        """Change bounds of the gate policy, with an audit line; from the next batch on it judges.

        Nothing is written if the policy has these bounds already. Returns the policy of before.

        Raises:
            UnknownLineage: if there is no such lineage.
            InvalidInput: if a bound is unknown or cannot have its value.
        """
        with transaction(self._engine) as connection:
            on = lock_lineage(connection, name)
            before = GatePolicy.from_stored(on.policy)
            after = changed(before, given)
            if after == before:
                return before
            values = {"policy": asdict(after)}
            connection.execute(update(lineages).where(lineages.c.lineage_id == on.lineage_id).values(values))
            old, new = asdict(before), asdict(after)
            append(
                connection,
                chain=name,
                actor=actor,
                action=AuditAction.lineage_policy_changed,
                subject=on.lineage_id,
                payload={
                    "reason": reason,
                    "was": {key: old[key] for key in old if old[key] != new[key]},
                    "is": {key: new[key] for key in old if old[key] != new[key]},
                    "was_digest": before.digest,
                    "digest": after.digest,
                },
            )
            return before

    def set_upkeep(self, name: str, upkeep: Upkeep, *, actor: str, reason: str = "") -> Upkeep:
        """Change what a lineage does by itself after a batch, with an audit line if that is new; return the former.

        Raises:
            UnknownLineage: if there is no such lineage.
        """
        with transaction(self._engine) as connection:
            on = lock_lineage(connection, name)
            if on.upkeep != upkeep:
                values = {"upkeep": asdict(upkeep)}
                connection.execute(update(lineages).where(lineages.c.lineage_id == on.lineage_id).values(values))
                append(
                    connection,
                    chain=name,
                    actor=actor,
                    action=AuditAction.lineage_upkeep_changed,
                    subject=on.lineage_id,
                    payload={"was": asdict(on.upkeep), "is": asdict(upkeep)} | ({"reason": reason} if reason else {}),
                )
            return on.upkeep

    def bind_base(self, name: str, config_digest: str) -> None:
        """Record the digest of a base's configurations and audit it, once: the first one that is recorded stays.

        Raises:
            UnknownLineage: if there is no such lineage.
        """
        with transaction(self._engine) as connection:
            on = lock_lineage(connection, name)
            is_unbound = (lineages.c.lineage_id == on.lineage_id) & lineages.c.base_config_digest.is_(None)
            change = update(lineages).where(is_unbound).values(base_config_digest=config_digest)
            if connection.execute(change).rowcount == 0:
                return
            append(
                connection,
                chain=name,
                actor=BASE_READER,
                action=AuditAction.lineage_base_bound,
                subject=on.lineage_id,
                payload={"base_digest": on.base_digest, "config_digest": config_digest},
            )

    @staticmethod
    def _set_hold(connection: Connection, lineage_id: str, reason: str | None) -> str:
        change = update(lineages).where(lineages.c.lineage_id == lineage_id).values(hold=reason)
        return str(connection.execute(change.returning(lineages.c.base_digest)).scalar_one())


def _line(chain: str, actor: str, action: AuditAction, lineage_id: str, payload: Mapping[str, Any]) -> AuditLine:
    return AuditLine(chain=chain, actor=actor, action=action, subject=lineage_id, payload=payload)


def _row(new: NewLineage) -> dict[str, Any]:
    editor = asdict(new.editor) | {name: list(getattr(new.editor, name)) for name in PARAMS}
    if (trained := new.trained) is not None:
        files = {"card": artifact_json(trained.card), "tensors": artifact_json(trained.tensors)}
        editor[TRAINED] = {"name": trained.name} | files
    return {
        "name": new.name,
        "task": new.base.task,
        "base_ref": new.base.ref,
        "base_digest": new.base.digest,
        "editor": editor,
        "editor_digest": sha256_json(editor),
        "policy": asdict(new.policy),
        "prior": artifact_json(new.prior),
        "baseline": artifact_json(new.reference),
        "approval_rule": new.approval_policy.rule.value,
        "approval_policy": asdict(new.approval_policy),
    }


def _query() -> Select[Any]:
    head, champion = snapshots.alias("head"), snapshots.alias("champion")
    columns = (
        head.c.seq.label("head_seq"),
        head.c.digest.label("head_digest"),
        head.c.prior_strength.label("head_strength"),
        champion.c.seq.label("champion_seq"),
    )
    return (
        select(lineages, *columns)
        .outerjoin(head, head.c.snapshot_id == lineages.c.head_snapshot_id)
        .outerjoin(champion, champion.c.snapshot_id == lineages.c.champion_snapshot_id)
    )


def _one(connection: Connection, name: str) -> Lineage:
    row = connection.execute(_query().where(lineages.c.name == name)).one_or_none()
    if row is None:
        raise UnknownLineage(f"expected the name of a lineage, got {name!r:.120}", lineage=name)
    return _lineage(row)


def _lineage(row: Row[Any]) -> Lineage:
    settings = NewLineage(
        name=row.name,
        base=BaseSpec(ref=row.base_ref, digest=row.base_digest, task=row.task, config_digest=row.base_config_digest),
        editor=EditorSettings.from_stored(row.editor),
        policy=GatePolicy.from_stored(row.policy),
        prior=artifact_of(row.prior),
        reference=artifact_of(row.baseline),
        trained=_trained(row.editor.get(TRAINED)),
        approval_policy=policy_of(row.approval_policy, row.approval_rule),
    )
    return record_of(
        Lineage,
        row,
        settings=settings,
        head_id=row.head_snapshot_id,
        head_seq=row.head_seq or 0,
        head_digest=row.head_digest or row.base_digest,
        champion_id=row.champion_snapshot_id,
        champion_seq=row.champion_seq or 0,
        upkeep=Upkeep.from_stored(row.upkeep),
    )


def _trained(document: Mapping[str, Any] | None) -> TrainedArtifacts | None:
    if document is None:
        return None
    card, tensors = artifact_of(document["card"]), artifact_of(document["tensors"])
    return TrainedArtifacts(name=document["name"], card=card, tensors=tensors)
