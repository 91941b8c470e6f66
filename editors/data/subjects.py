"""The lists of well-known subjects that ship: other things of many kinds that an edit must not move.

Each is an object of kinds with their names. Names of `subjects.json` may be guards of edits. Those of
`other_subjects.json` are of the same kinds and never guards: gates ask about them. The kinds are for their readers:
which names are near a subject, a model says itself (`editors.methods.nearest`).
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

SUBJECTS = Path(__file__).with_name("subjects.json")
"""The names that may be guards."""
OTHER_SUBJECTS = Path(__file__).with_name("other_subjects.json")
"""The names that gates ask about."""


@cache
def subject_names(path: Path = SUBJECTS) -> tuple[str, ...]:
    """Return every name of a list, kind by kind; each is there once."""
    return tuple(name for names in _kinds(path).values() for name in names)


def of_same_kind(name: str) -> tuple[str, ...]:
    """Return the names of `other_subjects.json` of a name's kind, if either list has it; the name is not among them."""
    kinds = [kind for path in (SUBJECTS, OTHER_SUBJECTS) for kind, names in _kinds(path).items() if name in names]
    return tuple(other for kind in kinds[:1] for other in _kinds(OTHER_SUBJECTS)[kind] if other != name)


@cache
def _kinds(path: Path) -> dict[str, list[str]]:
    kinds: dict[str, list[str]] = json.loads(path.read_text(encoding="utf-8"))
    return kinds
