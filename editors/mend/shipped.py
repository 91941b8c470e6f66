"""Which trained editor that ships is a base's default: `pretrained/NAME/` has an editor's two files.

One that costs more than it gives unasked ships for who names its folder. Torch is not loaded for it.
"""

from __future__ import annotations

import json
from pathlib import Path

from editors.models.digest import names_base
from pipeline.domain.errors import IntegrityBroken
from pipeline.domain.rank_api import BEFORE_FRAMES

PRETRAINED = Path(__file__).parents[1] / "pretrained"
"""Folder of the editors that ship, one folder each under its name."""
BY_NAME = ("smollm2-135m-instruct",)
"""Editors that are nobody's default: this one needs half the passes and holds in more wordings of real facts, and moves
neighbours, text and questions more (BENCHMARKS, "Trained against untrained")."""
CARD = "card.json"
"""File of an editor's folder that says what the editor is for."""


def shipped_editor(base_digest: str, folder: Path | None = None) -> Path | None:
    """Return the folder of the default editor of a base; None if there is none.

    An editor that was trained for one row an edit is no default: untrained, an edit with frames holds in more wordings.

    Args:
        base_digest: of the base.
        folder: where editors are, of which the first by name is taken; `PRETRAINED` if None.

    Raises:
        IntegrityBroken: if a card cannot be read.
    """
    for card in sorted((folder or PRETRAINED).glob(f"*/{CARD}")):
        base, has_frames = _read(card)
        if card.parent.name not in BY_NAME and names_base(str(base), base_digest) and has_frames:
            return card.parent
    return None


def _read(card: Path) -> tuple[object, bool]:
    """Return the digest of an editor's base, and whether the editor was trained for edits with frames."""
    try:
        content = json.loads(card.read_text(encoding="utf-8"))
        settings = BEFORE_FRAMES | content["settings"]
        return content["base_digest"], settings["frames_per_pass"] > 0
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityBroken(f"expected an editor's card at {card}, got something else: {error!r}") from error
