"""What is asked of one edit, and the record of what a model made of it.

Figures are definitions of MEND, ROME and EasyEdit; `editors.evaluation.metrics` has the glossary.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from editors.measure.free_answers import FreeAnswer
from editors.measure.scoring import Change, Score
from editors.models.families import Pair
from pipeline.domain.edits import Edit
from pipeline.domain.prompts import ChatPrompt
from pipeline.domain.wordings import Wording, can_be_asked, wording_of

Extent = Literal["nothing", "prompt", "all"]
"""How much of an edit something is asked of: nothing, the edit's own prompt, or everything with a target."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EditQuestions:
    """What is asked of one edit; its locality and portability probes always are."""

    edit: Edit
    """The edit that the model is asked about."""
    rephrases: tuple[str, ...]
    """The rephrases that no editor has seen, after which its target should follow too."""
    row_rephrases: tuple[str, ...] = ()
    """The rephrases that were edit rows; what follows after them is told apart."""
    compared: Extent = "nothing"
    """After which prompts the probabilities of `target_new` and of what was true before are compared; after neighbours
    with a given answer too if all."""
    free: Extent = "nothing"
    """Which prompts are answered freely."""
    in_chat: bool = True
    """Whether the edit's own prompt, if it is answered freely, is also put into the chat template as it stands."""
    replies: bool = False
    """Whether the request's question is asked in a chat, where it can be; see `wordings.can_be_asked`."""

    @property
    def own(self) -> Pair:
        """The edit's prompt and target."""
        return self.edit.request.own_prompt, self.edit.request.target_new

    def worded(self, *wordings: Wording) -> list[Pair]:
        """Return the rephrases of some classes, each with the edit's target, in the order of the request."""
        return self._with_target(text for text in self.rephrases if wording_of(text, self.edit.request) in wordings)

    @property
    def rows(self) -> list[Pair]:
        """The rephrases that were edit rows, each with the edit's target."""
        return self._with_target(self.row_rephrases)

    @property
    def question(self) -> ChatPrompt | None:
        """What is asked in a chat; None where it is not asked, or cannot be."""
        return self.edit.request.chat_question if self.replies and can_be_asked(self.edit.request) else None

    @property
    def portability(self) -> list[Pair]:
        """The portability probes that have a target."""
        return [(probe.prompt, probe.target) for probe in self.edit.request.portability if probe.target is not None]

    @property
    def targets(self) -> list[Pair]:
        """Everything whose target should follow from the edit."""
        return [self.own, *self._with_target(self.rephrases), *self.portability]

    @property
    def answered_freely(self) -> list[Pair]:
        """What is asked by free generation."""
        return {"nothing": [], "prompt": [self.own], "all": self.targets}[self.free]

    @property
    def alternatives(self) -> list[Pair]:
        """The targets that others are compared with, and those that neighbours' given answers are."""
        request = self.edit.request
        named = self.worded(Wording.same_context, Wording.other_context)
        prompts = {"nothing": [], "prompt": [self.own], "all": [self.own, *named]}[self.compared]
        true = [(prompt, request.target_true) for prompt, _ in prompts if request.target_true is not None]
        probes = request.locality if self.compared == "all" else ()
        answered = [(probe.prompt, probe.target) for probe in probes if probe.target is not None]
        return [*true, *answered, *((prompt, request.target_new) for prompt, _ in answered)]

    def _with_target(self, texts: Iterable[str]) -> list[Pair]:
        return [(text, self.edit.request.target_new) for text in texts]


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptMeasurement:
    """How a model takes to a target after one prompt."""

    score: Score
    """The target's score."""
    true: Score | None = None
    """The score of what was true before the edit; None where there is none, or it was not asked."""
    free: FreeAnswer | None = None
    """What the model says freely; None where it was not asked."""

    @property
    def prefers_new(self) -> bool | None:
        """Whether P(new) > P(true), geometric means over the tokens; None where they were not compared."""
        return None if self.true is None else self.score.is_likelier_than(self.true)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatReply:
    """What a model replies to a request's question."""

    question: str
    """What was asked: the last turn of the chat."""
    text: str
    """The reply, up to 32 tokens."""
    is_right: bool
    """Whether it says the new answer and not the old one; see `wordings.is_right`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NeighbourMeasurement:
    """What became of one locality probe, along the base's own answer to it."""

    from_base: Change
    """How the model differs from the base."""
    from_parent: Change | None = None
    """How it differs from what it was edited from; None where that is not told."""
    prefers_true: bool | None = None
    """Whether P(its given answer) > P(the edit's target); None where none is given, or they were not compared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EditMeasurement:
    """Everything that was measured of one edit."""

    edit_id: str
    """The edit's id."""
    own: PromptMeasurement
    """After its own prompt."""
    same_context: tuple[PromptMeasurement, ...] = ()
    """After each unseen rephrase that names the subject behind the same text as the prompt."""
    other_context: tuple[PromptMeasurement, ...] = ()
    """After each unseen rephrase that names the subject behind other text."""
    unnamed: tuple[PromptMeasurement, ...] = ()
    """After each unseen rephrase that does not name the subject."""
    row_rephrases: tuple[PromptMeasurement, ...] = ()
    """After each rephrase that was an edit row."""
    reply: ChatReply | None = None
    """The reply to the request's question in a chat; None where it has none, it was not asked, or the model has no chat
    template."""
    portability: tuple[PromptMeasurement, ...] = ()
    """After each portability probe that has a target."""
    neighbours: tuple[NeighbourMeasurement, ...] = ()
    """What was measured at each locality probe."""

    @property
    def rephrases(self) -> tuple[PromptMeasurement, ...]:
        """After each unseen rephrase that names the subject."""
        return *self.same_context, *self.other_context
