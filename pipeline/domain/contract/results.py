"""The wire contract `edits.results.v1`: what became of a correction, for whoever sent it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from pipeline.domain.lifecycle import EditStatus

VERSION: Literal[1] = 1


class EditResultV1(BaseModel):
    """What became of one correction. A later message about the same request replaces an earlier one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = Field(VERSION, description="Version of this contract.")
    request_id: str = Field(description="The producer's id.")
    lineage: str = Field(description="The lineage that the correction was for; also the key.")
    status: EditStatus = Field(description="Where the correction stands now.")
    reason: str | None = Field(None, description="Why, where it was rejected, superseded, reverted or given up.")
    snapshot_seq: int | None = Field(None, description="Number of the snapshot that holds or held it, if any.")
    is_live: bool | None = Field(
        None,
        description="Whether the approved model holds it, told when that changes; left out of other messages.",
        exclude_if=lambda is_live: is_live is None,
    )
    at: AwareDatetime = Field(description="When it came to this, in database time (RFC 3339 with an offset).")


def json_schema() -> dict[str, Any]:
    """Return the versioned JSON Schema of the contract, as kept in `pipeline/schemas/edits.results.v1.json`."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "edits.results.v1.json",
    } | EditResultV1.model_json_schema(mode="serialization")
