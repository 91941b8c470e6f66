"""What gates judge: fills the records of `pipeline.domain.measurements` for a candidate, its parent and the base.

A `Scorer` lives with a loaded lineage. What it asked the parent is kept until the parent changes, so bisecting a
batch asks the parent once; what it asked the base is kept longer. What a candidate and its parent say freely is asked
last, all of it in one round. The base's answers are read from the parent with its whole shift taken off again in a side
branch, and the parent's words from the candidate with its change taken off, so the weights are never written.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from editors.data.datasets import facts_of
from editors.measure.edit_measurer import Changes, EditMeasurer
from editors.measure.losses import Reading
from editors.measure.other_subjects import Others, OtherSubjects
from editors.measure.quality import Figure, chosen, prepared_quality
from editors.measure.questions import EditMeasurement, EditQuestions, PromptMeasurement
from editors.measure.reference import Reference
from editors.measure.rounds import Round, Talk
from editors.measure.same_subject import with_same_subject
from editors.measure.scoring import Change, Score, compared, prepare, scores
from editors.measure.shown_answers import NUM_SHOWN, Probed, Said, moved, said_before, with_answers, wordings_said
from editors.measure.undoing import negative_delta, negative_shift
from editors.models.families import EditableModel, Pair
from editors.models.hooks import side_branch
from editors.weights.deltas import WeightDelta, WeightStore
from pipeline.domain.edits import Edit
from pipeline.domain.formats.canonical import canonical_json, sha256_json
from pipeline.domain.measurements import EditScore, Measurements, ModelScore, Moved, OtherSubjectScore, mean, share
from pipeline.domain.rank_api import tell
from pipeline.domain.wordings import can_be_asked

NUM_CHAT = 32
"""Edits of a batch, of those that can be asked in a chat, that are: all of a batch of the default size. A reply takes
32 tokens, one after another, for one edit as for many."""
MAX_KNOWN = 4096
"""Edits whose neighbours' base answers are remembered before all are forgotten."""


@dataclass(kw_only=True, slots=True)
class Observed:
    """What one set of weights says: the base's, a parent's or a candidate's."""

    suite: list[Reading]
    """Readings of the suite."""
    changes: list[Change]
    """How the suite differs from the base."""
    quality: list[Score]
    """Scores of what drawdown is measured on."""
    neighbours: dict[str, tuple[Reading, ...]] = field(default_factory=dict)
    """Readings of an edit's own locality probes, by edit id."""
    retained: dict[str, bool] = field(default_factory=dict)
    """Success of older edits, by edit id."""
    said: dict[str, Said] = field(default_factory=dict)
    """What is said to edits that are shown, by edit id."""
    targets: dict[str, float] = field(default_factory=dict)
    """Probabilities of edits' targets, by edit id."""


class Scorer:
    """Measures candidates of one lineage against its parent and its base.

    Args:
        model: holds the parent when asked to observe it, the candidate when asked to measure.
        weights: the model's edited weights.
        reference: what the base answers, and its quality at large.
        rephrase_rows: how many of an edit's own rephrases are edit rows at most; see `EditRequest.row_rephrases`.
        num_chat: how many edits of a batch, of those that can be, are asked in a chat; all if None.
    """

    def __init__(
        self,
        model: EditableModel,
        weights: WeightStore,
        reference: Reference,
        *,
        rephrase_rows: int = 0,
        num_chat: int | None = NUM_CHAT,
    ) -> None:
        self._model, self._weights, self._reference = model, weights, reference
        self._rephrase_rows, self._num_chat = rephrase_rows, num_chat
        self._suite = prepare(model, [answer.sequence for answer in reference.suite])
        self._quality = prepared_quality(model, reference.quality_probes)
        self._parent: Observed | None = None
        self._candidate: Observed | None = None
        self._measurer = EditMeasurer(model)
        self._others = OtherSubjects(model)
        self._base = Observed(
            suite=[answer.reading for answer in reference.suite],
            changes=[Change(is_unchanged=True, kl=0.0) for _ in reference.suite],
            quality=list(reference.scores),
        )

    @property
    def suite_facts(self) -> set[str]:
        """The facts that the suite asks for: conflict keys as canonical JSON, without the lineage's name."""
        return set[str]().union(*(facts_of(answer.probe) for answer in self._reference.suite))

    def reset(self) -> None:
        """Forget the parent, because other weights have been loaded."""
        self._parent = self._candidate = None
        self._others.reset()

    def keep(self) -> None:
        """Take the candidate that was measured last for the parent from now on."""
        self._parent, self._candidate = self._candidate, None
        self._others.reset()

    def observe_parent(self, added: Sequence[Edit], retained: Sequence[Edit], others: Others | None = None) -> None:
        """Ask the parent, whose weights are loaded now, all that a candidate of these edits is compared with."""
        parent = self._parent or self._observed()[0]
        self._parent = parent
        if len(self._measurer) > MAX_KNOWN:
            self._measurer.forget()
            parent.neighbours.clear()
        self._observe_neighbours(parent, [edit for edit in added if edit.edit_id not in parent.neighbours])
        self._observe_targets(parent, added)
        parent.retained |= self._successes([edit for edit in retained if edit.edit_id not in parent.retained])
        self._others.observe_parent(others or {})

    def measure(
        self,
        *,
        added: Sequence[Edit],
        retained: Sequence[Edit],
        remade: Sequence[Edit] = (),
        gone_keys: Collection[str],
        delta: WeightDelta,
        others: Others | None = None,
    ) -> Measurements:
        """Measure the candidate, whose weights are loaded now; `observe_parent` has seen the same edits.

        Args:
            added: edits of the batch.
            retained: older active edits.
            remade: those that were made again.
            gone_keys: conflict keys of edited facts, whose suite probes are left out.
            delta: what was applied to the parent.
            others: what is asked about other subjects than the edits' own, as of the parent.
        """
        parent = self._parent
        assert parent is not None, "observe_parent comes before measure"
        tell("measuring what must stay")
        candidate, [from_parent] = self._observed(parent)
        self._candidate = candidate
        tell("measuring what was edited")
        candidate.retained = self._successes(retained)
        asked = self._asked({*gone_keys, *(edit.request.conflict_key for edit in added)})
        suite = [(self._reference.suite[place], from_parent[place]) for place in asked]
        suite_moved = [(one.probe.probe.prompt, one.sequence, to.kl) for one, to in suite if not to.is_unchanged]
        edits, what_moved = self._edit_scores(added, parent, suite_moved, others or {}, delta)
        edits = with_same_subject(edits, added, remade, before=parent.retained, after=candidate.retained)
        candidate.retained |= {score.edit_id: score.edit_success for score in edits}
        return Measurements(
            edits=edits,
            moved=what_moved,
            candidate=self._model_score(candidate, asked, retained),
            parent=self._model_score(parent, asked, retained),
            base=self._model_score(self._base, asked, ()),
            kl_from_parent=mean(from_parent[place].kl for place in asked),
            change_norm=max(norm / self._weights.base_norm(name) for name, norm in delta.norms.items()),
            probe_set_digest=self._digest(added, retained, asked, others or {}),
        )

    def _observed(self, *parents: Observed) -> tuple[Observed, list[list[Change]]]:
        """Ask the model as it is now: its suite and its quality, and how the suite differs from each parent."""
        earlier = [observed.suite for observed in (self._base, *parents)]
        suite, [changes, *from_parents] = compared(self._model, self._suite, earlier)
        return Observed(suite=suite, changes=changes, quality=scores(self._model, self._quality)), from_parents

    def _observe_neighbours(self, parent: Observed, edits: Sequence[Edit]) -> None:
        if not edits:  # as bisecting has it: ranks would gather every shift for nothing
            return
        negative = negative_shift(self._model, self._weights)
        with side_branch(self._model.module, negative):
            self._measurer.observe_base(edits)
        # Without a shift the parent is the base, which has just been asked.
        parent.neighbours |= self._measurer.readings(edits) if negative else self._measurer.base_readings(edits)

    def _observe_targets(self, parent: Observed, edits: Sequence[Edit]) -> None:
        """Ask the parent how probable the targets are, which people compare with the candidate's."""
        new = [edit for edit in edits if edit.edit_id not in parent.targets]
        pairs: dict[str, Pair] = {edit.edit_id: (edit.request.own_prompt, edit.request.target_new) for edit in new}
        if pairs:
            found = self._measurer.scores(list(pairs.values()))
            parent.targets |= {edit_id: found[pair].probability for edit_id, pair in pairs.items()}

    def _successes(self, edits: Sequence[Edit]) -> dict[str, bool]:
        pairs: dict[str, Pair] = {edit.edit_id: (edit.request.own_prompt, edit.request.target_new) for edit in edits}
        found = self._measurer.scores(list(pairs.values()))
        return {edit_id: found[pair].is_hit for edit_id, pair in pairs.items()}

    def _edit_scores(
        self, added: Sequence[Edit], parent: Observed, suite_moved: Sequence[Probed], others: Others, delta: WeightDelta
    ) -> tuple[tuple[EditScore, ...], tuple[Moved, ...]]:
        """Return the scores of edits, and what is said now to probes of the suite that moved; all said in one round.

        Words of the parent that are not known yet are said in the same one.
        """
        asking = [edit.edit_id for edit in added if can_be_asked(edit.request)][: self._num_chat]
        questions = [
            questions_of(edit, rephrase_rows=self._rephrase_rows, replies=edit.edit_id in asking) for edit in added
        ]
        changes = self._measurer.changes(added, parent.neighbours)
        shown = added[:NUM_SHOWN]
        together = Round(self._model, undone=negative_delta(self._model, delta))
        found = together.take(self._measurer.talk(questions, changes))
        of_suite = together.take(moved(self._model, suite_moved))
        own_moved = together.take(self._moved(added, changes))
        before = together.take(said_before(self._model, [edit for edit in shown if edit.edit_id not in parent.said]))
        said = together.take(wordings_said(self._model, shown))
        of_others = together.take(self._others.talk(added, others))
        together.answer()
        parent.said |= before.value
        of_each = (
            with_answers(
                replace(
                    edit_score(one, names_subject=edit.request.names_subject),
                    moved=of_edit,
                    other_subjects=of_others.value.get(edit.edit_id, ()),
                ),
                edit,
                before=parent.said.get(edit.edit_id, Said()),
                after=said.value.get(edit.edit_id, Said()),
                prob_before=parent.targets.get(edit.edit_id),
            )
            for one, edit, of_edit in zip(found.value, added, own_moved.value, strict=True)
        )
        return tuple(of_each), of_suite.value

    def _moved(self, edits: Sequence[Edit], changes: Changes) -> Talk[list[tuple[Moved, ...]]]:
        """Return, for each edit, its own locality probes that answer otherwise than on the parent; the first few."""
        probes, places = [], []
        for place, edit in enumerate(edits):
            of_edit = zip(edit.request.locality, self._measurer.base_answers(edit), changes[edit.edit_id], strict=True)
            for probe, answer, (_, from_parent) in of_edit:
                if from_parent is not None and not from_parent.is_unchanged:
                    probes.append((probe.prompt, answer, from_parent.kl))
                    places.append(place)
        says = yield from moved(self._model, probes)
        said = list(zip(places, says, strict=False))
        return [tuple(one for of, one in said if of == place) for place in range(len(edits))]

    def _asked(self, keys: Collection[str]) -> list[int]:
        """Return the places of the suite probes whose fact nobody edited."""
        facts = {canonical_json(json.loads(key)[1:]) for key in keys}
        return [i for i, answer in enumerate(self._reference.suite) if not facts_of(answer.probe) & facts]

    def _model_score(self, observed: Observed, asked: Sequence[int], retained: Sequence[Edit]) -> ModelScore:
        # Quality is that of plain text, or of the suite without facts that were edited, as the family has it.
        figure = Figure.of(self._model, chosen(self._reference.quality_probes, observed.quality, asked))
        return ModelScore(
            suite_unchanged=share(observed.changes[place].is_unchanged for place in asked),
            suite_kl=mean(observed.changes[place].kl for place in asked),
            num_suite=len(asked),
            num_suite_left_out=len(self._reference.suite) - len(asked),
            retention=share(observed.retained[edit.edit_id] for edit in retained),
            num_retained=len(retained),
            perplexity=figure.perplexity,
            accuracy=figure.accuracy,
        )

    def _digest(self, added: Sequence[Edit], retained: Sequence[Edit], asked: Sequence[int], others: Others) -> str:
        return sha256_json(
            {
                "baseline": self._reference.digest,
                "suite": list(asked),
                "added": [[edit.edit_id, edit.request.payload_digest] for edit in added],
                "retained": [edit.edit_id for edit in retained],
                "other_subjects": [[edit_id, [one.name for one in asked]] for edit_id, asked in others.items()],
            }
        )


def questions_of(edit: Edit, *, rephrase_rows: int = 0, replies: bool = True) -> EditQuestions:
    """Return what gates ask of an edit: every rephrase, its own prompt freely and against what was true, its question.

    Args:
        edit: the edit.
        rephrase_rows: how many of its rephrases are edit rows at most: these are no probes of generalization.
        replies: whether its question is asked in a chat.
    """
    return EditQuestions(
        edit=edit,
        rephrases=edit.request.unseen_rephrases(rephrase_rows),
        row_rephrases=edit.request.row_rephrases(rephrase_rows),
        compared="prompt",
        free="prompt",
        in_chat=False,
        replies=replies,
    )


def edit_score(
    found: EditMeasurement,
    *,
    names_subject: bool | None = None,
    other_subjects: tuple[OtherSubjectScore, ...] = (),
) -> EditScore:
    """Return the record that gates judge, from what was measured of an edit and compared with its parent.

    Args:
        found: what was measured.
        names_subject: whether the edit's own prompt names its subject; None where there is none.
        other_subjects: what became of its prompt about other subjects.
    """
    own, free = found.own, found.own.free
    from_parent = [neighbour.from_parent for neighbour in found.neighbours if neighbour.from_parent is not None]
    return EditScore(
        edit_id=found.edit_id,
        edit_success=own.score.is_hit,
        free_success=free.is_success if free else None,
        chat_success=found.reply.is_right if found.reply else None,
        generated=free.text if free else "",
        reply=found.reply.text if found.reply else "",
        token_fraction=own.score.token_fraction,
        prob_new=own.score.probability,
        prob_true=own.true.probability if own.true else None,
        same_context=_hits(found.same_context),
        other_context=_hits(found.other_context),
        unnamed=_hits(found.unnamed),
        row_rephrases=_hits(found.row_rephrases),
        locality=tuple(change.is_unchanged for change in from_parent),
        locality_base=tuple(neighbour.from_base.is_unchanged for neighbour in found.neighbours),
        locality_kl=mean(change.kl for change in from_parent),
        other_subjects=other_subjects,
        portability=_hits(found.portability),
        names_subject=names_subject,
    )


def _hits(asked: Sequence[PromptMeasurement]) -> tuple[bool, ...]:
    return tuple(one.score.is_hit for one in asked)
