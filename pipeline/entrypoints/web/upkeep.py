"""Routes for a lineage that grows long: what it does by itself to stay good, and its ledger solved anew when asked.

A fold has no route: it trains a model for minutes to hours, which `corrigenda lineage fold` does where the base lies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.domain.ledger.upkeep import Resolving, Upkeep
from pipeline.domain.lifecycle import RemovalStatus, SnapshotStatus
from pipeline.entrypoints.web.bodies import Body
from pipeline.entrypoints.web.identity import SIGNED_IN
from pipeline.entrypoints.web.openapi import body_of
from pipeline.entrypoints.web.operations import (
    WRONG,
    Operator,
    Reader,
    Reason,
    Resumer,
    actor_of,
    checked_name,
    wanted_of,
)
from pipeline.entrypoints.web.parts import Parts, WebParts
from pipeline.entrypoints.web.problems import answers

router = APIRouter(prefix="/v1", tags=["upkeep"], dependencies=SIGNED_IN)

SHOWN = 20
"""Ledgers solved anew that an answer, or a page, lists."""
LEAST_STRENGTH = 1e-6
MOST_SEQ = 2**31 - 1


class UpkeepWanted(BaseModel):
    """What a lineage is to do by itself; what is left out stays as it is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reason: Reason
    rekey_every: int | None = Field(
        None, ge=0, le=MOST_SEQ, description="Edits after which the keys of all are read again; 0 for never."
    )
    suite_kl_budget: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="KL of the suite above which the prior gets stronger; 0 for never."
    )

    @model_validator(mode="after")
    def _something(self) -> UpkeepWanted:
        if self.rekey_every is None and self.suite_kl_budget is None:
            raise ValueError("expected rekey_every, suite_kl_budget or both; got neither")
        return self


class RekeyWanted(BaseModel):
    """How a ledger is to be solved anew."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reason: Reason
    strength: float | None = Field(
        None, ge=LEAST_STRENGTH, allow_inf_nan=False, description="The prior's strength from then on."
    )
    keep_keys: bool = Field(False, description="Change the strength alone.")
    undo: int | None = Field(
        None,
        ge=1,
        le=MOST_SEQ,
        description="Bring back the ledger of before this snapshot, in which it was solved anew.",
    )

    @model_validator(mode="after")
    def _one_wish(self) -> RekeyWanted:
        if self.keep_keys and self.strength is None:
            raise ValueError("expected a strength with keep_keys, got nothing to change")
        if self.undo is not None and (self.keep_keys or self.strength is not None):
            raise ValueError("expected undo alone, got strength or keep_keys too")
        return self


class SolvedAnew(BaseModel):
    """A ledger that is, was or could not be solved anew."""

    id: UUID = Field(description="Of the wish.")
    requested_at: datetime = Field(description="When it was asked for.")
    requested_by: str = Field(description="Who asked for it; a worker, where the lineage's upkeep did.")
    reason: str = Field(description="Why.")
    change: str = Field(description="What is solved anew, for people.")
    status: RemovalStatus = Field(description="Whether it is owed, made, or failed.")
    outcome: str | None = Field(None, description="Why it failed.")
    seq: int | None = Field(None, description="The snapshot that it made.")
    snapshot_status: SnapshotStatus | None = Field(None, description="What became of that.")
    undoes_seq: int | None = Field(None, description="The snapshot whose ledger is taken back.")
    undoes_status: SnapshotStatus | None = Field(None, description="What has become of that one.")
    may_be_undone_again: bool = Field(description="Whether the undo failed, and nobody has asked for it since.")


class LineageUpkeep(BaseModel):
    """What a lineage does by itself, how strong its prior is, and how its ledger was solved anew."""

    lineage: str = Field(description="Its name.")
    rekey_every: int = Field(description="Edits after which the keys of all are read again; 0 for never.")
    suite_kl_budget: float = Field(description="KL of the suite above which the prior gets stronger; 0 for never.")
    prior_strength: float = Field(description="The prior's strength at the head.")
    usual_strength: float = Field(description="Its strength when the lineage was made.")
    solved_anew: list[SolvedAnew] = Field(description=f"The newest {SHOWN} times, the latest first.")


class Owed(BaseModel):
    """A ledger that is to be solved anew."""

    id: UUID = Field(description="Of the wish.")
    is_new: bool = Field(description="False where such work was owed already: that is told, and nothing new is owed.")
    change: str = Field(description="What is solved anew, for people.")


BODIES = (UpkeepWanted, RekeyWanted)


@router.get("/lineages/{lineage}/upkeep", responses=answers(404, 422, 503))
def show(parts: Parts, person: Reader, lineage: str) -> LineageUpkeep:
    """Say what a lineage does by itself to stay good, and how its ledger was solved anew."""
    return upkeep_of(parts, checked_name(lineage))


@router.post(
    "/lineages/{lineage}/upkeep",
    responses=WRONG,
    openapi_extra=body_of(UpkeepWanted, reason="it grows long", rekey_every=1000),
)
def change(request: Request, parts: Parts, person: Operator, lineage: str, body: Body) -> LineageUpkeep:
    """Change what a lineage does by itself after a batch; each makes a candidate that gates judge."""
    name = checked_name(lineage)
    change_upkeep(parts, name, wanted_of(UpkeepWanted, request, body), actor=actor_of(person))
    return upkeep_of(parts, name)


@router.post(
    "/lineages/{lineage}/rekey",
    responses=WRONG,
    openapi_extra=body_of(RekeyWanted, reason="a thousand edits since the last time"),
)
def rekey(request: Request, parts: Parts, person: Resumer, lineage: str, body: Body) -> Owed:
    """Solve a lineage's ledger anew: read the keys of all active edits again, or change the prior's strength.

    It makes a candidate, which gates judge and somebody approves; rejecting it brings the ledger of before back.
    """
    return owe(parts, checked_name(lineage), wanted_of(RekeyWanted, request, body), actor=actor_of(person))


def change_upkeep(parts: WebParts, lineage: str, wanted: UpkeepWanted, *, actor: str) -> None:
    """Change what a lineage does by itself, but for what a wish leaves out.

    Raises:
        UnknownLineage: if there is no such lineage.
    """
    found = parts.stores.lineages.lineage(lineage).upkeep
    upkeep = Upkeep(
        rekey_every=found.rekey_every if wanted.rekey_every is None else wanted.rekey_every,
        suite_kl_budget=found.suite_kl_budget if wanted.suite_kl_budget is None else wanted.suite_kl_budget,
    )
    parts.stores.lineages.set_upkeep(lineage, upkeep, actor=actor, reason=wanted.reason.strip())


def owe(parts: WebParts, lineage: str, wanted: RekeyWanted, *, actor: str) -> Owed:
    """Owe a ledger that is solved anew, as somebody wants it.

    Raises:
        UnknownLineage, UnknownRecord: if there is no such lineage, or no such snapshot to be undone.
        InvalidInput: if its head holds no edit, or the snapshot cannot be undone.
    """
    if wanted.undo is not None:
        resolving = Resolving(undoes=parts.stores.snapshots.snapshot(lineage, str(wanted.undo)).snapshot_id)
    else:
        resolving = Resolving(prior_strength=wanted.strength, rekeys=not wanted.keep_keys)
    reason = wanted.reason.strip()
    owed_id, owed = parts.stores.review.request_resolving(lineage, resolving, actor=actor, reason=reason)
    return Owed(id=UUID(owed_id), is_new=replace(owed, place=0) == resolving, change=owed.words())


def upkeep_of(parts: WebParts, lineage: str) -> LineageUpkeep:
    """Return a lineage's upkeep and the newest ledgers that were solved anew.

    Raises:
        UnknownLineage: if there is no such lineage.
    """
    found = parts.stores.lineages.lineage(lineage)
    rows = parts.stores.api.pages.solved_anew(lineage, limit=SHOWN)
    is_undone: set[str] = set()
    listed = []
    for row in rows:
        how = Resolving.from_stored(row["resolving"])
        listed.append(_solved_anew(row, how, may_be_undone_again=_has_failed(row, how) and how.undoes not in is_undone))
        is_undone |= {how.undoes} if how.undoes else set()
    return LineageUpkeep(
        lineage=lineage,
        rekey_every=found.upkeep.rekey_every,
        suite_kl_budget=found.upkeep.suite_kl_budget,
        prior_strength=found.prior_strength,
        usual_strength=found.settings.editor.prior_strength,
        solved_anew=listed,
    )


def _has_failed(row: Mapping[str, Any], how: Resolving) -> bool:
    return how.undoes is not None and row["status"] == RemovalStatus.failed


def _solved_anew(row: Mapping[str, Any], how: Resolving, *, may_be_undone_again: bool) -> SolvedAnew:
    same = ("requested_at", "reason", "status", "outcome", "seq", "snapshot_status", "undoes_seq", "undoes_status")
    return SolvedAnew(
        **{name: row[name] for name in same},
        id=row["removal_id"],
        requested_by=row["actor"],
        change=how.words(),
        may_be_undone_again=may_be_undone_again,
    )
