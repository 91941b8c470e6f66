"""A ledger solved anew: with keys that are read again, block by block, or under a prior of another strength.

A ledger is exact for the first edited block. The keys of later blocks were read on weights that later edits have moved
since, so a long stream solves with keys that its model does not have any more. Here they are read again:

    for each inner parameter, in the order in which they run:
        K <- keys at the candidate, in which all earlier inner parameters are solved anew
        S_new = A^-1 K^T Y        A = C0 + lambda I + K^T K        the targets Y stay as they were

Guards have no target of their own: at their new keys nothing is to change from the base. Without edits to
read only the strength changes, c to c'. Then rows stay, and with C0 + lambda I = c E nothing of them is needed:

    S_new - S = -(c' - c) A'^-1 E S

Both are changes of full rank, and leave a ledger that defines the new weights: `S_new = A_new^-1 B_new`.

Legend: T rows, I in_features, O out_features.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from editors.methods.base import EditResult
from editors.methods.edit_reading import Group, Sequences, read_keys_of
from editors.methods.frames import EditFrames, frames_of
from editors.models.comm import Comm, Item, agreed, own_share, together
from editors.models.families import EditableModel, InnerParam
from editors.models.hooks import Branch
from editors.solve.ledger import Ledger
from editors.solve.packing import Packed, rounded
from editors.solve.rows import EditRows, consecutive, moved_to_disk
from editors.solve.shared_targets import KEY_BITS, SharedTargets
from editors.weights.deltas import WeightDelta, WeightStore, factors_of
from pipeline.domain.edits import Edit
from pipeline.domain.errors import EditorFailed, InvalidInput, UnknownRecord
from pipeline.domain.rank_api import EditorSettings, tell

TOGETHER = 128
"""Edits whose rows are read and kept as one batch."""
PER_FILE = 8
"""Batches whose rows of an inner parameter move to disk together; no more are in memory at a time."""

GuardsOf = Callable[[Sequence[Edit]], Mapping[str, tuple[str, ...]]]
"""The guards of some edits, by edit id."""
Solved = tuple[Sequence[EditRows], Tensor]
"""The rows of one inner parameter, batch by batch, and the change S_new - S (I x O)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RekeyJob:
    """A ledger that is to be solved anew, and what it defines now."""

    model: EditableModel
    """The model, with the weights that the ledger defines; they stay as they are."""
    weights: WeightStore
    """Its edited weights."""
    ledger: Ledger
    """Rows of the active edits; stays as it is."""
    settings: EditorSettings
    """The editor's."""
    strength: float
    """c from now on."""
    edits: Sequence[Edit] = ()
    """Every active edit, whose keys are read again; none to keep the rows."""
    batches: Sequence[EditRows] = ()
    """Other rows of every active edit, in place of its present ones; none to keep those."""
    guards_of: GuardsOf = lambda edits: {}
    """Chooses the other subjects that edits hold."""


def resolve(job: RekeyJob) -> EditResult:
    """Return the change that makes the weights what the ledger says when it is solved anew, and that ledger.

    Raises:
        EditorFailed: if a matrix is not positive definite, a number is not finite, or rows cannot be read again.
        UnknownRecord: if the edits are not those of the ledger.
    """
    began = time.perf_counter()
    batches = tuple(job.batches)
    if not job.edits and not batches:
        ledger = job.ledger.at(job.strength)
        change = _restrained(job, ledger)
    else:
        change, batches = _recaptured(job) if job.edits else (_restored(job), batches)
        own = [name for name in job.model.inner_param_names if name in job.ledger.prior.moments]
        ledger = job.ledger.at(job.strength, [rows.of_params(own) for rows in batches])
    none = EditRows(
        keys={param.name: torch.zeros(0, param.in_features) for param in job.model.inner},
        targets={param.name: torch.zeros(0, param.out_features) for param in job.model.inner},
        ranges=dict.fromkeys(job.model.inner_param_names, ()),
    )
    return EditResult(
        delta=WeightDelta.of({name: factors_of(change_IO) for name, change_IO in change.items()}),
        rows=none,
        removed_ids=(),
        num_passes=0,
        seconds={"capture": 0.0, "solve": time.perf_counter() - began},
        jitter={},
        ledger=ledger,
        batches=batches,
        distance=max(_moved(job.weights.shift(name), change_IO) for name, change_IO in change.items()),
    )


def _moved(shift_IO: Tensor, change_IO: Tensor) -> float:
    return float(change_IO.norm()) / max(float(shift_IO.double().norm()), torch.finfo(torch.float32).tiny)


def _restrained(job: RekeyJob, stronger: Ledger) -> dict[str, Tensor]:
    """Return the changes by another strength alone, of which `stronger` is the ledger."""
    shifts = _own_shifts(job)

    def solved() -> dict[str, Tensor]:
        found = {}
        for name, shift_IO in shifts.items():
            more_II = job.ledger.prior_matrix(name, job.strength - job.ledger.strength)
            found[name] = -stronger.without().factor(name).solve(more_II @ shift_IO.to(job.ledger.device)).cpu()
        return found

    return together(job.model.comm, solved)


def _restored(job: RekeyJob) -> dict[str, Tensor]:
    """Return the changes that other rows make, which are there already."""
    shifts = _own_shifts(job)
    _check_edits(job, [edit_id for rows in job.batches for edit_id in rows.edit_ids])

    def solved() -> dict[str, Tensor]:
        own = [param for param in job.model.inner if param.name in shifts]
        return {
            param.name: _solved(job, param, [rows.of_params([param.name]) for rows in job.batches]) - shifts[param.name]
            for param in own
        }

    return together(job.model.comm, solved)


def _own_shifts(job: RekeyJob) -> dict[str, Tensor]:
    """Return the whole shifts of this rank's share of the inner parameters, fp64 on the CPU; every rank has to ask."""
    own, shifts = set(own_share(job.model.comm, job.model.inner_param_names)), {}
    for name in job.model.inner_param_names:
        shift_IO = job.weights.shift(name)  # gathered one weight at a time, so every rank has to ask for each
        if name in own:
            shifts[name] = shift_IO.double().cpu()
    return shifts


def _told(name: str, items: Sequence[Item]) -> Iterator[Item]:
    """Yield items, each told as a step: a command to ranks may take as long as it has another one to tell."""
    for number, item in enumerate(items, start=1):
        tell(name, number, len(items))
        yield item


def _check_edits(job: RekeyJob, edit_ids: Sequence[str]) -> None:
    if sorted(edit_ids) != sorted(job.ledger.edit_ids):
        raise UnknownRecord(f"expected the {len(job.ledger.edit_ids)} edits of the ledger, got {len(edit_ids)}")


def _recaptured(job: RekeyJob) -> tuple[dict[str, Tensor], tuple[EditRows, ...]]:
    """Return the changes that new keys make, one inner parameter after the other, and all rows with those keys."""
    model = job.model
    _check_edits(job, [edit.edit_id for edit in job.edits])
    by_id = {edit.edit_id: edit for edit in job.edits}
    edits = [by_id[edit_id] for edit_id in job.ledger.edit_ids]
    chunks = [edits[start : start + TOGETHER] for start in range(0, len(edits), TOGETHER)]
    frames = [_frames(job, chunk) for chunk in _told("preparing the edits, part", chunks)]
    of_subject, own = set(job.settings.subject_params), set(own_share(model.comm, model.inner_param_names))
    branches: dict[str, Branch] = {}
    solved: dict[str, Solved] = {}
    # Subjects' inner parameters run before the others where there are both; a key depends on all that run before it.
    for place, param in enumerate(model.inner, start=1):
        group = Group(params=(param,), kind="subject" if param.name in of_subject else "answer")
        shift_IO = job.weights.shift(param.name)  # gathered, so every rank has to ask
        told = _told(f"reading keys again, block {place} of {len(model.inner)}, part", frames)
        parts = (_read(job, group, framed, branches) for framed in told)
        rows = _reread(job, param, chunks, parts, is_own=param.name in own)
        tell("solving anew, block", place, len(model.inner))
        solve = partial(_solved_anew, job, param, rows, shift_IO)
        solved |= _received(model.comm, together(model.comm, solve if param.name in own else dict))
        left, right = factors_of(solved[param.name][1])
        branches[param.name] = left.float().to(model.device), right.float().to(model.device)
    batches = _batches(job, {name: rows for name, (rows, _) in solved.items()})
    return {name: change_IO for name, (_, change_IO) in solved.items()}, tuple(batches)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Read:
    """What was read of some edits in one inner parameter."""

    keys_TI: Tensor
    """Keys, each times the root of its row's weight, as they are stored, fp32."""
    root_T: Tensor
    """That root, fp32; rows that are held harder were stored with a larger one."""
    is_asking_T: Tensor
    """Whether a row asks for a shift; a guard's does not."""
    lengths: tuple[int, ...]
    """Rows of each edit."""


def _reread(
    job: RekeyJob, param: InnerParam, chunks: Sequence[Sequence[Edit]], parts: Iterable[_Read], *, is_own: bool
) -> list[EditRows]:
    """Return the new rows of an inner parameter on the rank that solves it; every rank has to read them."""
    rows: list[EditRows] = []
    waiting: list[EditRows] = []
    for chunk, read in zip(chunks, parts, strict=True):
        waiting += agreed(job.model.comm, partial(_rows, job, param, chunk, read) if is_own else list)
        if len(waiting) >= PER_FILE:
            rows, waiting = [*rows, *moved_to_disk(waiting)], []
    return [*rows, *moved_to_disk(waiting)]


def _solved_anew(job: RekeyJob, param: InnerParam, rows: Sequence[EditRows], shift_IO: Tensor) -> dict[str, Solved]:
    """Return the new rows of an inner parameter and the change that they make, by its name."""
    return {param.name: (rows, _solved(job, param, rows) - shift_IO.double().cpu())}


def _received(comm: Comm, solved: Mapping[str, Solved]) -> Mapping[str, Solved]:
    """Return what is kept here of what ranks have solved: rows from another one are in memory, and move to disk."""
    if comm.num_ranks == 1:
        return solved
    return {
        name: (moved_to_disk([replace(one, is_mapped=False) for one in rows]), change_IO)
        for name, (rows, change_IO) in solved.items()
    }


def _frames(job: RekeyJob, edits: Sequence[Edit]) -> list[EditFrames]:
    guards = job.guards_of(edits)
    return agreed(
        job.model.comm,
        lambda: [_frames_of_one(job, edit, guards.get(edit.edit_id, ())) for edit in edits],
    )


def _frames_of_one(job: RekeyJob, edit: Edit, guards: tuple[str, ...]) -> EditFrames:
    try:
        return frames_of(job.model, edit, job.settings, guards)
    except InvalidInput as error:  # rules may have become stricter since it was made
        raise EditorFailed(f"edit {edit.edit_id} cannot be read again: {error}", edit_id=edit.edit_id) from error


def _are_shared(job: RekeyJob) -> bool:
    return job.settings.frames_per_pass > 0 and job.model.has_subject_keys


def _read(job: RekeyJob, group: Group, frames: Sequence[EditFrames], branches: Mapping[str, Branch]) -> _Read:
    """Read the keys of some edits in the one inner parameter of a group, at the candidate."""
    [param], sequences = group.params, Sequences.of(frames, group)
    rows = sequences.rows(job.model, range(len(frames)), are_shared=_are_shared(job))[param.name]
    keys_TI = read_keys_of(job.model, sequences, range(len(sequences.encoded)), branches)[param.name]
    root_T = rows.weight_T.sqrt()
    scaled_TI = (keys_TI.double() * root_T[:, None].to(keys_TI.device)).float()
    # As in a pass: what is solved with is what will be stored.
    stored_TI = (rounded(scaled_TI, bits=KEY_BITS) if _are_shared(job) else scaled_TI).cpu()
    return _Read(keys_TI=stored_TI, root_T=root_T.float(), is_asking_T=rows.shift_T >= 0, lengths=rows.lengths)


def _rows(job: RekeyJob, param: InnerParam, edits: Sequence[Edit], read: _Read) -> list[EditRows]:
    """Return the new rows of some edits, as one batch; those that have none in an inner parameter get none.

    Raises:
        EditorFailed: if an edit's frames give other rows than it has.
    """
    keys: list[Tensor] = []
    targets: list[Tensor | SharedTargets] = []
    lengths, first = [], 0
    for edit, num in zip(edits, read.lengths, strict=True):
        place, first = slice(first, first + num), first + num
        stored = job.ledger.targets_of(param.name, edit.edit_id)
        if not len(stored):
            lengths.append((edit.edit_id, 0))
            continue
        asking = stored[_asking(stored)]
        is_asking_T, keys_TI = read.is_asking_T[place], read.keys_TI[place]
        if len(asking) != int(is_asking_T.sum()) or isinstance(asking, SharedTargets) != _are_shared(job):
            raise EditorFailed(
                f"expected {len(asking)} rows of edit {edit.edit_id} in {param.name}, got {int(is_asking_T.sum())}: "
                "it was made when edits were read otherwise; submit it once more",
                edit_id=edit.edit_id,
            )
        # An edit's guards are its last rows, here as there.
        if isinstance(asking, SharedTargets):
            # Its own may be held harder than they are asked, which their targets show.
            keys_TI = keys_TI.clone()
            keys_TI[is_asking_T] *= (read.root_T[place][is_asking_T] / asking.root_T)[:, None]
        keys.append(keys_TI)
        targets.append(asking)
        if isinstance(asking, SharedTargets):
            num_guards, out = int((~is_asking_T).sum()), param.out_features
            nothing = torch.zeros(num_guards, out), torch.zeros(num_guards, 0), torch.zeros(0, out)
            targets.append(SharedTargets.of(*nothing))
        lengths.append((edit.edit_id, num))
    return [_joined_rows(param, keys, targets, lengths, are_shared=_are_shared(job))]


def _joined_rows(
    param: InnerParam,
    keys: Sequence[Tensor],
    targets: Sequence[Tensor | SharedTargets],
    lengths: Sequence[tuple[str, int]],
    *,
    are_shared: bool,
) -> EditRows:
    keys_TI = torch.cat([torch.zeros(0, param.in_features), *keys])
    name, shared = param.name, [one for one in targets if isinstance(one, SharedTargets)]
    if are_shared and shared:
        return EditRows(
            keys={name: Packed.of(keys_TI, bits=KEY_BITS)},
            targets={name: SharedTargets.joined(shared)},
            ranges={name: consecutive(lengths)},
        )
    targets_TO = torch.cat([torch.zeros(0, param.out_features), *(one for one in targets if isinstance(one, Tensor))])
    return EditRows(keys={name: keys_TI}, targets={name: targets_TO}, ranges={name: consecutive(lengths)})


def _asking(targets: Tensor | SharedTargets) -> Tensor:
    """Return which rows ask for a shift."""
    if isinstance(targets, Tensor):
        return torch.arange(len(targets))
    return (targets.shift_T >= 0).nonzero()[:, 0]


def _solved(job: RekeyJob, param: InnerParam, batches: Sequence[EditRows]) -> Tensor:
    """Return S of an inner parameter as its rows define it, I x O, fp64 on the CPU."""
    return job.ledger.at(job.strength, batches, names=(param.name,)).shift(param.name)


def _batches(job: RekeyJob, rows: Mapping[str, Sequence[EditRows]]) -> Iterator[EditRows]:
    """Yield the rows of all inner parameters, batch by batch."""
    names = job.model.inner_param_names
    for parts in zip(*(rows[name] for name in names), strict=True):
        of_param = dict(zip(names, parts, strict=True))
        yield EditRows(
            keys={name: part.keys[name] for name, part in of_param.items()},
            targets={name: part.targets[name] for name, part in of_param.items()},
            ranges={name: part.ranges[name] for name, part in of_param.items()},
            is_mapped=all(part.is_mapped for part in parts),
        )
