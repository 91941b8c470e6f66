"""Lineages, messages and polls with sensible fields."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pipeline.domain.contract.messages import Message, ParsedMessage, PartitionClaim, PartitionKey, Poll
from pipeline.domain.contract.wire import parse_message
from pipeline.domain.edits import EditRequest
from pipeline.domain.errors import InvalidMessage
from pipeline.domain.gates import GatePolicy
from pipeline.domain.lineages import NewLineage
from pipeline.domain.rank_api import BaseSpec, EditorSettings
from pipeline.domain.snapshots import Artifact

PARTITION = PartitionKey(cluster_id="cluster", topic_id="topic-id", topic="edits.requests.v1", partition=0)


def new_lineage(name: str = "facts", **changes: Any) -> NewLineage:
    """What makes a lineage of a base that nobody has to load."""
    fields: dict[str, Any] = {
        "name": name,
        "base": BaseSpec(ref="/models/base", digest="b" * 64, task="causal"),
        "editor": EditorSettings(inner_params=("model.layers.1.mlp.down_proj.weight",)),
        "policy": GatePolicy(),
        "prior": Artifact(uri="file:prior", digest="1" * 64, num_bytes=10),
        "reference": Artifact(uri="file:baseline", digest="2" * 64, num_bytes=20),
    }
    return NewLineage(**(fields | changes))


def message(offset: int, value: bytes | None, *, partition: PartitionKey = PARTITION) -> Message:
    """A record as a broker hands it over."""
    headers = (("trace", b"\x00\xff"),)
    return Message(partition=partition, offset=offset, key=b"facts", value=value, headers=headers)


def parsed(offset: int, value: bytes | None, *, partition: PartitionKey = PARTITION) -> ParsedMessage:
    """A record after the wire contract has looked at it."""
    raw = message(offset, value, partition=partition)
    try:
        return ParsedMessage(message=raw, request=parse_message(value), refusal=None)
    except InvalidMessage as error:
        return ParsedMessage(message=raw, request=None, refusal=str(error))


def carrying(offset: int, request: EditRequest, *, partition: PartitionKey = PARTITION) -> ParsedMessage:
    """A record that carries a correction."""
    value = json.dumps(request.as_json()).encode()
    return ParsedMessage(message=message(offset, value, partition=partition), request=request, refusal=None)


def poll_of(claim: PartitionClaim, messages: Sequence[ParsedMessage]) -> Poll:
    """What one poll brought."""
    next_offset = messages[-1].message.offset + 1 if messages else claim.next_offset
    return Poll(claim=claim, messages=tuple(messages), next_offset=next_offset)
