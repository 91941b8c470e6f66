"""The loop of a rank: take a command, run it on every rank, compare what they found, answer for all.

Rank 0 reads the socket and hands each request to the others as the JSON it came in. All ranks run it; what they found
is compared before rank 0 answers. After an error that is not one of ours, hooks or gathered weights may be left behind:
the ranks answer and end, and their controller starts new ones.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

from editors.measure.memory import peak_bytes
from pipeline.domain.errors import CorrigendaError, EngineFailed, LeaseLost
from pipeline.domain.formats.canonical import sha256_text
from pipeline.domain.rank_api import BaseSpec, Step, told_to
from workers.commands import (
    Export,
    Free,
    Generate,
    Held,
    Keep,
    Load,
    Ping,
    Reply,
    Request,
    Shutdown,
    TryEdits,
    failure_of,
)
from workers.protocol import REPLIES, REQUESTS, receive, send
from workers.rank.held_model import HeldModel
from workers.rank.rank_comm import RankComm
from workers.rank.sharded_model import join_group

log = logging.getLogger(__name__)


class Fence:
    """Guard against commands of an older lease, and against commands that come again."""

    def __init__(self) -> None:
        self._epochs: dict[str, int] = {}
        self._seq = 0

    def check(self, request: Request) -> None:
        """Let a request pass, and remember it.

        Raises:
            LeaseLost: if a higher epoch of the lineage has been seen.
            EngineFailed: if its number is not above that of the request before.
        """
        highest = self._epochs.get(request.lineage, request.epoch)
        if request.epoch < highest:
            raise LeaseLost(
                f"expected lease epoch {highest} or above for lineage {request.lineage!r}, got {request.epoch}",
                lineage=request.lineage,
            )
        if request.seq <= self._seq:
            raise EngineFailed(f"expected a command after number {self._seq}, got number {request.seq}")
        self._epochs[request.lineage] = request.epoch
        self._seq = request.seq


def serve(connection: Connection | None, *, config_path: Path | None, warm_base: BaseSpec | None = None) -> int:
    """Run commands until the controller says shutdown or is gone.

    Args:
        connection: to the controller, on rank 0; None on the others.
        config_path: a DeepSpeed JSON instead of the one that is shipped.
        warm_base: base to load at once; what is wrong with it is said when a plan asks for it.

    Returns:
        The exit status: 0 after a shutdown, 1 after an error that leaves the ranks unusable.
    """
    join_group()
    comm, fence = RankComm(), Fence()
    model = HeldModel(config_path=config_path, comm=comm)
    if warm_base is not None:
        _warm(model, warm_base)
    log.info("%d ranks are ready", comm.num_ranks)
    while True:
        request = REQUESTS.decode(comm.hand_out(_next(connection) if connection else None))
        if isinstance(request.command, Shutdown):
            return 0
        with told_to(_teller(connection, request) if connection else None):
            reply = compared(comm, answer(request, model, fence), model, request)
        if connection is not None:
            send(connection, REPLIES.encode(reply))
        if reply.failure is not None and reply.failure.error == EngineFailed.__name__:
            return 1


def _warm(model: HeldModel, base: BaseSpec) -> None:
    try:
        model.warm(base)
    except Exception as error:
        if model.is_shared and not isinstance(error, CorrigendaError):
            raise
        log.warning("base %s cannot be loaded ahead: %s", base.ref, error)


def answer(request: Request, model: HeldModel, fence: Fence) -> Reply:
    """Return what this rank has to say to a request.

    Raises:
        Exception: what is not one of our errors, where other ranks wait for this one.
    """
    reply = Reply(seq=request.seq)
    try:
        fence.check(request)
        return run(request, model, reply)
    except CorrigendaError as error:
        return replace(reply, failure=failure_of(error))
    except Exception as error:
        log.exception("command %s of lineage %s failed", request.command.kind, request.lineage)
        if model.is_shared:
            raise  # the others wait inside the command for this rank: they fail as soon as it has ended
        return replace(reply, failure=failure_of(error))


def run(request: Request, model: HeldModel, reply: Reply) -> Reply:
    """Carry out a command and return the reply with its result."""
    match request.command:
        case Load(plan=plan):
            return replace(reply, loaded=model.load(plan))
        case TryEdits(candidate=candidate):
            return replace(reply, outcome=model.snapshot.try_edits(candidate))
        case Keep(candidate_id=candidate_id, folder=folder, with_accumulator=with_accumulator):
            files = model.keep(candidate_id, folder=Path(folder), with_accumulator=with_accumulator)
            return replace(reply, files=files)
        case Held(snapshot_id=snapshot_id, digest=digest):
            model.snapshot.committed(snapshot_id, digest=digest)
        case Generate(prompts=prompts, max_new_tokens=max_new_tokens, chat=chat):
            return replace(reply, answers=model.snapshot.generate(prompts, max_new_tokens=max_new_tokens, chat=chat))
        case Export(folder=folder):
            return replace(reply, exported=model.export(Path(folder)))
        case Free():
            model.free()
        case Ping() | Shutdown():
            pass
    return reply


def compared(comm: RankComm, reply: Reply, model: HeldModel, request: Request) -> Reply:
    """Return the reply of all ranks, with the digest of all their weights; a failure if they do not agree."""
    every = comm.gathered((_said(reply, model, request), sha256_text(model.digest), peak_bytes()))
    found, weights, peaks = zip(*every, strict=True)
    if len(set(found)) > 1:
        problem = EngineFailed(f"expected every rank to answer {request.command.kind} alike, got {found}")
        return Reply(seq=request.seq, failure=failure_of(problem))
    return replace(reply, digest=sha256_text("\n".join(weights)) if model.digest else "", peak_bytes=peaks)


def _said(reply: Reply, model: HeldModel, request: Request) -> str:
    """Return the SHA-256 of everything in a reply that must not depend on the rank: no times, no paths."""
    alike = replace(reply, files=None, exported=None, outcome=reply.outcome and replace(reply.outcome, seconds={}))
    evidence = ""
    if isinstance(request.command, TryEdits) and reply.outcome is not None:
        evidence = model.snapshot.evidence(request.command.candidate.candidate_id)
    return sha256_text(REPLIES.encode(alike).decode() + evidence)


def _teller(connection: Connection, request: Request) -> Callable[[Step], None]:
    """Return what tells the controller of the steps of a request before its answer."""

    def teller(step: Step) -> None:
        with contextlib.suppress(OSError):  # the controller is gone, as the next read will find
            send(connection, REPLIES.encode(Reply(seq=request.seq, step=step)))

    return teller


def _next(connection: Connection) -> bytes:
    """Return the next request; a controller that is gone wants a shutdown."""
    body = receive(connection)
    if body is None:
        log.info("the controller is gone")
        return REQUESTS.encode(Request(seq=0, lineage="", epoch=0, command=Shutdown()))
    return body
