"""The list of well-known subjects that ships: other things of many kinds that an edit must not move.

`subjects.json` holds it by kind. The kinds are for its readers: which names are near a subject, a model says itself
(`editors.methods.guards`).
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

SUBJECTS = Path(__file__).with_name("subjects.json")
"""An object of kinds, each with its names."""


@cache
def subject_names() -> tuple[str, ...]:
    """Return every name of the list, kind by kind; each is there once."""
    kinds: dict[str, list[str]] = json.loads(SUBJECTS.read_text(encoding="utf-8"))
    return tuple(name for names in kinds.values() for name in names)
