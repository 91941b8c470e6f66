"""Knows how people write amounts of memory. Knows nothing of what is stored."""

from __future__ import annotations

import re
from decimal import Decimal

from pipeline.domain.errors import InvalidInput

UNITS = {"": 1, "B": 1}
UNITS |= {f"{letter}B": 1000**power for power, letter in enumerate("KMGT", start=1)}
UNITS |= {f"{letter}IB": 1024**power for power, letter in enumerate("KMGT", start=1)}
"""Unit, in capitals -> bytes."""


def parse_size(text: str) -> int:
    """Bytes of `24GB` (powers of 1000), `512MiB` (powers of 1024) or a plain number of bytes.

    Raises:
        InvalidInput: for anything else, and for less than one byte.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", text.strip(), flags=re.ASCII)
    unit = UNITS.get(found[2].upper()) if found else None
    num_bytes = int(Decimal(found[1]) * unit) if found and unit else 0
    if num_bytes < 1:
        raise InvalidInput(f"expected an amount of memory such as 24GB, 512MiB or a number of bytes, got {text!r:.80}")
    return num_bytes


def shown_size(num_bytes: int) -> str:
    """Bytes with three digits or more and a decimal unit, as people read them."""
    for unit in ("TB", "GB", "MB", "kB"):
        if num_bytes >= UNITS[unit.upper()]:
            return f"{num_bytes / UNITS[unit.upper()]:.2f} {unit}"
    return f"{num_bytes} B"
