"""The JSON Schemas of the wire, generated from the models in `pipeline.domain`. This folder is where they lie."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pipeline.domain.contract import results, wire

FOLDER = Path(__file__).parent


def generated() -> Mapping[str, str]:
    """File name to text of every schema, as the models are now."""
    schemas = (wire.json_schema(), results.json_schema())
    return {schema["$id"]: json.dumps(schema, indent=2, ensure_ascii=False) + "\n" for schema in schemas}


def stale() -> tuple[str, ...]:
    """Names of the kept files that differ from what the models say."""
    return tuple(name for name, text in generated().items() if _kept(name) != text)


def write() -> tuple[str, ...]:
    """Bring the kept files up to date; returns the names of those that changed."""
    changed = stale()
    texts = generated()
    for name in changed:
        (FOLDER / name).write_text(texts[name], encoding="utf-8")
    return changed


def _kept(name: str) -> str | None:
    path = FOLDER / name
    return path.read_text(encoding="utf-8") if path.is_file() else None
