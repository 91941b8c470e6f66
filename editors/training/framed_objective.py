"""The objective of a transform for edits with frames: the passes of the product, unrolled, in a stream of edits.

An episode is a batch of edits on the base, or on weights that hold the edits of episodes before (`held_edits`). The
passes over it are those that a lineage makes (`editors.methods.passes`): its frames and guards, its rounding of keys,
its choice of what is asked again. With R the shifts after the last of P passes and F the factor of its solve:

    R = sum over passes of deficit(p) * T(k, g)           S = S_held + F P R
    loss = c_edit NLL(target | other wordings; W + S) + c_earlier NLL(targets of held edits)
         + c_loc KL(base || now on neighbours) + c_text KL(base || now on text) + c_norm |R|^2 / |k|^2

Keys, gradients and probabilities are held constant, as in MEND: the gradient reaches the transform T through every
pass's own shifts, and is no second derivative of the model. A target token that is as probable as a pass aims at adds
nothing to the loss.

A stream begins anew every `stream_steps` steps, and whenever its text diverges too far. So what a step depends on
beside the transform never goes back further, and a run that saves its state there can be resumed to the same bytes.

Legend: E edits, H shifts (one an edit in every inner parameter), I in_features, O out_features.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from editors.measure.losses import Reading
from editors.measure.scoring import Prepared, readings
from editors.mend.transform import MARGIN, MendTransform
from editors.methods.batch_update import BatchUpdate, joined
from editors.methods.passes import passes_over
from editors.models.families import EditableModel
from editors.models.tokens import Encoded
from editors.solve.ledger import Ledger
from editors.solve.natural_gradient import NaturalGradient
from editors.training.framed_examples import FramedExample, FramedExamples
from editors.training.held_edits import HeldEdits
from editors.training.objective import LOSS, Deck, Losses, Objective, summed_gradients
from editors.training.questions import Kind, Question, judge, validation_figures
from editors.training.recorder import Asked, Recorder, gathered_asks
from pipeline.domain.errors import EditorFailed
from pipeline.domain.rank_api import EditorSettings

FORWARD_TOKENS = 768
"""Most padded tokens of one forward with gradients, on a CPU."""
CALIBRATION = 8
"""Most batches from which statistics and rates are set: they settle with 256 edits, and each edit costs a
second on a CPU."""
EDIT = Kind(right_name="edit_success", loss_name="edit_nll", is_target=True)
WORDING = Kind(right_name="generalization", loss_name="rephrase_nll", is_target=True)
NEW_RELATION = Kind(right_name="generalization_new_relation", loss_name="rephrase_nll", is_target=True)
EARLIER = Kind(right_name="retention", loss_name="retention_nll", is_target=True)
NEIGHBOUR = Kind(right_name="locality_unchanged", loss_name="locality_kl", is_target=False)
SUBJECT = Kind(right_name="subject_unchanged", loss_name="subject_kl", is_target=False)
TEXT = Kind(right_name="text_unchanged", loss_name="text_kl", is_target=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class FramedSettings:
    """Constants of the objective."""

    c_edit: float = 1.0
    """Weight of the loss of an edit's targets, behind its prompt and other wordings."""
    c_earlier: float = 1.0
    """Weight of the loss of the targets of held edits."""
    c_loc: float = 5.0
    """Weight of the divergence on neighbours, and on other facts about the same subject."""
    c_text: float = 40.0
    """Weight of the divergence on plain text."""
    c_norm: float = 0.01
    """Weight of the squared length of a shift, in mean key norms."""
    batch: int = 32
    """How many edits an episode has."""
    num_views: int = 3
    """How many other wordings of an edit an episode asks."""
    num_earlier: int = 16
    """How many held edits an episode asks."""
    num_text: int = 16
    """How many lines of text an episode has."""
    share_edited: float = 0.75
    """Share of episodes on weights that hold the edits before, which then take in the episode's own."""
    stream_steps: int = 100
    """Steps after which the weights hold nothing again; states are saved and validated at its multiples only."""
    max_text_kl: float = 1.0
    """Divergence on text from which held edits are given up, nats."""
    network_lr: float = 1e-3
    """Adam's learning rate of the network."""
    rate_lr: float = 2e-2
    """Adam's learning rate of the logarithms of the transform's rates."""
    first_step: float = 1.0
    """Mean length of a shift before any step, in mean key norms."""
    forward_dtype: str = "float32"
    """`bfloat16` lets the forwards of the loss run in it by autocast; keys, gradients and solves stay as they are."""
    seed: int = 0
    """Seed of the order of the edits."""


class FramedObjective(Objective):
    """The objective that this module describes.

    Args:
        model: the base, whose inner parameters are those that the transform is for.
        transform: what is trained.
        examples: edits in their frames, and text.
        ledger: prior and ridge of the solve; holds no rows.
        natural: turns gradients into the natural gradients that the transform gets.
        use: how the editor is going to be used; `trained_passes` is the most passes of an episode.
        settings: constants of the objective.
    """

    def __init__(
        self,
        model: EditableModel,
        transform: MendTransform,
        examples: FramedExamples,
        ledger: Ledger,
        natural: NaturalGradient,
        use: EditorSettings,
        settings: FramedSettings,
    ) -> None:
        super().__init__(model, transform, network_lr=settings.network_lr, rate_lr=settings.rate_lr)
        names = model.inner_param_names
        self._use = replace(use, inner_params=names, subject_params=names)
        self._ledger, self._natural, self._settings = ledger, natural, settings
        self._training, self._held_out, self._text = examples.training, examples.held_out, examples.text
        self._deck = Deck(len(self._training), batch=settings.batch, seed=settings.seed)
        self._held = HeldEdits(ledger, names, model.comm)

    def begin(self) -> None:
        """Set statistics and rates from what the first pass over the first edits would ask."""
        recorder, size = Recorder(), self._settings.batch
        for start in range(0, min(len(self._training), CALIBRATION * size), size):
            self._passes(self._training[start : start + size], 1, self._held, recorder, is_trained=False)
        asked = gathered_asks(self._model, recorder)
        u_HI = {name: torch.cat([one.u_HI for one in of_passes]) for name, of_passes in asked.items()}
        delta_HO = {name: torch.cat([one.delta_HO for one in of_passes]) for name, of_passes in asked.items()}
        self._observe(u_HI, delta_HO)
        self._transform.initial_rates(u_HI, delta_HO, step=self._settings.first_step)

    def episode(self, step: int, rng: random.Random) -> Losses:
        """Return the losses of one to all passes over a batch, on the base or on weights that hold edits.

        The questions' gradients are summed up in the shifts first, and go through the network in one piece.
        """
        if step % self._settings.stream_steps == 0:
            self._held.clear()
        places = list(dict.fromkeys(self._deck.places(step)))
        examples = [self._training[place] for place in places]
        is_in_stream = rng.random() < self._settings.share_edited
        held = self._held if is_in_stream else self._held.at_base()
        recorder, num_passes = Recorder(), rng.randint(1, self._use.trained_passes)
        try:
            update = self._passes(examples, num_passes, held, recorder)
        except EditorFailed:
            self._held.clear()  # whatever they hold would fail the steps to come too
            raise
        leaves = {name: asked_HO.float().requires_grad_() for name, asked_HO in update.asked.items()}
        earlier = [self._training[place] for place in _sampled(held.places, places, self._settings.num_earlier, rng)]
        figures = self._judged(self._drawn(examples, earlier, rng), update, leaves, held, len(examples))
        total, norm = self._through_shifts(gathered_asks(self._model, recorder), leaves)
        figures[LOSS] += self._settings.c_norm * norm
        if is_in_stream:
            self._take(update, places, figures)
        return Losses(total=total, parts={**figures, "shift_norm": math.sqrt(norm)}, num_edits=len(examples))

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return figures of the held-out edits as one stream, each batch asked at once and all at the end.

        The score is minus the loss, in which those that came first count like those that came last.
        """
        held, found = self._held.at_base(), []
        size, update = self._settings.batch, None
        for start in range(0, len(self._held_out), size):
            if update is not None:
                held.take(update, range(start - size, start))
            examples = self._held_out[start : start + size]
            update = self._passes(examples, self._use.trained_passes, held, Recorder())
            asked = self._asked_of(examples) + self._lines(start)
            found.append((self._judged(asked, update, update.asked, held, len(examples)), len(examples)))
        earlier = [self._held_out[place] for place in held.places]
        if earlier and update is not None:
            asked = [(view, EARLIER) for example in earlier for view in (example.frames.asked[0], *example.views[:1])]
            figures = self._judged(asked, update, update.asked, held, len(earlier))
            found = [(figures_ | {LOSS: figures_[LOSS] + figures[LOSS]}, num) for figures_, num in found]
            figures.pop(LOSS)
            return validation_figures(found) | figures
        return validation_figures(found)

    def _passes(
        self,
        examples: Sequence[FramedExample],
        num_passes: int,
        held: HeldEdits,
        recorder: Recorder,
        *,
        is_trained: bool = True,
    ) -> BatchUpdate:
        """Make the passes over some edits as the product does, and record what the transform is asked."""
        return passes_over(
            self._model,
            {str(place): example.frames for place, example in enumerate(examples)},
            settings=replace(self._use, num_passes=num_passes, trained_passes=num_passes),
            trained=self._transform if is_trained else None,
            natural=self._natural,
            factor=held.factor,
            start=held.start,
            device=self._ledger.device,
            watch=recorder,
        )

    def _through_shifts(self, asked: dict[str, list[Asked]], leaves: dict[str, Tensor]) -> tuple[Tensor, float]:
        """Return a scalar whose gradient is that of the loss by the transform, and the mean squared length of a shift.

        d loss / d parameters = sum of (d loss / d R) * (d R / d parameters), with R summed over the passes.
        """
        gradients = summed_gradients(self._model.comm, leaves)
        parts, lengths = [], []
        for name, of_passes in asked.items():
            shift_HO = torch.zeros_like(leaves[name])
            for one in of_passes:
                wanted_HO = self._transform.shift(name, one.u_HI, one.delta_HO)
                deficit_H1 = self._transform.deficit(one.probability_H)[:, None]
                shift_HO = shift_HO.index_add(0, one.shift_H, deficit_H1 * wanted_HO)
            if name in gradients:
                parts.append((shift_HO * gradients[name]).sum())
            key = of_passes[0].u_HI.norm(dim=1).mean().clamp(min=1e-12)
            lengths.append((shift_HO / key).square().sum(dim=1).mean())
        norm = torch.stack(lengths).mean()
        return torch.stack([*parts, self._settings.c_norm * norm]).sum(), float(norm.detach())

    def _take(self, update: BatchUpdate, places: Sequence[int], figures: dict[str, float]) -> None:
        """Let the stream hold the batch; one in which text has changed too far begins anew."""
        is_fine = math.isfinite(figures[LOSS]) and figures.get(TEXT.loss_name or "", 0.0) <= self._settings.max_text_kl
        if is_fine:
            self._held.take(update, places)
        else:
            self._held.clear()

    def _drawn(
        self, examples: Sequence[FramedExample], earlier: Sequence[FramedExample], rng: random.Random
    ) -> list[tuple[Encoded, Kind]]:
        """Draw the questions of an episode: wordings, itself half of the time, what has to stay, and held edits."""
        asked = []
        for example in examples:
            asked += [(view, WORDING) for view in _some(example.views, self._settings.num_views, rng)]
            asked += [(example.frames.asked[0], EDIT)] if rng.random() < 0.5 else []
            asked += [(one, NEIGHBOUR) for one in _some(example.locality, 1, rng)]
            asked += [(one, SUBJECT) for one in _some(example.others, 1, rng)]
        asked += [(view, EARLIER) for example in earlier for view in _some(example.views, 1, rng)]
        return asked + [(line, TEXT) for line in _some(self._text, self._settings.num_text, rng)]

    def _asked_of(self, examples: Sequence[FramedExample]) -> list[tuple[Encoded, Kind]]:
        """Return what a validation asks of some edits."""
        asked = []
        for example in examples:
            asked += [(view, NEW_RELATION if example.has_new_relation else WORDING) for view in example.views[:3]]
            asked.append((example.frames.asked[0], EDIT))
            asked += [(one, NEIGHBOUR) for one in example.locality[:1]] + [(one, SUBJECT) for one in example.others[:1]]
        return asked

    def _lines(self, start: int) -> list[tuple[Encoded, Kind]]:
        text = self._text
        return [(text[(start + place) % len(text)], TEXT) for place in range(self._settings.num_text if text else 0)]

    def _judged(
        self,
        asked: Sequence[tuple[Encoded, Kind]],
        update: BatchUpdate,
        shifts: dict[str, Tensor],
        held: HeldEdits,
        num_edits: int,
    ) -> dict[str, float]:
        settings, start, branches = self._settings, held.start, {}
        for name, factor_IH in update.factors.items():
            left_IR, right_RO = joined(start.get(name), (factor_IH, shifts[name]))
            branches[name] = (left_IR.float().to(self._model.device), right_RO.float().to(self._model.device))
        each = {EDIT: settings.c_edit, NEIGHBOUR: settings.c_loc, SUBJECT: settings.c_loc}
        each |= {kind: settings.c_edit / max(settings.num_views, 1) for kind in (WORDING, NEW_RELATION)}
        # Held edits and lines do not become more with the batch: their mean weighs as much as one an edit would.
        for kind, weight in ((EARLIER, settings.c_earlier), (TEXT, settings.c_text)):
            each[kind] = weight * num_edits / max(sum(one is kind for _, one in asked), 1)
        before = self._before(asked)  # in fp32, whatever the loss runs in: the divergence is from this
        dtype = getattr(torch, settings.forward_dtype)
        with torch.autocast(self._model.device.type, dtype=dtype, enabled=dtype is not torch.float32):
            return judge(
                self._model,
                self._prepared,
                [Question(sequence=sequence, kind=kind, weight=each[kind]) for sequence, kind in asked],
                before,
                lambda _places, _batch: branches,
                num_edits=num_edits,
                aim=math.log(min(self._transform.stop_probability + MARGIN, 1.0)),
                max_tokens=FORWARD_TOKENS,
            )

    def _before(self, asked: Sequence[tuple[Encoded, Kind]]) -> dict[Encoded, Reading]:
        """Return what the base answers to questions whose answer has to stay.

        It is read when it is asked: of ten thousand edits that cost an hour on a CPU before the first step. And it is
        not kept: which sequences share a forward decides its last bits, so that a resumed run would get others.
        """
        kept = list(dict.fromkeys(sequence for sequence, kind in asked if not kind.is_target))
        return dict(zip(kept, readings(self._model, self._prepared(kept)), strict=True))

    def _prepared(self, sequences: Sequence[Encoded], *, max_tokens: int | None = None) -> Prepared:
        return list(self._model.chunked(sequences, max_tokens=max_tokens))


def _some(items: Sequence[Encoded], most: int, rng: random.Random) -> list[Encoded]:
    return rng.sample(items, min(most, len(items)))


def _sampled(held: Sequence[int], batch: Sequence[int], most: int, rng: random.Random) -> list[int]:
    """Return some held edits, none of which is in the batch."""
    others = sorted(set(held) - set(batch))
    return rng.sample(others, min(most, len(others)))
