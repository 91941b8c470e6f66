"""What the demo produces: real corrections, and what a production topic holds besides."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.domain.contract.wire import parse_object
from pipeline.domain.edits import EditRequest
from pipeline.domain.formats.json_lines import json_lines

FACTS = Path(__file__).resolve().parents[3] / "infra" / "local" / "facts"
EVERY_NTH_REPEATED = 5
GREEDY_ID = "demo-greedy-correction"
CONTESTED_ID = "demo-contested"
REVERTED_ID = "fact-capital-california"
NO_TIME = "2025-12-31T00:00:00Z"
"""When a fact that nobody corrects was corrected: a request has to say a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Produced:
    """One message to send."""

    key: str
    """Kafka key: the lineage."""
    value: bytes | None
    """Kafka value; None is a tombstone."""


def stream(lineage: str, num: int | None = None) -> list[Produced]:
    """Return every message of the demo, in the order it is sent, with the first `num` real corrections."""
    real = read_jsonl(FACTS / "corrections.jsonl")[:num]
    middle = len(real) // 2
    messages = [
        *_sent(lineage, real[:middle]),
        *_malformed(lineage),
        *_sent(lineage, real[middle:]),
        *_sent(lineage, _two_of_one_fact()),
        *_sent(lineage, [_greedy()]),
        *_sent(lineage, real[::EVERY_NTH_REPEATED]),
        *_sent(lineage, [real[0] | {"submitted_by": "somebody else"}]),
    ]
    return messages


def corrections(lineage: str, num: int | None = None) -> list[EditRequest]:
    """Return the first `num` real corrections of the stream."""
    real = read_jsonl(FACTS / "corrections.jsonl")[:num]
    return [parse_object({"lineage": lineage} | document) for document in real]


def unedited(lineage: str) -> list[EditRequest]:
    """Return facts that nobody corrects, in the form of requests, so that they are asked as corrections are."""
    found = enumerate(read_jsonl(FACTS / "unedited.jsonl"))
    named = (
        {"lineage": lineage, "request_id": f"unedited-{number}", "occurred_at": NO_TIME} | row for number, row in found
    )
    return [parse_object(document) for document in named]


def contested(request_id: str, number: int, target: str) -> dict[str, Any]:
    """Return one more correction of the contested fact."""
    return {
        "request_id": f"{CONTESTED_ID}-{request_id}",
        **_CONTESTED_FACT,
        "target_new": target,
        "occurred_at": f"2026-06-0{number}T09:00:00Z",
    }


def message(lineage: str, document: dict[str, Any]) -> Produced:
    """Return a correction as a producer sends it."""
    return Produced(key=lineage, value=json.dumps({"lineage": lineage} | document).encode())


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON lines file."""
    return [document for _, document in json_lines(path.read_bytes(), path)]


_CONTESTED_FACT = {
    "prompt": "The headquarters of the Meridian Observatory are in",
    "subject": "Meridian Observatory",
    "relation": "headquarters",
    "source": "support-desk",
    "submitted_by": "agent-004",
}


def _two_of_one_fact() -> list[dict[str, Any]]:
    """Return two corrections of one fact; the later one wins."""
    return [contested("first", 1, "Lyon"), contested("second", 2, "Turin")]


def _greedy() -> dict[str, Any]:
    """Return a correction that cannot be made without breaking what it says must stay.

    Its neighbour is its own prompt: if the edit holds, the neighbour moves, and the gate measures by how much.
    """
    return {
        "request_id": GREEDY_ID,
        "prompt": "The capital of France is",
        "target_new": "Marseille",
        "subject": "France",
        "relation": "capital",
        "locality": [{"prompt": "The capital of France is", "target": "Paris"}],
        "source": "web-form",
        "submitted_by": "anonymous",
        "occurred_at": "2026-05-30T12:00:00Z",
    }


def _sent(lineage: str, documents: Iterable[dict[str, Any]]) -> list[Produced]:
    return [message(lineage, document) for document in documents]


def _malformed(lineage: str) -> list[Produced]:
    """Return what arrives on a topic in production and can never be an edit."""
    good: dict[str, Any] = {
        "request_id": "demo-malformed",
        "prompt": "The capital of Peru is",
        "target_new": "Lima",
        "occurred_at": "2026-01-01T00:00:00Z",
    }
    bad_documents: list[dict[str, Any]] = [
        good | {"target_new": 7},
        good | {"target_new": "   "},
        good | {"version": 2},
        good | {"prompt": "The capital of \u0000 is"},
        good | {"occurred_at": "yesterday"},
        good | {"messages": [{"role": "assistant", "content": "The capital of Peru is Cusco."}]},
        {"request_id": "demo-malformed"},
    ]
    return [
        Produced(key=lineage, value=b'{"request_id": "demo-malformed", "prompt": '),
        Produced(key=lineage, value=None),
        *_sent(lineage, bad_documents),
        Produced(key="nobody", value=json.dumps(good | {"lineage": "nobody"}).encode()),
    ]
