"""What an evaluation asks a model: its edits through `EditMeasurer`, drawdown and fluency.

What the base says is asked once, while its weights are loaded; every editor of the same weights is compared with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from copy import copy

from editors.evaluation.metrics import fluency
from editors.measure.edit_measurer import EditMeasurer
from editors.measure.quality import Figure, prepared_quality, quality_probes
from editors.measure.questions import EditMeasurement, EditQuestions
from editors.measure.scoring import scores
from editors.models.families import EditableModel
from pipeline.domain.batches import stratified_sample
from pipeline.domain.edits import Edit, EditRequest, Probe
from pipeline.domain.wordings import Wording, wording_of

MOST_REPHRASES: Mapping[Wording, int] = {Wording.same_context: 2, Wording.other_context: 3, Wording.unnamed: 3}
"""Most unseen rephrases of an edit that are asked, by class: of the same context there are many that hardly differ."""
NUM_WINDOWS = 24
"""Windows of plain text (128 tokens each) that drawdown is measured on, where it is measured on text."""
NUM_NEIGHBOURS = 256
"""Neighbours with given answers that it is measured on elsewhere, if no suite is given."""
CACHE_BYTES = 256 * 2**20
"""Most memory for what enters the first edited block of the sequences that are asked."""
NUM_CONTINUED, CONTINUED_TOKENS = 32, 64
"""Edits whose prompts are continued for fluency, and how far."""


class EditProbes:
    """What is asked of edits, with the base's answers; made while the base's weights are loaded.

    Args:
        model: the base now, edited from it later.
        edits: every edit that may be asked about.
        text: plain text for drawdown.
        suite: probes with targets for the drawdown of a family that has no use for text; the edits' own if None.
        most_rephrases: most unseen rephrases of an edit that are asked, by class.
        num_rows: most rephrases of an edit that an editor uses as edit rows; these are not asked.
        seed: of the sample whose prompts are continued for fluency.

    Attributes:
        figure: the base's quality at large.
        continued: the edits whose prompts are continued for fluency.
        fluency: the base's, bits.
    """

    def __init__(
        self,
        model: EditableModel,
        edits: Sequence[Edit],
        text: str,
        *,
        suite: Sequence[Probe] | None = None,
        most_rephrases: Mapping[Wording, int] = MOST_REPHRASES,
        num_rows: int = 0,
        seed: int = 0,
    ) -> None:
        self._model, self._most_rephrases, self._num_rows = model, most_rephrases, num_rows
        self._edits = {edit.edit_id: edit for edit in edits}
        if suite is None:
            suite = list(dict.fromkeys(probe for edit in edits for probe in edit.request.locality))[:NUM_NEIGHBOURS]
        self._asked_at_large = quality_probes(model, suite, text, num_windows=NUM_WINDOWS)
        self._quality = prepared_quality(model, self._asked_at_large)
        self.figure = self._figure_now()
        self._measurer = EditMeasurer(model, cache_bytes=CACHE_BYTES)
        self._measurer.observe_base(edits)
        self.continued = stratified_sample(edits, seed=f"{seed} fluency", size=NUM_CONTINUED)
        self.fluency = self.fluency_of(self.continued)

    def of(self, model: EditableModel) -> EditProbes:
        """Return the same questions to another model of the base, with what the base has said to them already."""
        asked = copy(self)
        asked._model, asked._measurer = model, self._measurer.of(model, cache_bytes=CACHE_BYTES)
        asked._quality = prepared_quality(model, self._asked_at_large)
        return asked

    def ask(
        self,
        edits: Sequence[Edit],
        *,
        preferring: Collection[str] = (),
        free: Collection[str] = (),
        in_chat: Collection[str] | None = None,
    ) -> list[EditMeasurement]:
        """Return what the model makes of edits now.

        Args:
            edits: the edits, out of those that were given at first; what is asked is as it stood there.
            preferring: ids of the edits whose targets are also compared with the true ones.
            free: ids of the edits that are also asked freely.
            in_chat: ids of the edits whose question is asked in a chat; those of `free` if None.
        """
        in_chat = free if in_chat is None else in_chat
        return self._measurer.measure(
            [
                EditQuestions(
                    edit=edit,
                    rephrases=self._rephrases(edit.request),
                    row_rephrases=edit.request.row_rephrases(self._num_rows),
                    compared="all" if edit.edit_id in preferring else "nothing",
                    free="all" if edit.edit_id in free else "nothing",
                    replies=edit.edit_id in in_chat,
                )
                for edit in (self._edits[edit.edit_id] for edit in edits)
            ]
        )

    def _rephrases(self, request: EditRequest) -> tuple[str, ...]:
        """Return the first unseen rephrases of each class, in the order of the request."""
        seen: Counter[Wording] = Counter()
        chosen = []
        for text in request.unseen_rephrases(self._num_rows):
            wording = wording_of(text, request)
            seen[wording] += 1
            chosen += [text] if seen[wording] <= self._most_rephrases[wording] else []
        return tuple(chosen)

    def fluency_of(self, edits: Sequence[Edit]) -> float | None:
        """Return the fluency of greedy continuations of the edits' prompts; None for a classifier."""
        if self._model.task == "classifier":
            return None
        prompts = [self._model.encode_prompt(edit.request.own_prompt) for edit in edits]
        answers = self._model.greedy(prompts, max_new_tokens=CONTINUED_TOKENS)
        return fluency([self._model.decode(tokens) for tokens in answers])

    def drawdown(self) -> float:
        """Return what the model has lost at large since the base; see `editors.measure.quality`."""
        lost = self._figure_now().drawdown(self.figure)
        assert lost is not None, "expected figures of the same probes"
        return lost

    def _figure_now(self) -> Figure:
        return Figure.of(self._model, scores(self._model, self._quality))
