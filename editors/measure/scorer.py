"""Measures what an edit did: fills the records of `pipeline.domain.measurements`, and judges nothing.

A `Scorer` lives with a loaded lineage. What it asked the parent is kept until the parent changes, so bisecting a
batch asks the parent once; what it asked the base is kept longer. References to the base are read from the parent with
its whole shift taken off again in a side branch; the weights are never written.

Legend: I in_features, O out_features.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from editors.measure.free_answers import free_answers
from editors.measure.losses import Reading
from editors.measure.prefix_cache import PrefixCache
from editors.measure.quality import Figure, chosen, prepared_references
from editors.measure.reference import Baseline, own_answers
from editors.measure.scoring import Change, Score, compared, prepare, readings, scores
from editors.models.families import EditableModel, Pair
from editors.models.hooks import side_branch
from editors.models.tokens import Encoded
from editors.weights.deltas import WeightDelta, WeightStore
from pipeline.domain.canonical import canonical_json, sha256_json
from pipeline.domain.edits import Edit, normalised
from pipeline.domain.measurements import EditScore, Measurements, ModelScore, share
from pipeline.domain.rank_api import SuiteProbe

NUM_CHAT = 8
"""Edits of a batch that are also asked in the chat template."""
MAX_KNOWN = 4096
"""Edits whose neighbours' base answers are remembered before all are forgotten."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnProbes:
    """The locality probes of one edit, and what the base says to them."""

    sequences: tuple[Encoded, ...]
    """Prompts with the base's continuations."""
    base: tuple[Reading, ...]
    """The base's readings."""


@dataclass(kw_only=True, slots=True)
class Held:
    """What is known of one set of weights."""

    suite: list[Reading]
    """Readings of the suite."""
    changes: list[Change]
    """How the suite differs from the base."""
    references: list[Score]
    """Of what drawdown is measured on."""
    own: dict[str, tuple[Reading, ...]] = field(default_factory=dict)
    """Readings of an edit's own locality probes, by edit id."""
    retained: dict[str, bool] = field(default_factory=dict)
    """Success of older edits, by edit id."""


class Scorer:
    """Measures candidates of one lineage against its parent and its base.

    Args:
        model: holds the parent when asked to observe it, the candidate when asked to measure.
        weights: its edited weights.
        baseline: what the base answers.
        num_chat: of how many edits of a batch the answer in the chat template is measured; all if None.
    """

    def __init__(
        self, model: EditableModel, weights: WeightStore, baseline: Baseline, *, num_chat: int | None = NUM_CHAT
    ) -> None:
        self._model, self._weights, self._baseline, self._num_chat = model, weights, baseline, num_chat
        self._suite = prepare(model, [answer.sequence for answer in baseline.suite])
        self._references = prepared_references(model, baseline.references)
        self._parent: Held | None = None
        self._candidate: Held | None = None
        self._prefixes = PrefixCache(model)
        self._own: dict[str, OwnProbes] = {}

    @property
    def suite_facts(self) -> set[str]:
        """The facts that the suite asks for: conflict keys as canonical JSON, without the lineage's name."""
        return set[str]().union(*(_facts_of(answer.probe) for answer in self._baseline.suite))

    def reset(self) -> None:
        """Forget the parent: other weights have been loaded."""
        self._parent = self._candidate = None

    def keep(self) -> None:
        """The candidate that was measured last is the parent now."""
        self._parent, self._candidate = self._candidate, None

    def observe_parent(self, added: Sequence[Edit], retained: Sequence[Edit]) -> None:
        """Ask the parent, whose weights are loaded now, all that a candidate of these edits will be compared with."""
        held = self._parent or self._hold()
        self._parent = held
        if len(self._own) > MAX_KNOWN:
            self._own.clear()
            held.own.clear()
        self._observe_own(held, [edit for edit in added if edit.edit_id not in held.own])
        if any(edit.edit_id not in held.retained for edit in retained):
            held.retained |= self._successes(retained)

    def measure(
        self,
        *,
        added: Sequence[Edit],
        retained: Sequence[Edit],
        gone_keys: Collection[str],
        delta: WeightDelta,
    ) -> Measurements:
        """Measure the candidate, whose weights are loaded now; `observe_parent` has seen the same edits.

        Args:
            added: edits of the batch.
            retained: older active edits.
            gone_keys: conflict keys of edited facts, whose suite probes are left out.
            delta: what was applied to the parent.
        """
        parent = self._parent
        assert parent is not None, "observe_parent comes before measure"
        candidate, from_parent = self._hold_compared(parent)
        self._candidate = candidate
        candidate.retained = self._successes(retained)
        asked = self._asked({*gone_keys, *(edit.request.conflict_key for edit in added)})
        base = self._figure(self._baseline.scores, asked)
        return Measurements(
            edits=self._edit_scores(added, parent),
            candidate=self._model_score(candidate, asked, retained),
            parent=self._model_score(parent, asked, retained),
            base=ModelScore(
                suite_unchanged=1.0 if asked else None,
                suite_kl=0.0 if asked else None,
                num_suite=len(asked),
                num_suite_left_out=len(self._baseline.suite) - len(asked),
                perplexity=base.perplexity,
                accuracy=base.accuracy,
            ),
            kl_from_parent=_mean([from_parent[place].kl for place in asked]),
            change_norm=max(norm / self._weights.base_norm(name) for name, norm in delta.norms.items()),
            probe_set_digest=self._digest(added, retained, asked),
        )

    def _hold(self) -> Held:
        suite, [changes] = compared(self._model, self._suite, [self._base_suite])
        return Held(suite=suite, changes=changes, references=scores(self._model, self._references))

    def _hold_compared(self, parent: Held) -> tuple[Held, list[Change]]:
        suite, [changes, from_parent] = compared(self._model, self._suite, [self._base_suite, parent.suite])
        held = Held(suite=suite, changes=changes, references=scores(self._model, self._references))
        return held, from_parent

    @property
    def _base_suite(self) -> list[Reading]:
        return [answer.reading for answer in self._baseline.suite]

    def _observe_own(self, held: Held, edits: Sequence[Edit]) -> None:
        negative = negative_shift(self._model, self._weights)
        with side_branch(self._model.module, negative):
            self._observe_base([edit for edit in edits if edit.edit_id not in self._own])
        own = {edit.edit_id: self._own[edit.edit_id] for edit in edits}
        if not negative:
            held.own |= {edit_id: probes.base for edit_id, probes in own.items()}
            return
        sequences = [sequence for probes in own.values() for sequence in probes.sequences]
        found = iter(readings(self._model, self._prefixes.prepare(sequences)))
        held.own |= {edit_id: tuple(next(found) for _ in probes.sequences) for edit_id, probes in own.items()}

    def _observe_base(self, edits: Sequence[Edit]) -> None:
        """Ask the base, as which the model answers now, for the neighbours of edits that are new here."""
        sequences = own_answers(self._model, [probe for edit in edits for probe in edit.request.locality])
        pairs = iter(zip(sequences, readings(self._model, self._prefixes.prepare(sequences)), strict=True))
        for edit in edits:
            own = [next(pairs) for _ in edit.request.locality]
            self._own[edit.edit_id] = OwnProbes(
                sequences=tuple(sequence for sequence, _ in own), base=tuple(reading for _, reading in own)
            )

    def _successes(self, edits: Sequence[Edit]) -> dict[str, bool]:
        pairs = [(edit.request.prompt, edit.request.target_new) for edit in edits]
        found = scores(self._model, self._prefixes.prepare(_encoded(self._model, pairs)))
        return {edit.edit_id: score.is_hit for edit, score in zip(edits, found, strict=True)}

    def _edit_scores(self, added: Sequence[Edit], parent: Held) -> tuple[EditScore, ...]:
        if not added:
            return ()
        pairs = [pair for edit in added for pair in asked_pairs(edit)]
        forced = scores(self._model, self._prefixes.prepare(_encoded(self._model, pairs)))
        own = self._own_changes(added, parent)
        free = free_answers(self._model, added, num_chat=self._num_chat)
        found, start = [], 0
        for place, edit in enumerate(added):
            end = start + len(asked_pairs(edit))
            found.append(edit_score(edit, forced[start:end], own[place], free[place]))
            start = end
        return tuple(found)

    def _own_changes(self, added: Sequence[Edit], parent: Held) -> list[list[tuple[Change, Change]]]:
        """For each edit and own probe: the change from base and from parent."""
        own = [self._own[edit.edit_id] for edit in added]
        prepared = self._prefixes.prepare([sequence for probes in own for sequence in probes.sequences])
        base = [reading for probes in own for reading in probes.base]
        before = [reading for edit in added for reading in parent.own[edit.edit_id]]
        _, [from_base, from_parent] = compared(self._model, prepared, [base, before])
        pairs = iter(zip(from_base, from_parent, strict=True))
        return [[next(pairs) for _ in probes.sequences] for probes in own]

    def _asked(self, keys: Collection[str]) -> list[int]:
        """Places of the suite probes whose fact nobody edited."""
        facts = {canonical_json(json.loads(key)[1:]) for key in keys}
        return [i for i, answer in enumerate(self._baseline.suite) if not _facts_of(answer.probe) & facts]

    def _model_score(self, held: Held, asked: Sequence[int], retained: Sequence[Edit]) -> ModelScore:
        figure = self._figure(held.references, asked)
        return ModelScore(
            suite_unchanged=share(held.changes[place].is_unchanged for place in asked),
            suite_kl=_mean([held.changes[place].kl for place in asked]),
            num_suite=len(asked),
            num_suite_left_out=len(self._baseline.suite) - len(asked),
            retention=share(held.retained[edit.edit_id] for edit in retained),
            num_retained=len(retained),
            perplexity=figure.perplexity,
            accuracy=figure.accuracy,
        )

    def _figure(self, found: Sequence[Score], asked: Collection[int]) -> Figure:
        """The figure of the model's family over what is asked: text, or the suite without facts that were edited."""
        return Figure.of(self._model, chosen(self._baseline.references, found, asked))

    def _digest(self, added: Sequence[Edit], retained: Sequence[Edit], asked: Sequence[int]) -> str:
        return sha256_json(
            {
                "baseline": self._baseline.digest,
                "suite": list(asked),
                "added": [[edit.edit_id, edit.request.payload_digest] for edit in added],
                "retained": [edit.edit_id for edit in retained],
            }
        )


def asked_pairs(edit: Edit) -> list[Pair]:
    """What is asked teacher-forced of an edit: itself, its rephrases, its consequences, and what it replaced."""
    request = edit.request
    pairs = [(request.prompt, request.target_new)]
    pairs += [(rephrase, request.target_new) for rephrase in request.rephrases]
    pairs += [(probe.prompt, probe.target) for probe in request.portability if probe.target is not None]
    return pairs + ([(request.prompt, request.target_true)] if request.target_true else [])


def edit_score(
    edit: Edit,
    forced: Sequence[Score],
    own: Sequence[tuple[Change, Change]],
    free: tuple[str, bool, bool | None],
) -> EditScore:
    """One edit's record from what was measured.

    Args:
        edit: the edit.
        forced: scores of `asked_pairs`, in order.
        own: for each own locality probe the change from base and from parent.
        free: what raw generation said, whether it confirms the edit, and whether the answer in a chat does.
    """
    num_rephrases, num_portability = len(edit.request.rephrases), len(edit.request.portability)
    after = 1 + num_rephrases
    return EditScore(
        edit_id=edit.edit_id,
        edit_success=forced[0].is_hit,
        free_success=free[1],
        chat_success=free[2],
        generated=free[0],
        token_fraction=forced[0].token_fraction,
        prob_new=forced[0].probability,
        prob_true=forced[-1].probability if edit.request.target_true else None,
        rephrases=tuple(score.is_hit for score in forced[1:after]),
        locality=tuple(from_parent.is_unchanged for _, from_parent in own),
        locality_base=tuple(from_base.is_unchanged for from_base, _ in own),
        locality_kl=_mean([from_parent.kl for _, from_parent in own]),
        portability=tuple(score.is_hit for score in forced[after : after + num_portability]),
    )


def score_pairs(model: EditableModel, pairs: Sequence[Pair]) -> list[Score]:
    """Teacher-forced scores of prompts and targets, in order."""
    return scores(model, [(places, batch) for places, batch in model.chunked(_encoded(model, pairs))])


def negative_shift(model: EditableModel, weights: WeightStore) -> Mapping[str, tuple[torch.Tensor, torch.Tensor]]:
    """A side branch that takes the whole shift off again: with it, edited weights answer as the base."""
    branches = {}
    for param in model.inner:
        shift_IO = weights.shift(param.name)
        if bool(shift_IO.any()):
            identity_OO = torch.eye(param.out_features, dtype=shift_IO.dtype, device=shift_IO.device)
            branches[param.name] = (-shift_IO, identity_OO)
    return branches


def _encoded(model: EditableModel, pairs: Sequence[Pair]) -> list[Encoded]:
    return [model.encode_pair(prompt, target) for prompt, target in pairs]


def _facts_of(probe: SuiteProbe) -> set[str]:
    keys = {canonical_json([normalised(probe.probe.prompt)])}
    if probe.subject and probe.relation:
        keys.add(canonical_json([normalised(probe.subject), normalised(probe.relation)]))
    return keys


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
