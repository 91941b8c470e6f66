"""Amounts of memory and ages, as people write them."""

from __future__ import annotations

import re
from datetime import timedelta
from decimal import Decimal

from pipeline.domain.errors import InvalidInput

UNITS = {"": 1, "B": 1}
UNITS |= {f"{letter}B": 1000**power for power, letter in enumerate("KMGT", start=1)}
UNITS |= {f"{letter}IB": 1024**power for power, letter in enumerate("KMGT", start=1)}
"""Unit, in capitals -> bytes."""
AGES = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_size(text: str) -> int:
    """Return the bytes of `24GB` (powers of 1000), `512MiB` (powers of 1024) or a plain number of bytes.

    Raises:
        InvalidInput: for anything else, and for less than one byte.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", text.strip(), flags=re.ASCII)
    unit = UNITS.get(found[2].upper()) if found else None
    num_bytes = int(Decimal(found[1]) * unit) if found and unit else 0
    if num_bytes < 1:
        raise InvalidInput(f"expected an amount of memory such as 24GB, 512MiB or a number of bytes, got {text!r:.80}")
    return num_bytes


def parse_age(text: str) -> timedelta:
    """Return the time that `90m`, `12h`, `30d` or `8w` stands for.

    Raises:
        InvalidInput: for anything else.
    """
    found = re.fullmatch(r"([0-9]{1,6})\s*([mhdw])", text.strip(), flags=re.ASCII)
    if found is None:
        raise InvalidInput(f"expected an age such as 12h, 30d or 8w, got {text!r:.80}")
    return timedelta(**{AGES[found[2]]: int(found[1])})


def shown_size(num_bytes: int) -> str:
    """Return an amount with three digits or more and a decimal unit, as people read it."""
    for unit in ("TB", "GB", "MB", "kB"):
        if num_bytes >= UNITS[unit.upper()]:
            return f"{num_bytes / UNITS[unit.upper()]:.2f} {unit}"
    return f"{num_bytes} B"
