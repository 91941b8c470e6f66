"""Knows the objective that MEND was published with: single edits, each made by the sum, each judged for itself.

    loss = c_edit NLL(target | rephrase; edited) + c_loc KL(before || after on locality text)

A step takes a batch of single edits, each in a model of its own: the edits act as side branches, the model's weights
are never written. No gradient flows through the pairs' own gradients. KL is over a neighbour, where an edit brings
some, and a line of plain text.

Legend: B sequences, E edits, T tokens of one edit, or of all of them in an update, N target tokens, V vocabulary,
I in_features, O out_features.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor
from torch.nn.functional import pad

from editors.measure.losses import Reading, divergence, rows_of
from editors.mend.transform import MendTransform
from editors.methods.mend_sum import token_pairs, update
from editors.methods.pairs import Pairs
from editors.models.comm import merged
from editors.models.families import EditableModel
from editors.models.hooks import Branch, side_branch
from editors.models.tokens import Encoded
from editors.training.examples import Example, Examples, Reader
from editors.training.objective import LOSS, SCORE, Deck, Losses, ParameterGroup, backward, summed_gradients


@dataclass(frozen=True, kw_only=True, slots=True)
class MendObjectiveSettings:
    """Constants of the objective; the weights of the losses and the batch are the paper's."""

    c_edit: float = 0.1
    """Weight of the target's loss after a rephrase."""
    c_loc: float = 1.0
    """Weight of the divergence on what has to stay."""
    batch: int = 10
    """Single edits a step."""
    network_lr: float = 1e-4
    """Adam's, of the network: the paper's 1e-6 is for ten times the steps that are made here."""
    rate_lr: float = 1e-2
    """Adam's, of the logarithm of the rates."""
    first_step: float = 0.02
    """Length of a token's first shift, in mean key norms."""
    num_calibration: int = 64
    """Edits that set the first statistics and rates."""
    cache_bytes: int = 512 * 2**20
    """Memory for what enters the first edited block."""
    disk_bytes: int = 4 * 2**30
    """Disk for what memory has no room for."""
    seed: int = 0
    """Of the order of the edits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _BatchUpdate:
    """One sequence that an edited model is asked, and what is made of its answer."""

    edit: int
    """Which edit of the step the model has."""
    sequence: Encoded
    """Prompt and target."""
    figure: str
    """What it is shown as whether every token is right."""
    is_target: bool
    """Whether the sequence's own target is right; otherwise the base's answer is."""
    weight: float
    """Its part of the edit's loss of its kind; 0 if it is only shown."""


class MendObjective:
    """See the module; an `Objective`.

    Args:
        model: the base.
        transform: what is trained.
        examples: edits and text.
        settings: constants.
    """

    def __init__(
        self, model: EditableModel, transform: MendTransform, examples: Examples, settings: MendObjectiveSettings
    ) -> None:
        self._model, self._transform, self._examples, self._settings = model, transform, examples, settings
        self._deck = Deck(len(examples.training), batch=settings.batch, seed=settings.seed)
        self._reader = Reader(model, max_bytes=settings.cache_bytes, disk_bytes=settings.disk_bytes)

    def groups(self) -> list[ParameterGroup]:
        """See `Objective`: the rates have a group of their own."""
        return [
            ParameterGroup(parameters=self._transform.network_parameters(), lr=self._settings.network_lr),
            ParameterGroup(parameters=self._transform.rate_parameters(), lr=self._settings.rate_lr),
        ]

    def begin(self) -> None:
        """See `Objective`: statistics and rates from the first edits."""
        pairs = self._pairs(self._examples.training[: self._settings.num_calibration])
        self._observe(pairs)
        self._transform.initial_rates(pairs.u_TI, pairs.delta_TO, step=self._settings.first_step)

    def episode(self, step: int, rng: random.Random) -> Losses:
        """See `Objective`: the edits' gradients are summed up in the updates, and go to the network in one piece."""
        examples = [self._examples.training[place] for place in self._deck.places(step)]
        pairs = self._pairs(examples)
        self._observe(pairs)
        updates = self._updates(pairs)
        leaves = {name: _leaves(pair) for name, pair in updates.items()}
        asked = [item for place, example in enumerate(examples) for item in self._asked(place, example, rng)]
        figures = self._judged(asked, leaves, pairs, is_training=True)
        gradients = summed_gradients(self._model.comm, _by_side(leaves))
        values = _by_side(updates)
        total = torch.stack([(gradient * values[side]).sum() for side, gradient in gradients.items()]).sum()
        return Losses(total=total, parts=figures, num_edits=len(examples))

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """See `Objective`: on the first rephrase and neighbour of each held-out edit; the score is minus the loss."""
        found = []
        size, held_out, text = self._settings.batch, self._examples.held_out, self._examples.text
        for start in range(0, len(held_out), size):
            examples = held_out[start : start + size]
            asked = []
            for place, example in enumerate(examples):
                line = text[(start + place) % len(text)] if text else None
                asked += _questions(place, example.rephrases[0], next(iter(example.locality), None), line)
                asked.append(
                    _BatchUpdate(edit=place, sequence=example.edit, figure="edit_success", is_target=True, weight=0)
                )
            pairs = self._pairs(examples)
            figures = self._judged(asked, self._updates(pairs), pairs, is_training=False)
            found += [figures] * len(examples)
        means = {name: fmean([one[name] for one in found if name in one]) for name in found[0]}
        return means | {SCORE: -means[LOSS]}

    def state(self) -> dict[str, Tensor]:
        """See `Objective`: nothing is carried but the transform."""
        return dict(self._transform.state_dict())

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """See `Objective`."""
        self._transform.load_state_dict(dict(state))

    def _pairs(self, examples: Sequence[Example]) -> Pairs:
        return token_pairs(self._model, self._reader.prepare([example.edit for example in examples]))

    def _observe(self, pairs: Pairs) -> None:
        for name, u_TI in pairs.u_TI.items():
            self._transform.observe(name, u_TI, pairs.delta_TO[name])

    def _updates(self, pairs: Pairs) -> dict[str, Branch]:
        """The update of all tokens by inner parameter: F (I x T) and D (T x O)."""
        return {name: update(self._transform, name, u, pairs.delta_TO[name]) for name, u in pairs.u_TI.items()}

    def _asked(self, place: int, example: Example, rng: random.Random) -> list[_BatchUpdate]:
        neighbour = rng.choice(example.locality) if example.locality else None
        line = rng.choice(self._examples.text) if self._examples.text else None
        return _questions(place, rng.choice(example.rephrases), neighbour, line)

    def _judged(
        self, asked: Sequence[_BatchUpdate], updates: Mapping[str, Branch], pairs: Pairs, *, is_training: bool
    ) -> dict[str, float]:
        """Figures over some edits, each in a model of its own; in training the updates get their gradients."""
        num_edits = 1 + max(item.edit for item in asked)
        before = {item.sequence: self._reader.reading(item.sequence) for item in asked if not item.is_target}
        own: dict[int, dict[str, float]] = {}
        for places, batch in self._reader.prepare([item.sequence for item in asked]):
            of_rows = [asked[place].edit for place in places] or [0] * batch.num_rows
            edit_B = torch.tensor(of_rows, device=self._model.device)
            with side_branch(self._model.module, _of_rows(updates, pairs, edit_B)):
                log_NV = self._model.target_logits(batch).float().log_softmax(dim=1)
            parts = []
            for place, of_row in zip(places, rows_of(batch), strict=False):
                item = asked[place]
                part, own[place] = self._answer(item, log_NV[of_row], batch.target_N[of_row], before, num_edits)
                parts += [part] if item.weight else []
            if is_training:
                backward(parts, log_NV)
        answers = merged(self._model.comm, own)
        names = {name for answer in answers for name in answer}
        shown = {name: fmean([answer[name] for answer in answers if name in answer]) for name in sorted(names)}
        return shown | {LOSS: sum(answer[LOSS] for answer in answers)}

    def _answer(
        self, item: _BatchUpdate, log_TV: Tensor, target_T: Tensor, before: Mapping[Encoded, Reading], num_edits: int
    ) -> tuple[Tensor, dict[str, float]]:
        """A sequence's part of the loss with its graph, and its figures."""
        right_T = target_T if item.is_target else before[item.sequence].argmax_T.to(log_TV.device)
        figures = {item.figure: float((log_TV.argmax(dim=1) == right_T).all())}
        if not item.weight:
            return log_TV.new_zeros(()), figures | {LOSS: 0.0}
        loss = _nll(log_TV, right_T) if item.is_target else divergence(before[item.sequence], log_TV)
        constant = self._settings.c_edit if item.is_target else self._settings.c_loc
        part = constant * item.weight / num_edits * loss
        kind = "edit_nll" if item.is_target else "locality_kl"
        return part, figures | {kind: float(loss.detach()), LOSS: float(part.detach())}


def _questions(edit: int, target: Encoded, neighbour: Encoded | None, line: Encoded | None) -> list[_BatchUpdate]:
    kept = [(name, s) for name, s in (("locality_unchanged", neighbour), ("text_unchanged", line)) if s is not None]
    asked = [_BatchUpdate(edit=edit, sequence=target, figure="generalization", is_target=True, weight=1.0)]
    return asked + [
        _BatchUpdate(edit=edit, sequence=sequence, figure=name, is_target=False, weight=1 / len(kept))
        for name, sequence in kept
    ]


def _by_side(pairs: Mapping[str, Branch]) -> dict[str, Tensor]:
    """Both factors of each inner parameter under names of their own."""
    return {f"{name}/{side}": factor for name, pair in pairs.items() for side, factor in zip("FD", pair, strict=True)}


def _leaves(pair: Branch) -> Branch:
    return pair[0].detach().requires_grad_(), pair[1].detach().requires_grad_()


def _of_rows(updates: Mapping[str, Branch], pairs: Pairs, edit_B: Tensor) -> dict[str, Branch]:
    """The update of each row's own edit: B x I x T and B x T x O, with zeros where an edit has fewer tokens."""
    found = {}
    for name, (left_IT, right_TO) in updates.items():
        index_ET = torch.nn.utils.rnn.pad_sequence(
            [torch.arange(rows.start, rows.stop, device=edit_B.device) for rows in pairs.slices(name)],
            batch_first=True,
            padding_value=len(right_TO),
        )
        index_BT = index_ET[edit_B]
        left_BTI = pad(left_IT.T, (0, 0, 0, 1))[index_BT]
        found[name] = (left_BTI.transpose(1, 2), pad(right_TO, (0, 0, 0, 1))[index_BT])
    return found


def _nll(log_TV: Tensor, target_T: Tensor) -> Tensor:
    return -log_TV.gather(1, target_T[:, None]).mean()
