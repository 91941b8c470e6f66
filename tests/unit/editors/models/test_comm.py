"""What ranks divide comes out as what one of them makes alone: batches, removals, and both, for any number of ranks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from editors.measure.scoring import Score
from editors.methods import edit_reading
from editors.methods.base import EditJob, EditResult
from editors.methods.memoryless import MemorylessEditor
from editors.methods.recursive import RecursiveEditor
from editors.methods.rekeying import RekeyJob, resolve
from editors.models.comm import ALONE, Comm, agreed, merged, own_share, together
from editors.solve.ledger import Ledger
from editors.solve.prior import Prior
from editors.solve.rows import EditRows
from editors.weights.deltas import PlainWeights
from pipeline.domain.edits import Edit
from pipeline.domain.errors import EditorFailed, UnknownRecord
from tests.support.framed_parts import CHAT_TEMPLATE, edited, framed_edits, framed_job, framed_settings
from tests.support.ledger_parts import SETTINGS, Rig, edits_of, make_rig
from tests.support.scored import score_pairs
from tests.support.tiny_families import tiny_model
from tests.support.waiting import patience

SEEDED = threading.Lock()
"""Models of random weights are drawn with the seed of the process: one at a time."""


class ThreadPeers:
    """Ranks as threads of one process; a rank that waits alone for too long fails the test."""

    def __init__(self, rank: int, barrier: threading.Barrier, shared: list[Any]) -> None:
        self.rank, self.num_ranks = rank, barrier.parties
        self._barrier, self._shared = barrier, shared

    def gathered(self, own: Any) -> list[Any]:
        self._shared[self.rank] = own
        self._barrier.wait(patience())
        found = list(self._shared)
        self._barrier.wait(patience())
        return found


def on_ranks(num_ranks: int, work: Callable[[Comm], Any]) -> list[Any]:
    """What each rank comes to, or the error that it raised."""
    barrier, shared = threading.Barrier(num_ranks), [None] * num_ranks

    def run(rank: int) -> Any:
        try:
            return work(ThreadPeers(rank, barrier, shared))
        except (EditorFailed, UnknownRecord) as error:
            return error

    with ThreadPoolExecutor(num_ranks) as pool:
        return list(pool.map(run, range(num_ranks)))


@pytest.fixture(autouse=True)
def _several_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small that every rank has one to read, or a filler."""
    monkeypatch.setattr(edit_reading, "READ_TOKENS", 12)


def rig_of(folder: Path, comm: Comm) -> Rig:
    """A rig whose ledger knows what its rank solves for."""
    with SEEDED:
        rig = make_rig(folder / f"{comm.num_ranks}-{comm.rank}")
    rig.model.comm = comm
    own = own_share(comm, rig.model.inner_param_names)
    prior = rig.ledger.prior
    kept = Prior(
        moments={name: prior.moments[name] for name in own},
        gradient_moments={name: prior.gradient_moments[name] for name in own},
        num_tokens=prior.num_tokens,
    )
    ledger = Ledger(kept, strength=SETTINGS.prior_strength, ridge=SETTINGS.ridge)
    return Rig(model=rig.model, weights=rig.weights, ledger=ledger)


def life(rig: Rig) -> tuple[dict[str, Tensor], list[Score], tuple[str, ...]]:
    """Edits come, some are replaced while others come, and some only go: the shifts, answers and edits in the end."""
    first, second = edits_of(0, 1, 2), edits_of(3)
    steps: Sequence[tuple[list[Edit], list[str]]] = (
        (first, []),
        (second, [first[0].edit_id]),
        ([], [first[1].edit_id]),
    )
    editor = RecursiveEditor(SETTINGS)
    for added, removed in steps:
        keep(
            rig,
            editor.edit(
                EditJob(model=rig.model, weights=rig.weights, ledger=rig.ledger, added=added, removed_ids=removed)
            ),
        )
    asked = [(edit.request.prompt, edit.request.target_new) for edit in (*first, *second)]
    shifts = {name: rig.weights.shift(name).clone() for name in rig.model.inner_param_names}
    return shifts, score_pairs(rig.model, asked), rig.ledger.edit_ids


def keep(rig: Rig, result: EditResult) -> None:
    rig.weights.apply(result.delta)
    rig.ledger.commit(result.rows, result.removed_ids)


@pytest.mark.parametrize("num_ranks", [2, 3, 5])
def test_a_ledger_and_weights_live_on_ranks_as_they_do_alone(num_ranks: int, tmp_path: Path) -> None:
    shifts, scores, edit_ids = life(rig_of(tmp_path, ALONE))
    for own_shifts, own_scores, own_ids in on_ranks(num_ranks, lambda comm: life(rig_of(tmp_path, comm))):
        assert own_ids == edit_ids
        assert [score.hits for score in own_scores] == [score.hits for score in scores]
        assert all(torch.equal(own_shifts[name], shift) for name, shift in shifts.items())


class GatheredWeights(PlainWeights):
    """Weights whose shifts all ranks have to ask for together, as for those of partitions."""

    def __init__(self, rig: Rig) -> None:
        super().__init__(rig.model.module, rig.model.inner)
        self._comm = rig.model.comm

    def shift(self, name: str) -> Tensor:
        assert self._comm.gathered(f"shift of {name}") == [f"shift of {name}"] * self._comm.num_ranks
        return super().shift(name)


def solved_anew(rig: Rig) -> list[dict[str, Tensor]]:
    """The shifts after another strength alone, keys that are read again, and rows of before."""
    rig = replace(rig, weights=GatheredWeights(rig))
    edits = edits_of(0, 1, 2, 3)
    keep(rig, RecursiveEditor(SETTINGS).edit(framed_job(rig, edits, guards=())))
    found: list[dict[str, Tensor]] = []
    batches: Sequence[EditRows] = ()
    for strength, has_keys, has_batches in ((0.2, False, False), (0.3, True, False), (0.4, False, True)):
        result = resolve(
            RekeyJob(
                model=rig.model,
                weights=rig.weights,
                ledger=rig.ledger,
                settings=SETTINGS,
                strength=strength,
                edits=edits if has_keys else (),
                batches=batches if has_batches else (),
            )
        )
        batches = result.batches
        assert result.ledger is not None
        rig = replace(rig, ledger=result.ledger)
        rig.weights.apply(result.delta)
        found.append({name: rig.weights.shift(name).clone() for name in rig.model.inner_param_names})
    return found


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_a_ledger_is_solved_anew_on_ranks_as_it_is_alone(num_ranks: int, tmp_path: Path) -> None:
    expected = solved_anew(rig_of(tmp_path, ALONE))
    for own in on_ranks(num_ranks, lambda comm: solved_anew(rig_of(tmp_path, comm))):
        for found, shifts in zip(own, expected, strict=True):
            assert all(torch.equal(found[name], shift) for name, shift in shifts.items())


def framed_life(rig: Rig) -> tuple[dict[str, Tensor], dict[str, Tensor], tuple[str, ...]]:
    """Edits in frames and with guards come, one is replaced and one goes: shifts, keys of rows and edits in the end."""
    rig.model.tokenizer.chat_template = CHAT_TEMPLATE
    first, second, third = framed_edits()
    settings = framed_settings(rig, num_subject=2, num_passes=4)
    edited(rig, settings, framed_job(rig, [first, third]))
    made = edited(rig, settings, framed_job(rig, [second], removed=(first.edit_id,)))
    edited(rig, settings, framed_job(rig, [], removed=(third.edit_id,)))
    shifts = {name: rig.weights.shift(name).clone() for name in rig.model.inner_param_names}
    return shifts, {name: made.rows.keys_of(name) for name in shifts}, rig.ledger.edit_ids


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_edits_in_frames_and_with_guards_live_on_ranks_as_they_do_alone(num_ranks: int, tmp_path: Path) -> None:
    shifts, keys, edit_ids = framed_life(rig_of(tmp_path, ALONE))
    for own_shifts, own_keys, own_ids in on_ranks(num_ranks, lambda comm: framed_life(rig_of(tmp_path, comm))):
        assert own_ids == edit_ids
        assert all(torch.equal(own_shifts[name], shift) for name, shift in shifts.items())
        assert all(torch.equal(own_keys[name], rows) for name, rows in keys.items())


def test_the_solvers_without_a_ledger_are_divided_too(tmp_path: Path) -> None:
    def made(comm: Comm) -> dict[str, tuple[Tensor, Tensor]]:
        rig = rig_of(tmp_path, comm)
        return (
            MemorylessEditor(SETTINGS)
            .edit(EditJob(model=rig.model, weights=rig.weights, ledger=rig.ledger, added=edits_of(0, 1)))
            .delta.factors
        )

    expected = made(ALONE)
    for found in on_ranks(2, made):
        for name, pair in expected.items():
            assert all(torch.equal(own, factor) for own, factor in zip(found[name], pair, strict=True))


@pytest.mark.parametrize("name", ["llama", "t5", "bert"])
@pytest.mark.parametrize("forward_tokens", [1, 32])
def test_free_answers_are_those_of_one_rank_after_as_many_forwards_on_each(
    name: str, forward_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("editors.models.causal.FORWARD_TOKENS", forward_tokens)
    prompts = ["who is king", "the capital of Japan is", "the river of Rome", "a mountain", "who"]

    def said(comm: Comm, *, count: int) -> tuple[list[str], int]:
        with SEEDED:
            model = tiny_model(name)
        model.comm = comm
        forwards: list[None] = []
        model.module.register_forward_hook(lambda *_: forwards.append(None))
        return model.generate(prompts[:count], max_new_tokens=4), len(forwards)

    for count in (1, len(prompts)):
        expected, _ = said(ALONE, count=count)
        found = on_ranks(3, lambda comm, count=count: said(comm, count=count))
        assert [answers for answers, _ in found] == [expected] * 3
        assert len({num_forwards for _, num_forwards in found}) == 1


def test_what_one_rank_refuses_every_rank_refuses() -> None:
    def checked(comm: Comm) -> str:
        return agreed(comm, lambda: refuse_on(comm, 1))

    found = on_ranks(3, checked)
    assert [str(error) for error in found] == ["rank 1 cannot"] * 3
    assert all(isinstance(error, EditorFailed) for error in found)
    alone = on_ranks(3, lambda comm: agreed(comm, lambda: refuse_on(comm, 9)))
    assert alone == ["rank 0 can", "rank 1 can", "rank 2 can"]


def refuse_on(comm: Comm, rank: int) -> str:
    if comm.rank == rank:
        raise EditorFailed(f"rank {rank} cannot")
    return f"rank {comm.rank} can"


def test_what_ranks_found_comes_together_in_order() -> None:
    def found(comm: Comm) -> tuple[list[int], dict[str, int]]:
        places = own_share(comm, range(7))
        by_name = together(comm, lambda: {f"of {comm.rank}": comm.rank})
        return merged(comm, {place: place * place for place in places}), by_name

    squares = [place * place for place in range(7)]
    assert on_ranks(3, found) == [(squares, {"of 0": 0, "of 1": 1, "of 2": 2})] * 3


def test_an_edit_that_no_rank_knows_is_unknown_to_all(tmp_path: Path) -> None:
    def removed(comm: Comm) -> EditResult:
        rig = rig_of(tmp_path, comm)
        return RecursiveEditor(SETTINGS).edit(
            EditJob(model=rig.model, weights=rig.weights, ledger=rig.ledger, removed_ids=["nobody"])
        )

    assert all(isinstance(error, UnknownRecord) for error in on_ranks(2, removed))
