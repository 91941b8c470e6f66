"""The controller of a group of ranks: it gives commands, waits for answers, and starts other ranks after a failure.

    with RankGroup(RankSpec(num_ranks=2), command_timeout=timedelta(minutes=10)) as group:
        group.load(plan, epoch=1)
        group.try_edits(candidate)

It remembers what the ranks hold, so that nothing is sent to them twice.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Self, TypeVar

from pipeline.domain.errors import CorrigendaError, EngineFailed, Misconfigured
from pipeline.domain.rank_api import (
    Answer,
    Candidate,
    CandidateOutcome,
    EditorSettings,
    ExportedModel,
    KeptFiles,
    Loaded,
    LoadPlan,
    tell,
)
from workers.commands import Command, Export, Free, Generate, Held, Keep, Load, Ping, Reply, Request, Shutdown, TryEdits
from workers.controller.rank_processes import RankProcesses, RankSpec
from workers.protocol import REPLIES, REQUESTS

Value = TypeVar("Value")


class RankGroup:
    """`EditorGroup` on processes. It gives one command at a time; a second thread waits for its turn.

    Args:
        spec: the processes.
        command_timeout: limit of one command, the start of the ranks included, or of one step that it tells; see
            `RankProcesses.ask`.
    """

    def __init__(self, spec: RankSpec, *, command_timeout: timedelta) -> None:
        self._spec = spec
        self._timeout = command_timeout.total_seconds()
        self._turn = threading.RLock()
        self._processes: RankProcesses | None = None
        self._plan: LoadPlan | None = None
        self._held: tuple[str, str | None, str] | None = None
        self._loaded = Loaded()
        self._epoch = 0
        self._seq = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids by rank; empty while there are none."""
        return self._processes.pids if self._processes else ()

    def start(self) -> None:
        """Begin to start the ranks, if there are none; returns at once."""
        with self._turn:
            if self._processes is None:
                self._processes = RankProcesses(self._spec)

    def resume(self, lineage: str, *, snapshot_id: str | None, editor: EditorSettings, epoch: int) -> Loaded | None:
        """Say what the group holds of a snapshot; the ranks are asked whether they are alive."""
        with self._turn:
            plan = self._plan
            if self._held is None or plan is None or plan.ledger is None:
                return None
            if self._held[:2] != (lineage, snapshot_id) or plan.editor != editor:
                return None
            self._epoch = epoch
            return self._loaded if self._answers() else None

    def load(self, plan: LoadPlan, *, epoch: int) -> Loaded:
        """Hold a snapshot; starts or rebuilds the ranks if need be."""
        with self._turn:
            self._drop_unless_usable(plan)
            is_other = self._plan is not None and not _same_lineage(self._plan, plan)
            is_held = self._held == _identity(plan) and not is_other and _has_ledger(self._plan, plan)
            self._plan, self._epoch = plan, epoch
            if is_other:
                with contextlib.suppress(EngineFailed):  # a killed rank may be a while in going
                    self.free()
            if not (is_held and self._answers()):
                self._held, self._plan = None, plan
                loaded = self._command(Load(plan=plan)).loaded
                self._loaded = _expected(loaded, "what was loaded")
                self._held = _identity(plan)
            return self._loaded

    def _answers(self) -> bool:
        """Return whether the ranks are alive."""
        try:
            self._command(Ping())
        except EngineFailed:
            return False
        return True

    def try_edits(self, candidate: Candidate) -> CandidateOutcome:
        """Edit, apply, measure, and go back to the loaded snapshot."""
        with self._turn:
            self._require_held()
            outcome = self._command(TryEdits(candidate=candidate)).outcome
        return _expected(outcome, "the outcome of a candidate")

    def keep(self, candidate_id: str, *, folder: Path, with_accumulator: bool) -> KeptFiles:
        """Hold a tried candidate and write its files; without `held` the next `load` goes back to its plan."""
        command = Keep(candidate_id=candidate_id, folder=str(folder.resolve()), with_accumulator=with_accumulator)
        with self._turn:
            self._require_held()
            self._held = None
            files = self._command(command).files
        return _expected(files, "the files of a candidate")

    def held(self, snapshot_id: str, *, digest: str) -> None:
        """Say under which snapshot the kept candidate was committed."""
        with self._turn:
            self._command(Held(snapshot_id=snapshot_id, digest=digest))
            self._held = (self._lineage, snapshot_id, digest)

    def generate(self, prompts: Sequence[str], *, max_new_tokens: int, chat: bool = False) -> tuple[Answer, ...]:
        """Return greedy answers of the model that is held; `chat` asks in its chat template.

        Raises:
            Misconfigured: if the model has no chat template and one is asked for.
            EngineFailed: if nothing is held, or the ranks died.
        """
        with self._turn:
            self._require_held()
            command = Generate(prompts=tuple(prompts), max_new_tokens=max_new_tokens, chat=chat)
            answers = self._command(command).answers
        return _expected(answers, "answers")

    def export(self, folder: Path) -> ExportedModel:
        """Write what is held as a model of its own, in a new or empty folder.

        Raises:
            InvalidInput: if the folder is taken.
            EngineFailed: if nothing is held, or the ranks died.
        """
        with self._turn:
            self._require_held()
            exported = self._command(Export(folder=str(folder.resolve()))).exported
        return _expected(exported, "an exported model")

    def free(self) -> None:
        """Have the ranks let go of the lineage but not of its base: two lineages are never in memory together."""
        with self._turn:
            if self._processes is not None:
                self._held = None
                self._command(Free())

    def peak_bytes(self) -> tuple[int | None, ...]:
        """Return the most bytes of memory that each rank ever held, by rank; None where it cannot be known.

        Raises:
            EngineFailed: if they do not answer.
        """
        with self._turn:
            return self._command(Ping()).peak_bytes

    def weights_digest(self) -> str:
        """Return the SHA-256 of the edited weights the ranks hold; empty before the first load. A health check too.

        Raises:
            EngineFailed: if they do not answer.
        """
        with self._turn:
            return self._command(Ping()).digest

    def close(self) -> None:
        """Ask the ranks to end, and end them. The group can be used again."""
        with self._turn:
            if self._processes is not None:
                self._processes.end(self._request(Shutdown())[1])
            self._drop()

    @property
    def _lineage(self) -> str:
        return self._plan.lineage if self._plan else ""

    def _require_held(self) -> None:
        if self._held is None:
            raise EngineFailed(f"expected lineage {self._lineage!r} to be loaded first, got a group that holds nothing")

    def _drop_unless_usable(self, plan: LoadPlan) -> None:
        """End ranks that cannot load a plan: dead ones, and those of another base, loaded once in their life."""
        is_dead = self._processes is not None and self._processes.failure() is not None
        if is_dead or (self._plan is not None and self._plan.base != plan.base):
            self._drop()

    def _drop(self) -> None:
        processes = self._processes
        self._processes = self._held = self._plan = None
        if processes is not None:
            processes.kill()

    def _command(self, command: Command) -> Reply:
        """Give a command and return its answer; a group that fails or is left half way is killed."""
        lineage = self._lineage
        try:
            reply = self._exchange(command)
            if reply.failure is not None:
                raise reply.failure.as_error()
        except CorrigendaError as error:
            if isinstance(error, EngineFailed | Misconfigured):  # a model that cannot work is loaded half way
                self._drop()
            if isinstance(error, EngineFailed):
                error.ids.setdefault("lineage", lineage)
            raise
        except BaseException:
            self._drop()
            raise
        return reply

    def _exchange(self, command: Command) -> Reply:
        self.start()
        assert self._processes is not None
        seq, request = self._request(command)
        answered: list[Reply] = []

        def is_answer(body: bytes) -> bool:
            heard: Reply = REPLIES.decode(body)
            if heard.step is not None:
                tell(heard.step.name, heard.step.done, heard.step.of)
                return False
            answered.append(heard)
            return True

        self._processes.ask(request, what=command.kind, seconds=self._timeout, is_answer=is_answer)
        reply = answered[0]
        if reply.seq != seq:
            raise EngineFailed(f"expected the answer to command {seq}, got the one to {reply.seq}")
        return reply

    def _request(self, command: Command) -> tuple[int, bytes]:
        self._seq += 1
        request = Request(seq=self._seq, lineage=self._lineage, epoch=self._epoch, command=command)
        return self._seq, REQUESTS.encode(request)


def _identity(plan: LoadPlan) -> tuple[str, str | None, str]:
    return plan.lineage, plan.snapshot_id, plan.digest


def _same_lineage(one: LoadPlan, other: LoadPlan) -> bool:
    """Return whether two plans differ in nothing but the snapshot."""
    if (one.lineage, one.editor) != (other.lineage, other.editor):
        return False
    if one.ledger is None or other.ledger is None:
        return True
    return (one.ledger.prior, one.ledger.reference) == (other.ledger.prior, other.ledger.reference)


def _has_ledger(held: LoadPlan | None, wanted: LoadPlan) -> bool:
    """Return whether what is held has a ledger, if one is wanted."""
    return wanted.ledger is None or (held is not None and held.ledger is not None)


def _expected(value: Value | None, what: str) -> Value:
    if value is None:
        raise EngineFailed(f"expected {what}, got an answer without it")
    return value
