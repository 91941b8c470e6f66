"""Knows the objective of a transform whose shifts go through the recursive solve: batches, rephrases, locality.

An episode is one pass over a batch of edits, `boost` times as long as it will be in use, on the base or on weights
that other edits have changed already:

    S = (A + K^T K)^-1 K^T (boost * missing * D),     A = C0 + lambda I + sum over earlier edits of K^T K
    loss = c_edit NLL(target | prompts; W + S) + c_loc KL(before || after on neighbours) + c_text KL(... on text)

A target token that is as probable as a pass aims at adds nothing to the loss: to go further would only change more.
`K` is held constant, so that gradients reach the transform through D only (see `solve`). The edit acts as a side
branch; the model's weights are never written. What the base says, and every edit's pairs at the base, are found once.

Legend: T edit rows of a batch, N target tokens, I in_features, O out_features, V vocabulary.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from editors.measure.losses import Reading, divergence, rows_of
from editors.measure.scoring import readings
from editors.mend.transform import MARGIN, MendTransform
from editors.methods.pairs import read_pairs
from editors.methods.passes import joined
from editors.models.comm import merged
from editors.models.families import EditableModel, InnerParam, TargetBatch
from editors.models.hooks import Branch, side_branch
from editors.models.tokens import Encoded
from editors.solve.ledger import Ledger
from editors.solve.linear import added_rows
from editors.solve.natural_gradient import NaturalGradient
from editors.training.examples import Example, Examples, Reader
from editors.training.objective import LOSS, SCORE, Deck, Losses, ParameterGroup, backward, summed_gradients

AT_ONCE = 256
"""Most edits that are made ready together: what enters their first edited block is in memory then."""
FORWARD_TOKENS = 768
"""Most padded tokens of one forward with gradients."""
SHOWN = {
    "rephrase": ("rephrase_nll", "generalization"),
    "edit": ("edit_nll", "edit_success"),
    "neighbour": ("locality_kl", "locality_unchanged"),
    "text": ("text_kl", "text_unchanged"),
}
"""Kind of a sequence -> names of its loss and of the share that is right. The loss of a target counts as far as a pass
aims: it is the NLL less that of the probability aimed at, and 0 for a token beyond it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SolvedSettings:
    """Constants of the objective."""

    c_edit: float = 1.0
    """Weight of the targets' loss."""
    c_loc: float = 5.0
    """Weight of the divergence on neighbours."""
    c_text: float = 5.0
    """Weight of the divergence on text."""
    batch: int = 32
    """Edits of an episode."""
    num_text: int = 4
    """Lines of text of an episode."""
    boost: float = 3.0
    """How much longer the pass of an episode is than one in use: as far as a few of them get."""
    share_edited: float = 0.5
    """Share of episodes on weights that hold other edits already, where there are more than a batch of them."""
    network_lr: float = 5e-4
    """Adam's, of the network."""
    rate_lr: float = 5e-3
    """Adam's, of the logarithm of the rates."""
    first_step: float = 0.8
    """Mean length of a shift at the beginning, in mean key norms."""
    cache_bytes: int = 512 * 2**20
    """Memory for what enters the first edited block."""
    disk_bytes: int = 4 * 2**30
    """Disk for what memory has no room for."""
    seed: int = 0
    """Of the order of the edits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EditPairs:
    """Keys and gradients of a batch of edits, by inner parameter, and how probable each edit is."""

    u_TI: dict[str, Tensor]
    """Keys."""
    delta_TO: dict[str, Tensor]
    """Natural gradients of the edits' loss at the layer's outputs."""
    probability_T: Tensor
    """Of the least probable target token of a row's edit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What an edited model makes of one sequence."""

    kind: str
    """`edit`, `rephrase`, `neighbour` or `text`."""
    loss: float
    """Of the target, or the divergence from what the base says, nats."""
    is_right: bool
    """Whether every argmax is the target's, or the base's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Earlier:
    """A batch that the weights hold already."""

    keys: dict[str, Tensor]
    """Inner parameter -> keys of its rows."""
    branches: dict[str, Branch]
    """What it changed."""


class SolvedObjective:
    """See the module; an `Objective`. Every edit has one row an inner parameter: its subject's last token.

    Args:
        model: the base.
        params: the inner parameters that the transform is for.
        transform: what is trained.
        examples: edits and text; edits without a subject are left out.
        ledger: without rows: prior and ridge.
        natural: what the transform gets for a gradient.
        settings: constants.
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
        self._model, self._params, self._transform, self._ledger = model, tuple(params), transform, ledger
        self._natural, self._settings, self._text = natural, settings, examples.text
        self._reader = Reader(model, max_bytes=settings.cache_bytes, disk_bytes=settings.disk_bytes)
        self._training = _with_subject(examples.training)
        self._held_out = _with_subject(examples.held_out)
        self._deck = Deck(len(self._training), batch=settings.batch, seed=settings.seed)
        self._earlier = Deck(len(self._training), batch=settings.batch, seed=settings.seed + 1)
        kept = [*(one for example in (*self._training, *self._held_out) for one in example.locality), *self._text]
        self._before: dict[Encoded, Reading] = dict(zip(kept, readings(model, list(model.chunked(kept))), strict=True))
        self._at_base = self._captured(self._training, {})
        self._held_out_at_base = self._captured(self._held_out, {})

    def groups(self) -> list[ParameterGroup]:
        """See `Objective`: the rates have a group of their own."""
        return [
            ParameterGroup(parameters=self._transform.network_parameters(), lr=self._settings.network_lr),
            ParameterGroup(parameters=self._transform.rate_parameters(), lr=self._settings.rate_lr),
        ]

    def begin(self) -> None:
        """See `Objective`: statistics and rates from every edit."""
        pairs = self._at_base
        for name, u_TI in pairs.u_TI.items():
            self._transform.observe(name, u_TI, pairs.delta_TO[name])
        self._transform.initial_rates(pairs.u_TI, pairs.delta_TO, step=self._settings.first_step)

    def episode(self, step: int, rng: random.Random) -> Losses:
        """See `Objective`."""
        places = list(dict.fromkeys(self._deck.places(step)))
        examples = [self._training[place] for place in places]
        pairs, earlier = _only(self._at_base, places), None
        if rng.random() < self._settings.share_edited:
            others = [place for place in dict.fromkeys(self._earlier.places(step)) if place not in places]
            if others:
                earlier = self._edited(_only(self._at_base, others))
                pairs = self._captured(examples, earlier.branches)
        shifts = self._shifts(pairs)
        leaves = {name: shift_TO.detach().requires_grad_() for name, shift_TO in shifts.items()}
        figures = self._judged(self._asked(examples, rng), self._solved(pairs, leaves, earlier), len(examples))
        gradients = summed_gradients(self._model.comm, leaves)
        total = torch.stack([(shifts[name] * gradient).sum() for name, gradient in gradients.items()]).sum()
        return Losses(total=total, parts=figures, num_edits=len(examples))

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """See `Objective`: one pass over each batch of held-out edits; the score is minus the loss."""
        found = []
        size = self._settings.batch
        for start in range(0, len(self._held_out), size):
            examples = self._held_out[start : start + size]
            pairs = _only(self._held_out_at_base, range(start, start + len(examples)))
            asked = [(example.edit, "edit") for example in examples]
            asked += [(example.rephrases[0], "rephrase") for example in examples]
            asked += [(one, "neighbour") for example in examples for one in example.locality[:1]]
            asked += [(line, "text") for line in self._text[-self._settings.num_text :]]
            figures = self._judged(asked, self._solved(pairs, self._shifts(pairs), None), len(examples))
            found += [figures] * len(examples)
        means = {name: fmean([figures[name] for figures in found if name in figures]) for name in found[0]}
        return means | {SCORE: -means[LOSS]}

    def state(self) -> dict[str, Tensor]:
        """See `Objective`: nothing is carried but the transform."""
        return dict(self._transform.state_dict())

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """See `Objective`."""
        self._transform.load_state_dict(dict(state))

    def _asked(self, examples: Sequence[Example], rng: random.Random) -> list[tuple[Encoded, str]]:
        """The sequences of an episode: of each edit a rephrase, a neighbour, and itself half of the time."""
        asked = [(rng.choice(example.rephrases), "rephrase") for example in examples]
        asked += [(example.edit, "edit") for example in examples if rng.random() < 0.5]
        asked += [(rng.choice(example.locality), "neighbour") for example in examples if example.locality]
        return asked + [(rng.choice(self._text), "text") for _ in range(self._settings.num_text if self._text else 0)]

    def _shifts(self, pairs: EditPairs) -> dict[str, Tensor]:
        missing_T1 = self._settings.boost * self._transform.missing(pairs.probability_T)[:, None]
        return {
            name: missing_T1 * self._transform.shift(name, u_TI, pairs.delta_TO[name])
            for name, u_TI in pairs.u_TI.items()
        }

    @torch.no_grad()
    def _edited(self, pairs: EditPairs) -> Earlier:
        return Earlier(keys=pairs.u_TI, branches=self._solved(pairs, self._shifts(pairs), None))

    def _solved(self, pairs: EditPairs, shifts: Mapping[str, Tensor], earlier: Earlier | None) -> dict[str, Branch]:
        """The weights' change for the shifts, on top of an earlier one, whose rows are in the solve and ask nothing."""
        branches = {}
        for name, u_TI in pairs.u_TI.items():
            keys_TI = (u_TI if earlier is None else torch.cat([earlier.keys[name], u_TI])).double().cpu()
            factor_IT = added_rows(self._ledger.factor(name), keys_TI)[:, len(keys_TI) - len(u_TI) :]
            held = None if earlier is None else earlier.branches[name]
            branches[name] = joined(held, (factor_IT.float().to(u_TI.device), shifts[name]))
        return branches

    def _captured(self, examples: Sequence[Example], branches: Mapping[str, Branch]) -> EditPairs:
        """The pairs of some edits at the base with a side branch, rows in their order."""
        with side_branch(self._model.module, branches):
            found = read_pairs(
                self._model,
                self._prepared([example.edit for example in examples]),
                lambda batch: {p.name: self._model.key_positions(batch, p, "subject") for p in self._params},
            )
        return EditPairs(
            u_TI=found.u_TI,
            delta_TO={name: self._natural(name, delta_TO) for name, delta_TO in found.delta_TO.items()},
            probability_T=found.least(range(len(examples))),
        )

    def _prepared(self, sequences: Sequence[Encoded]) -> Iterator[tuple[list[int], TargetBatch]]:
        """This rank's batches, a group of them in memory at a time."""
        for start in range(0, len(sequences), AT_ONCE):
            for places, batch in self._reader.prepare(sequences[start : start + AT_ONCE]):
                yield [start + place for place in places], batch

    def _judged(
        self, asked: Sequence[tuple[Encoded, str]], branches: Mapping[str, Branch], num_edits: int
    ) -> dict[str, float]:
        """Figures of an edited model; where gradients are on, the loss's are left in the leaves of the branches."""
        settings = self._settings
        weight = {"rephrase": settings.c_edit, "edit": settings.c_edit, "neighbour": settings.c_loc}
        weight["text"] = settings.c_text * num_edits / max(settings.num_text, 1)
        own: dict[int, Answer] = {}
        with side_branch(self._model.module, branches):
            for places, batch in self._reader.prepare([item for item, _ in asked], max_tokens=FORWARD_TOKENS):
                log_NV = self._model.target_logits(batch).float().log_softmax(dim=1)
                parts = []
                for place, of_row in zip(places, rows_of(batch), strict=False):
                    answer_loss, own[place] = self._answer(*asked[place], log_NV[of_row], batch.target_N[of_row])
                    parts.append(weight[own[place].kind] * answer_loss / num_edits)
                if torch.is_grad_enabled():
                    backward(parts, log_NV)
        answers = merged(self._model.comm, own)
        loss = sum(weight[answer.kind] * answer.loss for answer in answers) / num_edits
        return {LOSS: loss} | _figures(answers)

    def _answer(self, sequence: Encoded, kind: str, log_TV: Tensor, target_T: Tensor) -> tuple[Tensor, Answer]:
        """What the model as it is now makes of a sequence: the loss with its graph, and what is told of it."""
        before = self._before[sequence] if kind in ("neighbour", "text") else None
        right_T = target_T if before is None else before.argmax_T.to(log_TV.device)
        loss = self._missing(log_TV, right_T) if before is None else divergence(before, log_TV)
        is_right = bool((log_TV.argmax(dim=1) == right_T).all())
        return loss, Answer(kind=kind, loss=float(loss.detach()), is_right=is_right)

    def _missing(self, log_TV: Tensor, right_T: Tensor) -> Tensor:
        """Mean loss of a target's tokens, as far as they are less probable than a pass aims at, nats."""
        aim = math.log(min(self._transform.rest + MARGIN, 1.0))
        return (aim - log_TV.gather(1, right_T[:, None])).clamp(min=0).mean()


def _figures(answers: Sequence[Answer]) -> dict[str, float]:
    """Means over the answers of each kind, under the names that a screen and a card show."""
    figures = {}
    for kind, (of_loss, of_right) in SHOWN.items():
        chosen = [answer for answer in answers if answer.kind == kind]
        if chosen:
            figures[of_loss] = fmean(answer.loss for answer in chosen)
            figures[of_right] = fmean(answer.is_right for answer in chosen)
    return figures


def _with_subject(examples: Sequence[Example]) -> tuple[Example, ...]:
    return tuple(example for example in examples if example.edit.subject_end is not None)


def _only(pairs: EditPairs, places: Sequence[int]) -> EditPairs:
    index = torch.tensor(list(places), dtype=torch.long)
    return EditPairs(
        u_TI={name: rows[index] for name, rows in pairs.u_TI.items()},
        delta_TO={name: rows[index] for name, rows in pairs.delta_TO.items()},
        probability_T=pairs.probability_T[index],
    )
