"""The objective of a transform whose shifts go through the recursive solve: batches of edits that hold together.

An episode is one pass over a batch of edits, `boost` times as long as it will be in use, on the base or on weights
that other edits have changed already:

    S = (A + K^T K)^-1 K^T (boost * deficit * D),     A = C0 + lambda I + sum over earlier edits of K^T K
    loss = c_edit NLL(target | prompts; W + S) + c_loc KL(before || after on neighbours) + c_text KL(... on text)

A target token that is as probable as a pass aims at adds nothing to the loss: to go further would only change more.
`K` is held constant, so that gradients reach the transform through D only (see `solve.linear`). The edit acts as a
side branch; the model's weights are never written. What the base says, and every edit's keys and gradients at the
base, are found once.

Legend: E edits (with one row each in every inner parameter), T edit rows of a solve, I in_features, O out_features.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editors.measure.losses import Reading
from editors.measure.scoring import readings
from editors.mend.transform import MARGIN, MendTransform
from editors.methods.batch_update import joined
from editors.methods.pairs import read_pairs
from editors.models.families import EditableModel, InnerParam, TargetBatch
from editors.models.hooks import Branch, side_branch
from editors.models.tokens import Encoded
from editors.solve.ledger import Ledger
from editors.solve.linear import added_rows
from editors.solve.natural_gradient import NaturalGradient
from editors.training.examples import Example, Examples, Reader
from editors.training.objective import Deck, Losses, Objective, summed_gradients
from editors.training.questions import Kind, Question, judge, validation_figures

AT_ONCE = 256
"""Most edits that are made ready together: what enters their first edited block is in memory then."""
FORWARD_TOKENS = 768
"""Most padded tokens of one forward with gradients."""
REPHRASE = Kind(right_name="generalization", loss_name="rephrase_nll", is_target=True)
EDIT = Kind(right_name="edit_success", loss_name="edit_nll", is_target=True)
NEIGHBOUR = Kind(right_name="locality_unchanged", loss_name="locality_kl", is_target=False)
TEXT = Kind(right_name="text_unchanged", loss_name="text_kl", is_target=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class SolvedSettings:
    """Constants of the objective, with the defaults that were measured best."""

    c_edit: float = 1.0
    """Weight of the loss of targets, behind prompts and rephrases."""
    c_loc: float = 5.0
    """Weight of the divergence on neighbours."""
    c_text: float = 5.0
    """Weight of the divergence on plain text."""
    batch: int = 32
    """How many edits an episode has."""
    num_text: int = 4
    """How many lines of text an episode has."""
    boost: float = 3.0
    """How much longer the one pass of an episode is than a pass in use, where several follow each other."""
    share_edited: float = 0.5
    """Share of episodes on weights that hold other edits already, where there are enough edits for that."""
    network_lr: float = 5e-4
    """Adam's learning rate of the network."""
    rate_lr: float = 5e-3
    """Adam's learning rate of the logarithms of the transform's rates."""
    first_step: float = 0.8
    """Mean length of a shift before any step, in mean key norms."""
    cache_bytes: int = 512 * 2**20
    """Most memory for what enters the first edited block, bytes."""
    disk_bytes: int = 4 * 2**30
    """Most disk for what memory has no room for, bytes."""
    seed: int = 0
    """Seed of the order of the edits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EditPairs:
    """Keys and gradients of a batch of edits, a row for each edit in every inner parameter."""

    u_EI: dict[str, Tensor]
    """Inner parameter -> inputs of its layer at the subject's last token (keys), fp32."""
    delta_EO: dict[str, Tensor]
    """Inner parameter -> natural gradients of the edits' loss at the layer's output, fp32."""
    probability_E: Tensor
    """Probability of each edit's least probable target token."""

    def of(self, places: Sequence[int]) -> EditPairs:
        """Return the rows of some edits, in the order given."""
        index = torch.tensor(list(places), dtype=torch.long)
        return EditPairs(
            u_EI={name: rows[index] for name, rows in self.u_EI.items()},
            delta_EO={name: rows[index] for name, rows in self.delta_EO.items()},
            probability_E=self.probability_E[index],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Earlier:
    """A batch of edits that the weights hold already."""

    keys: dict[str, Tensor]
    """Inner parameter -> keys of the batch, E x I."""
    branches: dict[str, Branch]
    """Inner parameter -> the change that the batch made."""


class SolvedObjective(Objective):
    """The objective that this module describes.

    Args:
        model: the base.
        params: the inner parameters that the transform is for.
        transform: what is trained.
        examples: edits, all with a subject in their prompts, and text.
        ledger: prior and ridge of the solve; holds no rows.
        natural: turns gradients into the natural gradients that the transform gets.
        settings: constants of the objective.
    """

    def __init__(
        self,
        model: EditableModel,
        params: Sequence[InnerParam],
        transform: MendTransform,
        examples: Examples,
        ledger: Ledger,
        natural: NaturalGradient,
        settings: SolvedSettings,
    ) -> None:
        super().__init__(model, transform, network_lr=settings.network_lr, rate_lr=settings.rate_lr)
        self._params, self._ledger, self._natural = tuple(params), ledger, natural
        self._settings, self._text = settings, examples.text
        self._reader = Reader(model, max_bytes=settings.cache_bytes, disk_bytes=settings.disk_bytes)
        self._training, self._held_out = examples.training, examples.held_out
        self._deck = Deck(len(self._training), batch=settings.batch, seed=settings.seed)
        self._earlier = Deck(len(self._training), batch=settings.batch, seed=settings.seed + 1)
        kept = [*(one for example in (*self._training, *self._held_out) for one in example.locality), *self._text]
        self._before: dict[Encoded, Reading] = dict(zip(kept, readings(model, list(model.chunked(kept))), strict=True))
        self._at_base = self._captured(self._training, {})
        self._held_out_at_base = self._captured(self._held_out, {})

    def begin(self) -> None:
        """Set statistics and rates from every edit at the base."""
        pairs = self._at_base
        self._observe(pairs.u_EI, pairs.delta_EO)
        self._transform.initial_rates(pairs.u_EI, pairs.delta_EO, step=self._settings.first_step)

    def episode(self, step: int, rng: random.Random) -> Losses:
        """Return the losses of one pass over a batch, on the base or on weights that hold another batch.

        The questions' gradients are summed up in the shifts first, and go through the network in one piece.
        """
        places = list(dict.fromkeys(self._deck.places(step)))
        examples = [self._training[place] for place in places]
        pairs, earlier = self._at_base.of(places), None
        if rng.random() < self._settings.share_edited:
            others = [place for place in dict.fromkeys(self._earlier.places(step)) if place not in places]
            if others:
                earlier = self._edited(self._at_base.of(others))
                pairs = self._captured(examples, earlier.branches)
        shifts = self._shifts(pairs)
        leaves = {name: shift_EO.detach().requires_grad_() for name, shift_EO in shifts.items()}
        figures = self._judged(self._drawn(examples, rng), self._solved(pairs, leaves, earlier), len(examples))
        gradients = summed_gradients(self._model.comm, leaves)
        # d loss / d parameters = sum of (d loss / d shifts) * (d shifts / d parameters)
        total = torch.stack([(shifts[name] * gradient).sum() for name, gradient in gradients.items()]).sum()
        return Losses(total=total, parts=figures, num_edits=len(examples))

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return figures of one pass over each batch of held-out edits; the score is minus the loss."""
        found = []
        size = self._settings.batch
        for start in range(0, len(self._held_out), size):
            examples = self._held_out[start : start + size]
            pairs = self._held_out_at_base.of(range(start, start + len(examples)))
            asked = [(example.edit, EDIT) for example in examples]
            asked += [(example.rephrases[0], REPHRASE) for example in examples]
            asked += [(one, NEIGHBOUR) for example in examples for one in example.locality[:1]]
            asked += [(line, TEXT) for line in self._text[max(len(self._text) - self._settings.num_text, 0) :]]
            figures = self._judged(asked, self._solved(pairs, self._shifts(pairs), None), len(examples))
            found.append((figures, len(examples)))
        return validation_figures(found)

    def _drawn(self, examples: Sequence[Example], rng: random.Random) -> list[tuple[Encoded, Kind]]:
        """Draw the sequences of an episode: of each edit a rephrase, a neighbour, and itself half of the time."""
        asked = [(rng.choice(example.rephrases), REPHRASE) for example in examples]
        asked += [(example.edit, EDIT) for example in examples if rng.random() < 0.5]
        asked += [(rng.choice(example.locality), NEIGHBOUR) for example in examples if example.locality]
        return asked + [(rng.choice(self._text), TEXT) for _ in range(self._settings.num_text if self._text else 0)]

    def _shifts(self, pairs: EditPairs) -> dict[str, Tensor]:
        deficit_E1 = self._settings.boost * self._transform.deficit(pairs.probability_E)[:, None]
        return {
            name: deficit_E1 * self._transform.shift(name, u_EI, pairs.delta_EO[name])
            for name, u_EI in pairs.u_EI.items()
        }

    @torch.no_grad()
    def _edited(self, pairs: EditPairs) -> Earlier:
        return Earlier(keys=pairs.u_EI, branches=self._solved(pairs, self._shifts(pairs), None))

    def _solved(self, pairs: EditPairs, shifts: Mapping[str, Tensor], earlier: Earlier | None) -> dict[str, Branch]:
        """Return the change of the weights for the shifts, added to that of an earlier batch.

        The earlier batch's rows are in the solve too and ask nothing: so the new shifts leave what is there alone.
        """
        branches = {}
        for name, u_EI in pairs.u_EI.items():
            keys_TI = (u_EI if earlier is None else torch.cat([earlier.keys[name], u_EI])).double().cpu()
            factor_IE = added_rows(self._ledger.without().factor(name), keys_TI)[:, len(keys_TI) - len(u_EI) :]
            held = None if earlier is None else earlier.branches[name]
            branches[name] = joined(held, (factor_IE.float().to(u_EI.device), shifts[name]))
        return branches

    def _captured(self, examples: Sequence[Example], branches: Mapping[str, Branch]) -> EditPairs:
        """Read keys and gradients of some edits on the base with side branches."""
        with side_branch(self._model.module, branches):
            found = read_pairs(
                self._model,
                self._prepared([example.edit for example in examples]),
                lambda batch: {p.name: self._model.key_positions(batch, p, "subject") for p in self._params},
            )
        return EditPairs(
            u_EI=found.u_TI,
            delta_EO={name: self._natural(name, delta_EO) for name, delta_EO in found.delta_TO.items()},
            probability_E=found.least(range(len(examples))),
        )

    def _prepared(self, sequences: Sequence[Encoded]) -> Iterator[tuple[list[int], TargetBatch]]:
        """Yield this rank's batches, a group of them in memory at a time."""
        for start in range(0, len(sequences), AT_ONCE):
            for places, batch in self._reader.prepare(sequences[start : start + AT_ONCE]):
                yield [start + place for place in places], batch

    def _judged(
        self, asked: Sequence[tuple[Encoded, Kind]], branches: Mapping[str, Branch], num_edits: int
    ) -> dict[str, float]:
        settings = self._settings
        weights = {REPHRASE: settings.c_edit, EDIT: settings.c_edit, NEIGHBOUR: settings.c_loc}
        # The lines of text do not become more with the edits: their mean weighs as much as one line an edit would.
        weights[TEXT] = settings.c_text * num_edits / max(settings.num_text, 1)
        return judge(
            self._model,
            self._reader.prepare,
            [Question(sequence=sequence, kind=kind, weight=weights[kind]) for sequence, kind in asked],
            self._before,
            lambda _places, _batch: branches,
            num_edits=num_edits,
            aim=math.log(min(self._transform.stop_probability + MARGIN, 1.0)),
            max_tokens=FORWARD_TOKENS,
        )
