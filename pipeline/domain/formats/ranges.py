"""What a number may be: the same words refuse it on a command line and in a record.

positive = Range(least=1, is_whole=True)
positive.read("3")
require_within(settings, {"num_passes": positive}, "an editor")
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.domain.errors import InvalidInput, Misconfigured

MOST_WHOLE = 2**53 - 1
"""The largest whole number that JSON keeps as it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """The numbers between two bounds; a number that is not finite is never one of them."""

    least: float = 0
    """The smallest number that it may be, or what it has to be above."""
    most: float = math.inf
    """The largest number that it may be; infinity for any that is finite."""
    is_whole: bool = False
    """Whether it is a whole number; one that JSON cannot keep is never one."""
    is_above: bool = False
    """Whether `least` itself is too small."""

    @property
    def _most(self) -> float:
        return min(self.most, MOST_WHOLE) if self.is_whole else self.most

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.is_whole else int | float):
            return False
        return self.least <= value <= self._most and value < math.inf and not (self.is_above and value == self.least)

    def __str__(self) -> str:
        kind = "a whole number" if self.is_whole else "a finite number" if self._most == math.inf else "a number"
        least, most = (f"{bound:,}" if isinstance(bound, int) else f"{bound:g}" for bound in (self.least, self._most))
        if self._most == math.inf:
            return f"{kind} {'above' if self.is_above else 'of at least'} {least}"
        return f"{kind} above {least} and at most {most}" if self.is_above else f"{kind} from {least} to {most}"

    def read(self, text: str) -> float:
        """Read a number.

        Raises:
            InvalidInput: if it is none, or not one of these.
        """
        try:
            value = int(text) if self.is_whole else float(text)
        except ValueError:
            value = math.nan
        if value not in self:
            raise InvalidInput(f"expected {self}, got {text!r:.80}")
        return value


SEED = Range(least=-MOST_WHOLE, is_whole=True)
"""What a seed may be."""


def require_within(record: object, ranges: Mapping[str, Range], whose: str) -> None:
    """Make sure that the fields of a record are in their ranges; one that is None is not asked.

    Raises:
        Misconfigured: naming the first field that is not.
    """
    for name, within in ranges.items():
        if (value := getattr(record, name)) is not None and value not in within:
            raise Misconfigured(f"expected {name} of {whose}: {within}, got {value!r:.80}")
