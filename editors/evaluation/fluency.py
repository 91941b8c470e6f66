"""Knows how varied a text is: the entropy of its word 2- and 3-grams, as ROME measures fluency. Knows no model.

Bits; ROME shows a hundred times as much. A text that repeats itself has little.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from statistics import fmean

import numpy as np
from scipy.special import entr

WEIGHTS = {2: 2 / 3, 3: 4 / 3}
"""Length of an n-gram -> weight of its entropy; they sum to 2 and the mean is taken."""

_WORDS = re.compile(r"\w+|[^\w\s]")


def fluency(texts: Sequence[str]) -> float | None:
    """The mean of the texts' entropies; None of no text."""
    return fmean(map(weighted_entropy, texts)) if texts else None


def weighted_entropy(text: str) -> float:
    """The weighted mean of the entropies of a text's word 2- and 3-grams, bits; 0 for a text without any."""
    words = _WORDS.findall(text)
    return fmean(weight * _entropy(words, length) for length, weight in WEIGHTS.items())


def _entropy(words: Sequence[str], length: int) -> float:
    shifted = [islice(words, start, None) for start in range(length)]
    counts = np.array(list(Counter(zip(*shifted, strict=False)).values()), dtype=float)
    return float(entr(counts / counts.sum()).sum() / np.log(2)) if counts.size else 0.0
