"""The thread that runs models: turns, bounds, and who keeps which snapshot."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from editors.weights.loading import load_base
from editors.weights.swapping import SwappableBase
from tests.support.served import random_delta
from tests.support.tiny_models import save_tiny_llama
from tests.support.waiting import patience
from workers.serving import generation_thread
from workers.serving.answering import Piece, Sampling
from workers.serving.generation_thread import AnswerableSnapshot, GenerationThread, Job, QueueFull

STEM = "the capital of Japan is"


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory: pytest.TempPathFactory) -> list[AnswerableSnapshot]:
    """A base, and two snapshots of it that answer otherwise."""
    folder = tmp_path_factory.mktemp("base")
    save_tiny_llama(folder)
    base = SwappableBase(load_base(folder))
    deltas = [random_delta(base.model, folder / f"{seed}.safetensors", seed=seed) for seed in (1, 2)]
    edited = [
        base.edited(digest=str(num), inner_param_names=(), accumulator=None, deltas=deltas[:num]) for num in range(3)
    ]
    return [AnswerableSnapshot(base=base, edited=one) for one in edited]


@dataclass
class Told:
    """What a job says, and a gate that may hold its thread after the first piece."""

    gate: threading.Event = field(default_factory=threading.Event)
    begun: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    text: str = ""
    num_pieces: int = 0
    error: Exception | None = None

    def pieces(self, pieces: list[Piece]) -> None:
        self.text += "".join(piece.text for piece in pieces)
        self.num_pieces += 1
        self.begun.set()
        assert self.gate.wait(patience(60))

    def end(self, error: Exception | None) -> None:
        self.error = error
        self.ended.set()

    def result(self) -> str:
        assert self.ended.wait(patience(60))
        return self.text


def job(
    snapshot: AnswerableSnapshot, told: Told, *, max_tokens: int = 8, prompts: Sequence[Sequence[int]] | None = None
) -> Job:
    asked = prompts or [snapshot.base.model.encode_raw(STEM)]
    sampling = Sampling(max_tokens=max_tokens)
    return Job(snapshot, asked, sampling, on_pieces=told.pieces, on_end=told.end)


def alone(snapshot: AnswerableSnapshot) -> str:
    snapshot.base.use(snapshot.edited)
    return snapshot.base.model.generate([STEM], max_new_tokens=8)[0]


def opened() -> Told:
    told = Told()
    told.gate.set()
    return told


def test_requests_that_run_at_once_each_keep_their_own_snapshot(snapshots: list[AnswerableSnapshot]) -> None:
    expected = [alone(snapshot) for snapshot in snapshots]
    assert len(set(expected)) == 3
    told = [Told() for _ in snapshots]
    with GenerationThread() as thread:
        for snapshot, one in zip(snapshots, told, strict=True):
            thread.submit(job(snapshot, one))
        for one in told:
            one.gate.set()
        assert [one.result() for one in told] == expected


def test_a_full_queue_refuses_and_a_cancelled_request_makes_room(snapshots: list[AnswerableSnapshot]) -> None:
    with GenerationThread(most_active=1, most_waiting=1) as thread:
        running, waiting = Told(), opened()
        first = job(snapshots[0], running, max_tokens=100)
        thread.submit(first)
        assert running.begun.wait(patience(60))
        thread.submit(job(snapshots[0], waiting))
        with pytest.raises(QueueFull):
            thread.submit(job(snapshots[0], opened()))
        assert (thread.num_active, thread.num_waiting) == (0, 1)  # the running one is in the thread's hands
        first.cancel()
        running.gate.set()
        assert waiting.result() == alone(snapshots[0])
        assert running.ended.wait(patience(60))
        assert running.num_pieces == 1, "nothing is made for who has gone"


@pytest.mark.parametrize(
    ("budget", "expected"),
    [(1, [[0], [2], [3], [4]]), (40, [[0, 2], [3], [4]]), (60, [[0, 2], [3, 4]]), (120, [[0, 2, 3, 4]])],
)
def test_a_batch_is_as_large_as_its_longest_prompt_allows(
    monkeypatch: pytest.MonkeyPatch, budget: int, expected: list[list[int]]
) -> None:
    monkeypatch.setattr(generation_thread, "BATCH_TOKENS", budget)
    prompts = [[1] * length for length in (10, 99, 10, 20, 1)]
    assert list(generation_thread._batches([0, 2, 3, 4], prompts, 10)) == expected


def test_answers_that_do_not_fit_into_memory_together_come_one_after_another(
    monkeypatch: pytest.MonkeyPatch, snapshots: list[AnswerableSnapshot]
) -> None:
    monkeypatch.setattr(generation_thread, "BATCH_TOKENS", 1)
    told, prompt = opened(), snapshots[1].base.model.encode_raw(STEM)
    with GenerationThread() as thread:
        thread.submit(job(snapshots[1], told, prompts=[prompt] * 3))
        assert told.result() == alone(snapshots[1]) * 3


def test_a_request_that_fails_takes_no_other_with_it(snapshots: list[AnswerableSnapshot]) -> None:
    with GenerationThread() as thread:
        broken, well = opened(), opened()
        thread.submit(job(snapshots[0], broken, prompts=[[10**9]]))
        thread.submit(job(snapshots[1], well))
        assert well.result() == alone(snapshots[1])
        assert broken.ended.wait(patience(60))
        assert isinstance(broken.error, IndexError)
        assert thread.is_alive


def test_work_between_steps_happens_while_a_request_runs_and_errors_come_back(
    snapshots: list[AnswerableSnapshot],
) -> None:
    with GenerationThread() as thread:
        told = opened()
        thread.submit(job(snapshots[0], told, max_tokens=50))
        assert thread.between_steps(lambda: threading.current_thread().name) == "generation"
        with pytest.raises(ZeroDivisionError):
            thread.between_steps(lambda: 1 // 0)
        told.result()
        assert thread.seconds_without_progress() == 0


def test_closing_ends_what_runs_with_an_error(snapshots: list[AnswerableSnapshot]) -> None:
    told = Told()
    thread = GenerationThread()
    with thread:
        thread.submit(job(snapshots[0], told, max_tokens=10_000))
        assert told.begun.wait(patience(60))
        told.gate.set()
    assert told.ended.is_set()
    assert not thread.is_alive
