"""What people read and set of a gate policy: each bound with its unit, its direction and what it holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from pipeline.domain.errors import InvalidInput
from pipeline.domain.gates import UNJUDGED, GatePolicy

OFF = "off"
"""What is given in place of a number for a bound that is to judge nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bound:
    """One threshold of a policy, as it is shown and set."""

    key: str
    """The field of `GatePolicy`."""
    is_most: bool
    """Whether it is the most that the figure may be; otherwise it is the least."""
    unit: str
    """What it is counted in."""
    meaning: str
    """What is held against it."""
    may_be_off: bool = False
    """Whether what it judges may be reported without being judged."""

    @property
    def direction(self) -> str:
        """Which side of it is refused, in a word."""
        return "maximum" if self.is_most else "minimum"

    @property
    def least(self) -> float:
        """The smallest value that makes sense."""
        return 1.0 if self.unit in (TIMES, COUNT) else 0.0

    @property
    def most(self) -> float:
        """The largest value that makes sense."""
        return 1.0 if self.unit == SHARE else math.inf

    def off(self) -> float | None:
        """Return the value with which it judges nothing."""
        value: float | None = UNJUDGED.get(self.key, 0.0)
        return value

    def is_off(self, policy: GatePolicy) -> bool:
        """Return whether a policy judges nothing by it."""
        return self.may_be_off and getattr(policy, self.key) == self.off()

    def shown(self, policy: GatePolicy) -> str:
        """Return a policy's value, as people give it."""
        return OFF if self.is_off(policy) else f"{getattr(policy, self.key):g}"


SHARE, NATS, FRACTION, TIMES, COUNT = "share, 0 to 1", "nats", "fraction", "times the base's", "number"
_TOLD = (
    ("edit_success_min", SHARE, "edits of the batch whose target is the most probable answer to their own prompt"),
    ("free_success_min", SHARE, "edits of the batch whose target the model says freely after their own prompt"),
    ("generalization_min", SHARE, "rephrases that follow, of those that name the subject and no editor has seen"),
    ("other_context_min", SHARE, "the same of rephrases that name the subject behind other text than the prompt"),
    ("chat_success_min", SHARE, "questions that a chat answers rightly, of those that were asked"),
    ("judged_wordings_min", COUNT, "rephrases or questions that the three shares above have to be of to be judged"),
    ("locality_drop_max", SHARE, "what the unchanged share of the suite falls below the parent's"),
    ("locality_kl_max", NATS, "how far the suite's answers are from the parent's, mean over the suite"),
    ("edit_locality_kl_max", NATS, "how far one edit's own neighbours are from the parent's, mean over them"),
    ("other_subjects_taken_max", SHARE, "other subjects that get one edit's own answer to its prompt, of those asked"),
    ("other_subjects_kl_max", NATS, "how far one edit's other subjects are from the parent's, mean over them"),
    ("same_subject_lost_max", SHARE, "active facts about one edit's own subject that held and do not beside it"),
    ("retention_drop_max", SHARE, "what the success of older edits falls below the parent's"),
    ("perplexity_rise_max", FRACTION, "what perplexity rises over the parent's; not of a classifier"),
    ("accuracy_drop_max", SHARE, "what a classifier's accuracy on the suite falls below the parent's"),
    ("change_norm_max", FRACTION, "how much of its norm in the base an inner parameter changes by"),
    ("locality_floor", SHARE, "the suite's unchanged share against the base; below it the lineage is held"),
    ("retention_floor", SHARE, "success of older edits; below it the lineage is held"),
    ("perplexity_ceiling", TIMES, "perplexity against the base's; above it the lineage is held"),
    ("accuracy_floor", SHARE, "a classifier's accuracy, as a share of the base's; below it the lineage is held"),
)
_MAY_BE_OFF = ("generalization_min", *(key for key in UNJUDGED if key != "judged_wordings_min"))
BOUNDS = tuple(
    Bound(
        key=key,
        is_most=key.endswith(("_max", "_ceiling")),
        unit=unit,
        meaning=meaning,
        may_be_off=key in _MAY_BE_OFF,
    )
    for key, unit, meaning in _TOLD
)
"""Every field of `GatePolicy`, in its order."""


def changed(policy: GatePolicy, given: Mapping[str, str]) -> GatePolicy:
    """Return a policy with other values of some bounds: a number each, or `off`.

    Raises:
        InvalidInput: if there is no such bound, or it cannot have the value.
    """
    known = {bound.key: bound for bound in BOUNDS}
    values: dict[str, float | None] = {}
    for key, text in given.items():
        if key not in known:
            raise InvalidInput(f"expected a key of a gate policy, one of {', '.join(known)}; got {key!r:.80}")
        values[key] = _value(known[key], text)
    return replace(policy, **values)  # type: ignore[arg-type]


def _value(bound: Bound, text: str) -> float | None:
    if text.strip().lower() == OFF and bound.may_be_off:
        return bound.off()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isfinite(value) and bound.least <= value <= bound.most and (bound.unit != COUNT or value.is_integer()):
        return int(value) if bound.unit == COUNT else value
    kind = "a whole number" if bound.unit == COUNT else "a number"
    limits = f"from {bound.least:g} to {bound.most:g}" if bound.most < math.inf else f"of {bound.least:g} or more"
    raise InvalidInput(
        f"expected for {bound.key} {kind} {limits}{f', or {OFF}' if bound.may_be_off else ''}; got {text!r:.80}"
    )
