"""The route that says who a token belongs to: what a client tries first."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel, Field

from pipeline.domain.review.people import Role
from pipeline.entrypoints.web.identity import SIGNED_IN, Caller

router = APIRouter(prefix="/v1", tags=["people"], dependencies=SIGNED_IN)


class WhoAmI(BaseModel):
    """The caller, as Corrigenda knows them."""

    name: str = Field(description="Under which corrections are submitted and decisions recorded.")
    roles: list[Role] = Field(description="What the caller may do.")


@router.get("/me")
def who_am_i(person: Caller) -> WhoAmI:
    """Say who the caller is."""
    return WhoAmI(name=person.name, roles=sorted(person.roles))
