"""Text of users inside Markdown: whatever it holds, it stays text, on its line and in its own direction of writing."""

from __future__ import annotations

import re
import unicodedata

MAX_CHARS = 120
ISOLATE, POP = "\u2068", "\u2069"
_MARKUP = re.compile(r"([\\`*_\[\]#|~])")
_RIGHT_TO_LEFT = frozenset(("R", "AL", "RLE", "RLO", "RLI"))
_JOINERS = "\u200c\u200d"
"""Format characters that some scripts cannot be written without."""


def plain(text: object, *, most: int = MAX_CHARS) -> str:
    """Return text as Markdown that shows just it: one line, no markup, no invisible characters, cut to `most`.

    A text from right to left is isolated, so that what stands around it keeps its order.
    """
    said = _cut(_visible("" if text is None else str(text)), most)
    escaped = _MARKUP.sub(r"\\\1", said.replace("&", "&amp;").replace("<", "&lt;"))
    # An address or a name in a text is no link of the page.
    escaped = escaped.replace("://", "&#58;//").replace("www.", "www&#46;").replace("@", "&#64;")
    is_turned = any(unicodedata.bidirectional(char) in _RIGHT_TO_LEFT for char in said)
    return f"{ISOLATE}{escaped}{POP}" if is_turned else escaped


def cell(text: object) -> str:
    """Return text that cannot break out of a table: one line, no pipes, no markup."""
    said = _cut(_visible("" if text is None else str(text)), MAX_CHARS)
    return said.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "'")


def _visible(text: str) -> str:
    """Return text on one line, without characters that are there and not seen."""
    kept = (char for char in text if unicodedata.category(char) != "Cf" or char in _JOINERS)
    return " ".join("".join(char if char.isprintable() or char in _JOINERS else " " for char in kept).split())


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
