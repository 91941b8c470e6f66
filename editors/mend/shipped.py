"""Which trained editor ships for a base: `pretrained/NAME/` has an editor's two files. Torch is not loaded for it."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.domain.errors import IntegrityBroken

PRETRAINED = Path(__file__).parents[1] / "pretrained"
"""Folder of the editors that ship, one folder each under its name."""
CARD = "card.json"


def shipped_editor(base_digest: str, folder: Path | None = None) -> Path | None:
    """Return the folder of the editor that ships for a base, the first by name; None if there is none.

    Args:
        base_digest: of the base.
        folder: where editors are; `PRETRAINED` if None.

    Raises:
        IntegrityBroken: if a card cannot be read.
    """
    for card in sorted((folder or PRETRAINED).glob(f"*/{CARD}")):
        if _base_of(card) == base_digest:
            return card.parent
    return None


def _base_of(card: Path) -> object:
    try:
        return json.loads(card.read_text(encoding="utf-8"))["base_digest"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityBroken(f"expected an editor's card at {card}, got something else: {error!r}") from error
