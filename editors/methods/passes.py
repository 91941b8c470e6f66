"""Passes over a batch of edits, each on the candidate that the pass before gave.

A pass captures keys and gradients, lets a transform say which shift is still wanted, adds it to what the batch has
asked so far and solves again:

    R <- R + D(K, G)        S = S' + F R        K, G at the candidate S, F from the solver

The rows of a pass replace those of the pass before: rows of all passes would make the memory as many times too stiff.
The candidate is a side branch: no weight is written. Inner parameters whose rows are subject tokens are asked first:
there one shift serves every way of asking for the fact. The others, whose rows are answer tokens, get what is still
wanted then, and edits without a subject.

An edit has rows in several frames, and its shift is asked of all of them (see `frames`). A pass reads its own prompt
and the frames that lag most. Ranks that hold the model together read a share of the sequences and solve for a share of
the inner parameters each.

Legend: T edit rows, H shifts, E edits, S sequences, I in_features, O out_features, R rank.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from editors.mend.transform import MARGIN, MendTransform
from editors.methods.base import EditJob
from editors.methods.batch_update import BatchUpdate, Factor, Factors
from editors.methods.edit_reading import Group, Reader, Rows, Sequences, read_keys_of
from editors.methods.frames import EditFrames, frames_of
from editors.methods.pairs import Pairs
from editors.methods.steps import GradientTransform, Transform
from editors.models.comm import agreed, own_share, together
from editors.models.families import EditableModel
from editors.models.hooks import Addition
from editors.solve.natural_gradient import NaturalGradient
from editors.solve.packing import rounded
from editors.solve.rows import consecutive
from editors.solve.shared_targets import KEY_BITS
from pipeline.domain.rank_api import EditorSettings, tell

Watch = Callable[[str, Tensor, Tensor, Tensor, Tensor], None]
"""Gets the inner parameter, which shifts are asked for (H), and of each its key (H x I), its natural gradient (H x O)
and the probability of its target (H): all that a transform makes shifts of."""
Candidate = Callable[[BatchUpdate], Mapping[str, Addition]]
"""Returns what layers add to their outputs, by inner parameter, once a batch has asked for what it has."""


def run_passes(
    job: EditJob,
    *,
    settings: EditorSettings,
    trained: MendTransform | None,
    factor: Factor,
    start: Factors,
    natural: NaturalGradient | None = None,
) -> BatchUpdate:
    """Ask until every target token is probable enough, or the passes are used up.

    Args:
        job: adds at least one edit.
        settings: which weights, which tokens, how many passes, and when an edit is left alone.
        trained: asks the first `settings.trained_passes` of each group; the gradient asks the others.
        factor: the solver.
        start: a change that the candidate has before the first pass, such as what the removed edits leave behind.
        natural: of the job's prior, if it was made before.

    Raises:
        EditorFailed: if a probability is not finite.
    """
    model, bound = job.model, settings.change_bound
    frames = agreed(
        model.comm,
        lambda: {
            edit.edit_id: frames_of(model, edit, settings, job.guards.get(edit.edit_id, ())) for edit in job.added
        },
    )
    return passes_over(
        model,
        frames,
        settings=settings,
        trained=trained,
        natural=natural or NaturalGradient(job.ledger.prior, settings.damping),
        factor=factor,
        start=start,
        device=job.ledger.device,
        most={name: bound * job.weights.base_norm(name) for name in model.inner_param_names} if bound else {},
    )


def passes_over(
    model: EditableModel,
    frames: Mapping[str, EditFrames],
    *,
    settings: EditorSettings,
    trained: MendTransform | None,
    natural: NaturalGradient,
    factor: Factor,
    start: Factors,
    device: torch.device,
    watch: Watch | None = None,
    candidate: Candidate | None = None,
    most: Mapping[str, float] | None = None,
) -> BatchUpdate:
    """Make the passes of `run_passes` over edits whose frames are token ids already.

    Args:
        model: what is edited.
        frames: by edit id.
        settings: as of `run_passes`.
        trained: as of `run_passes`.
        natural: turns gradients into natural ones.
        factor: the solver.
        start: as of `run_passes`.
        device: where keys and shifts are kept.
        watch: gets what every transform is asked, as training does.
        candidate: what the batch makes of the model, if it is not the weights that `start` and `factor` give.
        most: most norm of an inner parameter's change; none without a bound.
    """
    candidate = candidate or (lambda update: update.branches(start, model.device))
    passes = _Passes(model, frames, settings, trained, natural, factor, candidate, device, watch, most or {})
    for group in _groups(model, settings):
        passes.ask(group)
    return passes.update


class _Passes:
    """The passes over one batch; what it has asked so far is in `update`."""

    def __init__(
        self,
        model: EditableModel,
        frames: Mapping[str, EditFrames],
        settings: EditorSettings,
        trained: MendTransform | None,
        natural: NaturalGradient,
        factor: Factor,
        candidate: Candidate,
        device: torch.device,
        watch: Watch | None,
        most: Mapping[str, float],
    ) -> None:
        self._model, self._settings, self._trained, self._natural = model, settings, trained, natural
        self._factor, self._candidate, self._device, self._watch, self._most = factor, candidate, device, watch, most
        self._edit_ids, self._frames = list(frames), list(frames.values())
        self._are_shared = settings.frames_per_pass > 0 and model.has_subject_keys
        self.update = BatchUpdate(are_shared=self._are_shared)
        self._most_passes = settings.num_passes * len(_groups(model, settings))
        self._shapes = {param.name: (param.in_features, param.out_features) for param in model.inner}
        for name in self._shapes:
            self._open(name, None)

    def ask(self, group: Group) -> None:
        """Make the passes of one group; an edit whose frames are all probable enough is not asked again.

        In the first group all edits get rows, if they have such tokens: those that are probable already ask nothing,
        and the solve holds them where they are. In the next one those get rows that are not probable enough yet, and
        those that have none.
        """
        began = time.perf_counter()
        sequences = Sequences.of(self._frames, group)
        reader = Reader(self._model, sequences, keeps_left=self._are_shared)
        least = _Least(sequences)
        edits = self._pending(sequences, reader, least) if self.update.num_passes else range(len(self._frames))
        rows = sequences.rows(self._model, edits, are_shared=self._are_shared) if edits else {}
        for name, of_param in rows.items():
            self._open(name, of_param, edits)
        awake = [edit for place, edit in enumerate(edits) if any(of.lengths[place] for of in rows.values())]
        self.update.seconds["capture"] += time.perf_counter() - began
        for made in range(self._settings.num_passes if awake else 0):
            began = time.perf_counter()
            tell("pass", self.update.num_passes + 1, self._most_passes)
            chosen = self._chosen(sequences, awake, least)
            pairs = reader.read(chosen, self._candidate(self.update))
            least.take(chosen, pairs)
            up = [edit for edit in awake if least.of_edit(edit) < self._settings.stop_probability]
            if made and not up:
                self.update.seconds["capture"] += time.perf_counter() - began
                return
            for name, of_param in rows.items():
                self._put(name, of_param, chosen, pairs.u_TI[name])
            if not made:
                self._read_keys(sequences, rows, edits)
            captured = time.perf_counter()
            self._solve(rows, chosen, pairs, self._transform(group, made))
            self.update.num_passes += 1
            self.update.seconds["capture"] += captured - began
            self.update.seconds["solve"] += time.perf_counter() - captured
            if not up:
                return
            awake = up

    def _pending(self, sequences: Sequences, reader: Reader, least: _Least) -> list[int]:
        """Return the edits with a frame that is not probable enough, and those that have no row yet."""
        chosen = [place for asked in sequences.asked_of for place in asked]
        least.take(chosen, reader.read(chosen, self._candidate(self.update), has_keys=False))
        has_rows = {edit_id for ranges in self.update.ranges.values() for edit_id, first, end in ranges if end > first}
        return [
            edit
            for edit, edit_id in enumerate(self._edit_ids)
            if least.of_edit(edit) < self._settings.stop_probability or edit_id not in has_rows
        ]

    def _chosen(self, sequences: Sequences, awake: Sequence[int], least: _Least) -> list[int]:
        """Return the sequences that a pass reads: of each edit its own prompt and the frames that lag most."""
        if not self._are_shared:
            return [place for edit in awake for place in sequences.asked_of[edit]]
        chosen = []
        for edit in awake:
            own, *others = sequences.asked_of[edit]
            lagging = sorted(others, key=lambda place: (least.of_sequence(place), place))
            chosen += [own, *sorted(lagging[: self._settings.frames_per_pass - 1])]
        return chosen

    def _open(self, name: str, rows: Rows | None, edits: Sequence[int] = ()) -> None:
        """Make room for the rows of an inner parameter; for none at first."""
        num_rows, num_shifts = (0, 0) if rows is None else (len(rows.shift_T), rows.num_shifts)
        in_features, out_features = self._shapes[name]

        def zeros(*size: int) -> Tensor:
            return torch.zeros(size, dtype=torch.float64, device=self._device)

        spread_TH = zeros(num_rows, num_shifts)
        if rows is not None:
            asking = (rows.shift_T >= 0).nonzero()[:, 0]
            spread_TH[asking, rows.shift_T[asking]] = rows.weight_T[asking].sqrt().to(self._device)
        ids = [self._edit_ids[edit] for edit in edits]
        self.update.ranges[name] = consecutive(list(zip(ids, rows.lengths if rows else (), strict=True)))
        self.update.keys[name] = torch.zeros(num_rows, in_features, device=self._device)
        self.update.asked[name] = zeros(num_shifts, out_features)
        self.update.factors[name] = zeros(in_features, num_shifts)
        self.update.spread[name] = spread_TH

    def _read_keys(self, sequences: Sequences, rows: Mapping[str, Rows], edits: Sequence[int]) -> None:
        """Read the keys of frames that are never asked, and of guards, once: those of others come as they are asked.

        A row without a key yet counts for nothing.
        """
        wanted, asked = set(edits), {place for of_edit in sequences.asked_of for place in of_edit}
        others = [place for place, edit in enumerate(sequences.edit_S) if edit in wanted and place not in asked]
        if others:
            keys = read_keys_of(self._model, sequences, others, self._candidate(self.update))
            for name in rows:
                self._put(name, rows[name], others, keys[name])

    def _put(self, name: str, rows: Rows, chosen: Sequence[int], u_TI: Tensor) -> None:
        """Write the keys of some sequences, in their order, into the rows of an inner parameter."""
        index_T = rows.of_sequences(chosen)
        root_T1 = rows.weight_T[index_T].sqrt()[:, None].to(self._device)
        keys_TI = (u_TI.to(self._device).double() * root_T1).float()
        # What is solved with is what will be stored, so that an edit leaves by the rows by which it came.
        self.update.keys[name][index_T] = rounded(keys_TI, bits=KEY_BITS) if self._are_shared else keys_TI

    def _solve(self, rows: Mapping[str, Rows], chosen: Sequence[int], pairs: Pairs, transform: Transform) -> None:
        """Add what the chosen sequences still want to what is asked, and solve again."""

        def solved() -> dict[str, tuple[Tensor, Tensor, Tensor]]:
            own = own_share(self._model.comm, self._model.inner_param_names)
            return {
                name: self._solved(name, rows[name], chosen, pairs, transform)
                for name in own
                if name in rows and len(pairs.u_TI[name])
            }

        for name, found in together(self._model.comm, solved).items():
            # What comes from several ranks comes on the CPU.
            shift_H, wanted_HO, factor_IH = (part.to(self._device) for part in found)
            self.update.asked[name][shift_H] += wanted_HO
            self.update.factors[name] = factor_IH
            self.update.scale_back(name, self._most.get(name))

    def _solved(
        self, name: str, rows: Rows, chosen: Sequence[int], pairs: Pairs, transform: Transform
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the shifts of an inner parameter that were asked, what they want more, and the factor of all."""
        device = pairs.u_TI[name].device
        index_T = rows.of_sequences(chosen)
        shift_H, place_T = torch.unique(rows.shift_T[index_T].to(device), return_inverse=True)
        probability_T = pairs.probability_of_rows(name, predicts_target=rows.predicts_target)
        u_HI, delta_HO, probability_H = pairs.u_TI[name], pairs.delta_TO[name], probability_T
        if len(shift_H) < len(index_T):
            weight_T = (self._settings.stop_probability + MARGIN - probability_T).clamp(min=0)
            first_H = _first_of(place_T, len(shift_H))
            u_HI = u_HI[first_H]
            delta_HO = _weighted_mean(delta_HO, weight_T, place_T, len(shift_H))
            how = "mean" if rows.predicts_target else "amin"
            probability_H = probability_T.new_ones(len(shift_H)).scatter_reduce(
                0, place_T, probability_T, how, include_self=False
            )
        delta_HO = self._natural(name, delta_HO)
        if self._watch is not None:
            self._watch(name, shift_H, u_HI, delta_HO, probability_H)
        wanted_HO = transform(name=name, u_TI=u_HI, delta_TO=delta_HO, probability_T=probability_H)
        factor_IH = self._factor(name, self.update.keys[name], self.update.spread[name], index_T)
        return shift_H, wanted_HO.double(), factor_IH

    def _transform(self, group: Group, made: int) -> Transform:
        """Return the trained transform, in its passes and where it knows the whole group; else the gradient's."""
        trained = self._trained if made < self._settings.trained_passes else None
        if trained is not None and {param.name for param in group.params} <= set(trained.names):
            return trained
        return GradientTransform(step=self._settings.step, stop_probability=self._settings.stop_probability)


class _Least:
    """The probability of the least probable target token of each sequence, when it was last read; 0 before."""

    def __init__(self, sequences: Sequences) -> None:
        self._asked_of = sequences.asked_of
        self._of = [0.0] * len(sequences.encoded)

    def take(self, chosen: Sequence[int], pairs: Pairs) -> None:
        """Take what was read of some sequences."""
        found = pairs.least(range(len(chosen))).tolist()
        for place, value in zip(chosen, found, strict=True):
            self._of[place] = value

    def of_sequence(self, place: int) -> float:
        """Return the probability of one sequence."""
        return self._of[place]

    def of_edit(self, edit: int) -> float:
        """Return the probability of the frame that lags most."""
        return min(self._of[place] for place in self._asked_of[edit])


def _first_of(place_T: Tensor, num: int) -> Tensor:
    """Return where each of some numbers stands first."""
    counted_T = torch.arange(len(place_T), device=place_T.device)
    return counted_T.new_full((num,), len(place_T)).scatter_reduce(0, place_T, counted_T, "amin")


def _weighted_mean(rows_TO: Tensor, weight_T: Tensor, place_T: Tensor, num: int) -> Tensor:
    """Return the means of rows that have the same place, num x O; zeros where no row has a weight."""
    total_HO = rows_TO.new_zeros(num, rows_TO.shape[1]).index_add(0, place_T, rows_TO * weight_T[:, None])
    weight_H = weight_T.new_zeros(num).index_add(0, place_T, weight_T)
    return total_HO / weight_H.clamp(min=1e-12)[:, None]


def _groups(model: EditableModel, settings: EditorSettings) -> list[Group]:
    of_subject = set(settings.subject_params)
    subject = tuple(param for param in model.inner if param.name in of_subject)
    answer = tuple(param for param in model.inner if param.name not in of_subject)
    groups = [Group(params=subject, kind="subject"), Group(params=answer, kind="answer")]
    return [group for group in groups if group.params]
