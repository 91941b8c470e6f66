"""Knows how a batch of edits is asked for in passes, each on the candidate that the pass before gave.

A pass captures keys and gradients, lets a transform say what is missing, adds it to what the batch has asked so far
and solves again; the rows of a pass replace those of the pass before. The candidate is a side branch: no weight is
written. Inner parameters whose rows are subject tokens are asked first: there one row serves every way of asking
for the fact. The others, whose rows are answer tokens, get what is still missing then, and edits without a subject.
Does not know which solver it serves.

Legend: T edit rows, N target tokens in a part, B sequences, I in_features, O out_features, R rank.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from editors.capture import Branch, capturing_at, side_branch
from editors.families import EditableModel, InnerParam, TargetBatch
from editors.prompts import KeyTokens
from editors.rows import Ranges, consecutive
from editors.transform import GradientTransform, TrainedTransform, Transform
from pipeline.domain.edits import Edit
from pipeline.domain.errors import EditorFailed
from pipeline.domain.trials import EditorSettings

Factor = Callable[[str, Tensor], Tensor]
"""(inner parameter, K T x I) -> F (I x T): the solver's update for shifts D is `F D`; fp64."""
Factors = dict[str, tuple[Tensor, Tensor]]
"""Inner parameter -> (F I x R, D R x O), fp64: a change."""


@dataclass(kw_only=True, slots=True)
class Asked:
    """What a batch came to ask for."""

    keys: dict[str, Tensor]
    """Inner parameter -> K (T x I), fp64 on the CPU: at the candidate of the last pass but one."""
    shifts: dict[str, Tensor]
    """Inner parameter -> R (T x O), fp64: summed over the passes."""
    factors: dict[str, Tensor]
    """Inner parameter -> F (I x T), fp64."""
    ranges: dict[str, Ranges]
    """Inner parameter -> rows of each edit."""
    num_passes: int = 0
    """Passes that asked for something."""
    seconds: dict[str, float] = field(default_factory=lambda: {"capture": 0.0, "solve": 0.0})
    """Wall time of `capture` and `solve`."""

    @property
    def change(self) -> Factors:
        """What the solver makes of it."""
        return {name: (self.factors[name], self.shifts[name]) for name in self.keys}


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Inner parameters that are asked together."""

    params: tuple[InnerParam, ...]
    """In the order in which they run."""
    kind: KeyTokens
    """Which tokens are their rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Some sequences of a batch of edits, in one forward."""

    batch: TargetBatch
    """The sequences."""
    edit_B: Tensor
    """Which edit each is of: its place in the batch."""
    places: dict[str, tuple[Tensor, Tensor]]
    """Inner parameter -> rows and positions of its keys."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What a forward and a backward say about the edits of a group, its rows in the order of the edits."""

    u_TI: dict[str, Tensor]
    """Inner parameter -> keys."""
    delta_TO: dict[str, Tensor]
    """Inner parameter -> gradients of the loss at its outputs."""
    probability_T: dict[str, Tensor]
    """Inner parameter -> probability of a row's target token; of its edit's least probable one where it has none."""
    least_E: Tensor
    """Probability of the least probable target token of each edit."""


def run_passes(
    model: EditableModel,
    edits: Sequence[Edit],
    *,
    settings: EditorSettings,
    trained: TrainedTransform | None,
    factor: Factor,
    start: Mapping[str, tuple[Tensor, Tensor]],
) -> Asked:
    """Ask until every target token is probable enough, or the passes are used up.

    Args:
        model: holds the weights that are edited; they are not touched.
        edits: what to ask for; at least one.
        settings: which weights, which tokens, how many passes, and when an edit rests.
        trained: asks the first `settings.trained_passes` of each group; the gradient asks the others.
        factor: the solver.
        start: a change (F, D by inner parameter) that the candidate has before the first pass.

    Raises:
        EditorFailed: if a probability is not finite.
    """
    asked = _nothing(model)
    groups = _groups(model, settings)
    pending = list(edits)
    for place, group in enumerate(groups):
        is_last = place == len(groups) - 1
        least = _ask(model, pending, group, asked, settings, trained, factor, start, is_first=place == 0)
        if not is_last:
            pending = _missing(model, pending, asked, least, settings, {**start, **_joined_all(start, asked.change)})
        if not pending:
            break
    return asked


def joined(first: tuple[Tensor, Tensor] | None, second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Factors of the sum of two low-rank changes."""
    if first is None:
        return second
    return torch.cat([first[0], second[0]], dim=1), torch.cat([first[1], second[1]])


def _joined_all(start: Mapping[str, tuple[Tensor, Tensor]], change: Factors) -> Factors:
    return {name: joined(start.get(name), factors) for name, factors in change.items()}


def _nothing(model: EditableModel) -> Asked:
    asked = Asked(keys={}, shifts={}, factors={}, ranges={})
    for param in model.inner:
        asked.keys[param.name] = torch.zeros(0, param.in_features, dtype=torch.float64)
        asked.shifts[param.name] = torch.zeros(0, param.out_features, dtype=torch.float64)
        asked.factors[param.name] = torch.zeros(param.in_features, 0, dtype=torch.float64)
        asked.ranges[param.name] = ()
    return asked


def _groups(model: EditableModel, settings: EditorSettings) -> list[Group]:
    of_subject = set(settings.subject_params)
    subject = tuple(param for param in model.inner if param.name in of_subject)
    answer = tuple(param for param in model.inner if param.name not in of_subject)
    groups = [Group(params=subject, kind="subject"), Group(params=answer, kind="answer")]
    return [group for group in groups if group.params]


def _ask(
    model: EditableModel,
    edits: Sequence[Edit],
    group: Group,
    asked: Asked,
    settings: EditorSettings,
    trained: TrainedTransform | None,
    factor: Factor,
    start: Mapping[str, tuple[Tensor, Tensor]],
    *,
    is_first: bool,
) -> Tensor | None:
    """Make the passes of one group; the edits' least probabilities at its end, or None if nobody looked there."""
    candidate = {**start, **_joined_all(start, asked.change)}
    with side_branch(model.module, _branches(model, candidate)):
        parts = _parts(model, edits, group, settings.rephrase_rows)
    lengths = _rows_of_edits(parts, group, len(edits))
    for made in range(settings.num_passes):
        began = time.perf_counter()
        reading = _read(model, parts, group, len(edits), _branches(model, candidate))
        captured = time.perf_counter()
        asked.seconds["capture"] += captured - began
        if (made or not is_first) and _all_rest(reading, settings.rest):
            return reading.least_E
        transform = _transform(trained if made < settings.trained_passes else None, group, settings)
        for param in group.params:
            name = param.name
            if not made:
                asked.ranges[name] = consecutive(
                    [(edit.edit_id, length) for edit, length in zip(edits, lengths[name], strict=True)]
                )
                asked.shifts[name] = torch.zeros(sum(lengths[name]), param.out_features, dtype=torch.float64)
            if not len(reading.u_TI[name]):
                continue
            wanted = transform(
                name=name,
                u_TI=reading.u_TI[name],
                delta_TO=reading.delta_TO[name],
                probability_T=reading.probability_T[name],
            )
            asked.keys[name] = reading.u_TI[name].double().cpu()
            asked.shifts[name] = asked.shifts[name] + wanted.double().cpu()
            asked.factors[name] = factor(name, asked.keys[name])
            candidate[name] = joined(start.get(name), (asked.factors[name], asked.shifts[name]))
        asked.num_passes += 1
        asked.seconds["solve"] += time.perf_counter() - captured
    return None


def _transform(trained: TrainedTransform | None, group: Group, settings: EditorSettings) -> Transform:
    """The trained transform where it was trained for the whole group, else the gradient."""
    if trained is not None and {param.name for param in group.params} <= set(trained.names):
        return trained
    return GradientTransform(step=settings.step, rest=settings.rest)


def _all_rest(reading: Reading, rest: float) -> bool:
    return all(bool((probability_T >= rest).all()) for probability_T in reading.probability_T.values())


def _missing(
    model: EditableModel,
    edits: Sequence[Edit],
    asked: Asked,
    least_E: Tensor | None,
    settings: EditorSettings,
    candidate: Factors,
) -> list[Edit]:
    """Edits that the groups so far have left short of rest, and those that have no row in them."""
    if least_E is None:
        parts = _parts(model, edits, None, settings.rephrase_rows)
        with torch.no_grad(), side_branch(model.module, _branches(model, candidate)):
            pieces = [(part, _target_log_probability(model, part.batch).exp()) for part in parts]
        least_E = _least(pieces, len(edits))
    has_rows = {edit_id for ranges in asked.ranges.values() for edit_id, first, end in ranges if end > first}
    return [
        edit
        for edit, least in zip(edits, least_E.tolist(), strict=True)
        if least < settings.rest or edit.edit_id not in has_rows
    ]


def _parts(model: EditableModel, edits: Sequence[Edit], group: Group | None, rephrase_rows: int) -> list[Part]:
    """The edits, each with the rephrases that are edit rows, as batches of bounded size."""
    asked = [
        (place, prompt, edit.request)
        for place, edit in enumerate(edits)
        for prompt in (edit.request.prompt, *edit.request.row_rephrases(rephrase_rows))
    ]
    sequences = [model.encode_pair(prompt, request.target_new, request.subject) for _, prompt, request in asked]
    parts = []
    for chosen, batch in model.chunked(sequences):
        edit_B = torch.tensor([asked[index][0] for index in chosen], device=model.device)
        if group is None:
            parts.append(Part(batch=batch, edit_B=edit_B, places={}))
            continue
        places = {param.name: model.key_positions(batch, param, group.kind) for param in group.params}
        parts.append(Part(batch=model.prefixed(batch, group.params), edit_B=edit_B, places=places))
    return parts


def _rows_of_edits(parts: Sequence[Part], group: Group, num_edits: int) -> dict[str, list[int]]:
    """Inner parameter -> how many rows each edit has there."""
    return {
        param.name: torch.stack(
            [torch.bincount(part.edit_B[part.places[param.name][0]], minlength=num_edits) for part in parts]
        )
        .sum(dim=0)
        .tolist()
        for param in group.params
    }


def _read(
    model: EditableModel,
    parts: Sequence[Part],
    group: Group,
    num_edits: int,
    branches: Mapping[str, Branch],
) -> Reading:
    """Keys, gradients and target probabilities of all rows, fp32, at the candidate."""
    pieces, seen_parts = [], []
    with side_branch(model.module, branches):
        for part in parts:
            batch = part.batch
            with capturing_at(model.module, [(param, part.places[param.name]) for param in group.params]) as seen:
                log_probability_N = _target_log_probability(model, batch)
                tokens_B = torch.bincount(batch.row_N, minlength=batch.num_rows)
                loss = -(log_probability_N / tokens_B[batch.row_N]).sum()
                seen_parts.append((seen.u_NI, seen.deltas(loss)))
                pieces.append((part, log_probability_N.detach().exp()))
    least_E = _least(pieces, num_edits)
    u_TI, delta_TO, probability_T = {}, {}, {}
    for param in group.params:
        name = param.name
        edit_T = torch.cat([part.edit_B[part.places[name][0]] for part in parts])
        order_T = edit_T.argsort(stable=True)
        u_TI[name] = torch.cat([u[name] for u, _ in seen_parts])[order_T]
        delta_TO[name] = torch.cat([delta[name] for _, delta in seen_parts])[order_T]
        probability_T[name] = torch.cat([_of_rows(part, name, own_N, least_E) for part, own_N in pieces])[order_T]
    return Reading(u_TI=u_TI, delta_TO=delta_TO, probability_T=probability_T, least_E=least_E)


def _of_rows(part: Part, name: str, probability_N: Tensor, least_E: Tensor) -> Tensor:
    """A row's own token's probability where rows are target tokens, else that of its edit's least probable one."""
    row_T = part.places[name][0]
    return probability_N if row_T is part.batch.row_N else least_E[part.edit_B[row_T]]


def _least(pieces: Sequence[tuple[Part, Tensor]], num_edits: int) -> Tensor:
    """The least probability of each edit's target tokens.

    Raises:
        EditorFailed: if one is not finite.
    """
    edit_N = torch.cat([part.edit_B[part.batch.row_N] for part, _ in pieces])
    probability_N = torch.cat([probability for _, probability in pieces])
    if not bool(torch.isfinite(probability_N).all()):
        raise EditorFailed("expected finite probabilities of the target tokens, got NaN or infinity")
    return torch.ones(num_edits, device=probability_N.device).scatter_reduce(0, edit_N, probability_N, "amin")


def _target_log_probability(model: EditableModel, batch: TargetBatch) -> Tensor:
    logits_NV = model.target_logits(batch).float()
    return logits_NV.gather(1, batch.target_N[:, None])[:, 0] - logits_NV.logsumexp(dim=1)


def _branches(model: EditableModel, candidate: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Branch]:
    return {
        name: (left.float().to(model.device), right.float().to(model.device))
        for name, (left, right) in candidate.items()
        if left.shape[1]
    }
