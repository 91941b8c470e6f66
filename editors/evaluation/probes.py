"""Measures edits on a model: fills `edit_figures`, and asks the base for what they are compared with.

What the base says is asked once, while its weights are loaded. Knows no ledger, no solver and no order of edits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from editors.evaluation.edit_metrics import EditFigures, Followed, Neighbour
from editors.evaluation.fluency import fluency
from editors.measure.free_answers import free_answers
from editors.measure.losses import Reading
from editors.measure.prefix_cache import PrefixCache
from editors.measure.quality import Figure, prepared_references, references
from editors.measure.reference import own_answers
from editors.measure.scoring import Change, Score, compared, readings, scores
from editors.models.families import EditableModel, Pair
from editors.models.tokens import Encoded
from pipeline.domain.batches import stratified_sample
from pipeline.domain.edits import Edit, Probe

T = TypeVar("T")

Said = tuple[bool, bool | None]
"""Whether a free answer confirms the target: raw, and in the chat template."""

NUM_WINDOWS = 24
"""Windows of plain text (128 tokens each) that drawdown is measured on, where it is measured on text."""
NUM_REFERENCES = 256
"""Neighbours with given answers that it is measured on elsewhere."""
CACHE_BYTES = 256 * 2**20
"""Most memory for what enters the first edited block of the sequences that are asked."""
AT_ONCE = 512
"""Sequences that are prepared at once."""
FREE_AT_ONCE = 64
"""Prompts that are continued at once."""
NUM_CONTINUED, CONTINUED_TOKENS = 32, 64
"""Edits whose prompts are continued for fluency, and how far."""


class EditProbes:
    """What is asked of edits, with the base's answers; made while the base's weights are loaded.

    Args:
        model: the base now, edited from it later.
        edits: every edit that may be asked about.
        text: plain text for drawdown.
        suite: probes with targets for the drawdown of a family that has no use for text; the edits' own if None.
        num_rephrases: most unseen rephrases of an edit that are asked.
        num_rows: most rephrases of an edit that an editor uses as edit rows; these are not asked.
        seed: of the sample whose prompts are continued for fluency.
    """

    def __init__(
        self,
        model: EditableModel,
        edits: Sequence[Edit],
        text: str,
        *,
        suite: Sequence[Probe] | None = None,
        num_rephrases: int = 1,
        num_rows: int = 0,
        seed: int = 0,
    ) -> None:
        self._model, self._num_rephrases, self._num_rows = model, num_rephrases, num_rows
        self._prefixes = PrefixCache(model, max_bytes=CACHE_BYTES)
        if suite is None:
            suite = list(dict.fromkeys(probe for edit in edits for probe in edit.request.locality))[:NUM_REFERENCES]
        self._references = prepared_references(model, references(model, suite, text, num_windows=NUM_WINDOWS))
        self.figure = Figure.of(model, scores(model, self._references))
        self._neighbours: dict[str, tuple[tuple[Encoded, Reading], ...]] = {}
        for part in _parts(edits, AT_ONCE):
            self._ask_base(part)
        self.continued = stratified_sample(edits, seed=f"{seed} fluency", size=NUM_CONTINUED)
        self.fluency = self.fluency_of(self.continued)

    def ask(
        self, edits: Sequence[Edit], *, preferring: Collection[str] = (), free: Collection[str] = ()
    ) -> list[EditFigures]:
        """Ask the model as it is now.

        Args:
            edits: about which.
            preferring: ids of the edits whose targets are also compared with the true ones.
            free: ids of the edits that are also asked freely.
        """
        said = self._freely([edit for edit in edits if edit.edit_id in free])
        return [
            figures
            for part in _parts(edits, AT_ONCE)
            for figures in self._figures(part, {edit.edit_id for edit in part} & set(preferring), said)
        ]

    def fluency_of(self, edits: Sequence[Edit]) -> float | None:
        """Of greedy continuations of the edits' prompts; None for a classifier, which continues nothing."""
        if self._model.task == "classifier":
            return None
        prompts = [self._model.encode_prompt(edit.request.prompt) for edit in edits]
        answers = self._model.greedy(prompts, max_new_tokens=CONTINUED_TOKENS)
        return fluency([self._model.decode(tokens) for tokens in answers])

    def drawdown(self) -> float:
        """What the model has lost at large since the base; see `editors.measure.quality`."""
        lost = Figure.of(self._model, scores(self._model, self._references)).drawdown(self.figure)
        assert lost is not None, "expected figures of the same references"
        return lost

    def _ask_base(self, edits: Sequence[Edit]) -> None:
        sequences = [
            sequence
            for part in _parts([probe for edit in edits for probe in edit.request.locality], FREE_AT_ONCE)
            for sequence in own_answers(self._model, part)
        ]
        pairs = iter(zip(sequences, readings(self._model, self._prefixes.prepare(sequences)), strict=True))
        self._neighbours |= {edit.edit_id: tuple(next(pairs) for _ in edit.request.locality) for edit in edits}

    def _figures(
        self, edits: Sequence[Edit], preferring: Collection[str], said: Mapping[str, Mapping[Pair, Said]]
    ) -> list[EditFigures]:
        pairs = [pair for edit in edits for pair in self._asked(edit)]
        pairs += [pair for edit in edits if edit.edit_id in preferring for pair in self._compared(edit)]
        found = self._forced(list(dict.fromkeys(pairs)))
        changes = self._changes(edits)
        figures = []
        for edit in edits:
            mine = _Mine(edit, found, said.get(edit.edit_id, {}), prefers=edit.edit_id in preferring)
            own, rephrased, ported = self._kinds(edit)
            figures.append(
                EditFigures(
                    edit_id=edit.edit_id,
                    own=mine.followed(own),
                    rephrases=tuple(map(mine.followed, rephrased)),
                    portability=tuple(map(mine.consequence, ported)),
                    neighbours=mine.neighbours(changes[edit.edit_id]),
                )
            )
        return figures

    def _kinds(self, edit: Edit) -> tuple[Pair, list[Pair], list[Pair]]:
        """The edit itself, its unseen rephrases, and its consequences."""
        request = edit.request
        rephrases = request.unseen_rephrases(self._num_rows)[: self._num_rephrases]
        rephrased = [(text, request.target_new) for text in rephrases]
        ported = [(probe.prompt, probe.target) for probe in request.portability if probe.target is not None]
        return (request.prompt, request.target_new), rephrased, ported

    def _asked(self, edit: Edit) -> list[Pair]:
        own, rephrased, ported = self._kinds(edit)
        return [own, *rephrased, *ported]

    def _compared(self, edit: Edit) -> list[Pair]:
        """What the targets are compared with."""
        request = edit.request
        own, rephrased, _ = self._kinds(edit)
        true = [(prompt, request.target_true) for prompt, _ in (own, *rephrased) if request.target_true is not None]
        answered = [(probe.prompt, probe.target) for probe in request.locality if probe.target is not None]
        return [*true, *answered, *((prompt, request.target_new) for prompt, _ in answered)]

    def _forced(self, pairs: Sequence[Pair]) -> dict[Pair, Score]:
        sequences = [self._model.encode_pair(prompt, target) for prompt, target in pairs]
        found = [
            score for part in _parts(sequences, AT_ONCE) for score in scores(self._model, self._prefixes.prepare(part))
        ]
        return dict(zip(pairs, found, strict=True))

    def _changes(self, edits: Sequence[Edit]) -> dict[str, tuple[Change, ...]]:
        """How the neighbours' answers differ from the base's."""
        asked = [pair for edit in edits for pair in self._neighbours[edit.edit_id]]
        prepared = self._prefixes.prepare([sequence for sequence, _ in asked])
        _, [changes] = compared(self._model, prepared, [[reading for _, reading in asked]])
        in_order = iter(changes)
        return {edit.edit_id: tuple(next(in_order) for _ in edit.request.locality) for edit in edits}

    def _freely(self, edits: Sequence[Edit]) -> dict[str, dict[Pair, Said]]:
        """Whether free answers to what is asked of each edit confirm it, raw and in the chat template."""
        asks = [(edit.edit_id, pair, _asking(edit, pair)) for edit in edits for pair in self._asked(edit)]
        said: dict[str, dict[Pair, Said]] = {edit.edit_id: {} for edit in edits}
        for part in _parts(asks, FREE_AT_ONCE):
            answers = free_answers(self._model, [asked for _, _, asked in part])
            for (edit_id, pair, _), (_, is_free, is_free_in_chat) in zip(part, answers, strict=True):
                said[edit_id][pair] = is_free, is_free_in_chat
        return said


class _Mine:
    """Puts together what was found about one edit."""

    def __init__(self, edit: Edit, found: Mapping[Pair, Score], said: Mapping[Pair, Said], *, prefers: bool) -> None:
        self._request, self._found, self._said, self._prefers = edit.request, found, said, prefers

    def followed(self, pair: Pair) -> Followed:
        """A prompt whose target replaced another."""
        true = self._request.target_true if self._prefers else None
        prefers_new = None if true is None else self._is_likelier(pair, (pair[0], true))
        return replace(self.consequence(pair), prefers_new=prefers_new)

    def consequence(self, pair: Pair) -> Followed:
        """A prompt with a target."""
        score = self._found[pair]
        is_free, is_free_in_chat = self._said.get(pair, (None, None))
        return Followed(
            is_success=score.is_hit,
            token_fraction=score.token_fraction,
            is_free=is_free,
            is_free_in_chat=is_free_in_chat,
        )

    def neighbours(self, changes: Sequence[Change]) -> tuple[Neighbour, ...]:
        """The locality probes, in order."""
        found = []
        for probe, change in zip(self._request.locality, changes, strict=True):
            true = probe.target if self._prefers else None
            new = (probe.prompt, self._request.target_new)
            prefers_true = None if true is None else self._is_likelier((probe.prompt, true), new)
            found.append(Neighbour(is_unchanged=change.is_unchanged, kl=change.kl, prefers_true=prefers_true))
        return tuple(found)

    def _is_likelier(self, pair: Pair, than: Pair) -> bool:
        return self._found[pair].mean_log_probability > self._found[than].mean_log_probability


def _asking(edit: Edit, pair: Pair) -> Edit:
    return replace(edit, request=replace(edit.request, prompt=pair[0], target_new=pair[1]))


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
