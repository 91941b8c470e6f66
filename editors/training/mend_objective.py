"""The objective that MEND was published with: single edits, each made by MEND's own sum and judged by itself.

    loss = c_edit NLL(target | rephrase; edited) + c_loc KL(before || after on locality text)   (MEND, equations 4a, 4b)

A step takes a batch of single edits, each in a model of its own: the edits act as side branches, and the model's
weights are never written. No gradient flows through the keys and gradients that the network gets. The KL is over a
neighbour, where an edit brings some, and a line of plain text.

Legend: B sequences, E edits, T tokens of one edit, or of all of them in an update, N target tokens, V vocabulary,
I in_features, O out_features.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from editors.mend.transform import MendTransform
from editors.methods.mend_sum import token_pairs, update
from editors.methods.pairs import Pairs
from editors.models.families import EditableModel, TargetBatch
from editors.models.hooks import Branch
from editors.models.tokens import Encoded
from editors.training.examples import Example, Examples, Reader
from editors.training.objective import Deck, Losses, Objective, summed_gradients
from editors.training.questions import Kind, Question, judge, validation_figures


@dataclass(frozen=True, kw_only=True, slots=True)
class MendObjectiveSettings:
    """Constants of the objective; the weights of the losses and the number of edits a step are the paper's."""

    c_edit: float = 0.1
    """Weight of the target's loss behind a rephrase."""
    c_loc: float = 1.0
    """Weight of the divergence on what has to stay."""
    batch: int = 10
    """Single edits in a step."""
    network_lr: float = 1e-4
    """Adam's learning rate of the network; the paper's 1e-6 is for ten times as many steps as are made here."""
    rate_lr: float = 1e-2
    """Adam's learning rate of the logarithms of the transform's rates."""
    first_step: float = 0.02
    """Length of a token's shift before any step, in mean key norms."""
    num_calibration: int = 64
    """How many edits set the first statistics and rates."""
    cache_bytes: int = 512 * 2**20
    """Most memory for what enters the first edited block, bytes."""
    disk_bytes: int = 4 * 2**30
    """Most disk for what memory has no room for, bytes."""
    seed: int = 0
    """Seed of the order of the edits."""


REPHRASE = Kind(right_name="generalization", loss_name="edit_nll", is_target=True)
EDIT = Kind(right_name="edit_success", loss_name=None, is_target=True)
NEIGHBOUR = Kind(right_name="locality_unchanged", loss_name="locality_kl", is_target=False)
TEXT = Kind(right_name="text_unchanged", loss_name="locality_kl", is_target=False)


class MendObjective(Objective):
    """The objective that this module describes.

    Args:
        model: the base.
        transform: what is trained.
        examples: edits and text.
        settings: constants of the objective.
    """

    def __init__(
        self, model: EditableModel, transform: MendTransform, examples: Examples, settings: MendObjectiveSettings
    ) -> None:
        super().__init__(model, transform, network_lr=settings.network_lr, rate_lr=settings.rate_lr)
        self._examples, self._settings = examples, settings
        self._deck = Deck(len(examples.training), batch=settings.batch, seed=settings.seed)
        self._reader = Reader(model, max_bytes=settings.cache_bytes, disk_bytes=settings.disk_bytes)

    def begin(self) -> None:
        """Set statistics and rates from the first edits."""
        pairs = self._pairs(self._examples.training[: self._settings.num_calibration])
        self._observe(pairs.u_TI, pairs.delta_TO)
        self._transform.initial_rates(pairs.u_TI, pairs.delta_TO, step=self._settings.first_step)

    def episode(self, step: int, rng: random.Random) -> Losses:
        """Return the losses of a batch of single edits.

        The questions' gradients are summed up in the updates first, and go through the network in one piece.
        """
        examples = [self._examples.training[place] for place in self._deck.places(step)]
        pairs = self._pairs(examples)
        self._observe(pairs.u_TI, pairs.delta_TO)
        updates = self._updates(pairs)
        leaves = {name: _leaves(pair) for name, pair in updates.items()}
        questions = [one for edit, example in enumerate(examples) for one in self._drawn(edit, example, rng)]
        figures = self._judged(questions, leaves, pairs, len(examples))
        gradients = summed_gradients(self._model.comm, _by_side(leaves))
        values = _by_side(updates)
        # d loss / d parameters = sum of (d loss / d updates) * (d updates / d parameters)
        total = torch.stack([(gradient * values[side]).sum() for side, gradient in gradients.items()]).sum()
        return Losses(total=total, parts=figures, num_edits=len(examples))

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return figures on the first rephrase and neighbour of each held-out edit; the score is minus the loss."""
        found = []
        size, held_out, text = self._settings.batch, self._examples.held_out, self._examples.text
        for start in range(0, len(held_out), size):
            examples = held_out[start : start + size]
            questions = []
            for edit, example in enumerate(examples):
                line = text[(start + edit) % len(text)] if text else None
                neighbour = next(iter(example.locality), None)
                questions += self._questions(edit, example.rephrases[0], neighbour, line)
                questions.append(Question(edit=edit, sequence=example.edit, kind=EDIT))
            pairs = self._pairs(examples)
            found.append((self._judged(questions, self._updates(pairs), pairs, len(examples)), len(examples)))
        return validation_figures(found)

    def _pairs(self, examples: Sequence[Example]) -> Pairs:
        return token_pairs(self._model, self._reader.prepare([example.edit for example in examples]))

    def _updates(self, pairs: Pairs) -> dict[str, Branch]:
        """Return the update of all tokens by inner parameter: F (I x T) and D (T x O)."""
        return {name: update(self._transform, name, u, pairs.delta_TO[name]) for name, u in pairs.u_TI.items()}

    def _drawn(self, edit: int, example: Example, rng: random.Random) -> list[Question]:
        neighbour = rng.choice(example.locality) if example.locality else None
        line = rng.choice(self._examples.text) if self._examples.text else None
        return self._questions(edit, rng.choice(example.rephrases), neighbour, line)

    def _questions(
        self, edit: int, rephrase: Encoded, neighbour: Encoded | None, line: Encoded | None
    ) -> list[Question]:
        """Return what one edit is asked; what has to stay shares the weight `c_loc`."""
        kept = [(kind, one) for kind, one in ((NEIGHBOUR, neighbour), (TEXT, line)) if one is not None]
        asked = [Question(edit=edit, sequence=rephrase, kind=REPHRASE, weight=self._settings.c_edit)]
        return asked + [
            Question(edit=edit, sequence=sequence, kind=kind, weight=self._settings.c_loc / len(kept))
            for kind, sequence in kept
        ]

    def _judged(
        self, questions: Sequence[Question], updates: Mapping[str, Branch], pairs: Pairs, num_edits: int
    ) -> dict[str, float]:
        """Return figures over some edits, each in a model of its own."""

        def branches_of(places: Sequence[int], batch: TargetBatch) -> dict[str, Branch]:
            of_rows = [questions[place].edit for place in places] or [0] * batch.num_rows
            return _of_rows(updates, pairs, torch.tensor(of_rows, device=self._model.device))

        # A reading takes all ranks, so they have to ask in one order: that of the questions, not that of a set.
        kept = [question.sequence for question in questions if not question.kind.is_target]
        before = {sequence: self._reader.reading(sequence) for sequence in kept}
        return judge(self._model, self._reader.prepare, questions, before, branches_of, num_edits=num_edits)


def _by_side(pairs: Mapping[str, Branch]) -> dict[str, Tensor]:
    """Return both factors of each inner parameter under names of their own."""
    return {f"{name}/{side}": factor for name, pair in pairs.items() for side, factor in zip("FD", pair, strict=True)}


def _leaves(pair: Branch) -> Branch:
    return pair[0].detach().requires_grad_(), pair[1].detach().requires_grad_()


def _of_rows(updates: Mapping[str, Branch], pairs: Pairs, edit_B: Tensor) -> dict[str, Branch]:
    """Return the update of each row's own edit, B x I x T and B x T x O, with zeros where an edit has fewer tokens."""
    found = {}
    for name, (left_IT, right_TO) in updates.items():
        # E x T places of each edit's tokens; the padding names one row past the last, which is all zeros.
        index_ET = torch.nn.utils.rnn.pad_sequence(
            [torch.arange(rows.start, rows.stop, device=edit_B.device) for rows in pairs.slices(name)],
            batch_first=True,
            padding_value=len(right_TO),
        )
        index_BT = index_ET[edit_B]
        left_BTI = pad(left_IT.T, (0, 0, 0, 1))[index_BT]
        found[name] = (left_BTI.transpose(1, 2), pad(right_TO, (0, 0, 0, 1))[index_BT])
    return found
