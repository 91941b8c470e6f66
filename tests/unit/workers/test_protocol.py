"""What controller and ranks say to each other survives the socket, and what is not theirs does not pass."""

from __future__ import annotations

import json
import os
import struct
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import pytest

from pipeline.domain.contract.wire import parse_object
from pipeline.domain.edits import Edit, Probe
from pipeline.domain.errors import CorrigendaError, EditorFailed, EngineFailed, IntegrityBroken, LeaseLost, WrongBase
from pipeline.domain.rank_api import (
    Answer,
    BaseSpec,
    Candidate,
    CandidateOutcome,
    EditorSettings,
    FileRef,
    KeptFiles,
    LedgerPlan,
    LedgerRows,
    Loaded,
    LoadPlan,
    TrainedFiles,
)
from tests.support.factories import CHAT_REQUEST, make_edit, make_measurements, make_score
from workers.commands import (
    PROTOCOL_VERSION,
    Command,
    Failure,
    Generate,
    Held,
    Hello,
    Keep,
    Load,
    Ping,
    Reply,
    Request,
    Shutdown,
    TryEdits,
    failure_of,
)
from workers.protocol import HELLOS, MAX_MESSAGE_BYTES, REPLIES, REQUESTS, receive, send

FILE = FileRef(path="/files/a", digest="a" * 64)
PLAN = LoadPlan(
    base=BaseSpec(ref="/models/base", digest="b" * 64, task="causal"),
    lineage="facts",
    editor=EditorSettings(inner_params=("x.weight",)),
    snapshot_id="s1",
    digest="c" * 64,
    accumulator=FILE,
    deltas=(FILE, FILE),
    ledger=LedgerPlan(rows=(LedgerRows(file=FILE, edit_ids=("e1", "e2")),), prior=FILE, reference=FILE),
)
EDIT = make_edit(
    "r1",
    locality=(Probe(prompt="Who?", target=None),),
    portability=(Probe(prompt="What?", target="that"),),
    rephrases=("Again", "ünïcode ☃"),
    occurred_at=datetime(2026, 1, 2, 3, 4, 5, 6789, tzinfo=UTC),
)
CHAT = Edit(edit_id="e2", request=parse_object(CHAT_REQUEST))
TRIAL = Candidate(
    candidate_id="t",
    snapshot_id="s",
    added=(EDIT, CHAT),
    removed_ids=("e9",),
    retained=(EDIT, EDIT),
    gone_keys=('["a"]',),
)
COMMANDS: tuple[Command, ...] = (
    Load(plan=PLAN),
    Load(plan=replace(PLAN, snapshot_id=None, accumulator=None, deltas=(), ledger=None)),
    Load(
        plan=replace(
            PLAN,
            ledger=LedgerPlan(
                rows=(), prior=FILE, reference=FILE, trained=TrainedFiles(name="mend", card=FILE, tensors=FILE)
            ),
        )
    ),
    TryEdits(candidate=TRIAL),
    Keep(candidate_id="t", folder="/files", with_accumulator=True),
    Held(snapshot_id="s", digest="d" * 64),
    Generate(prompts=("a", "b"), max_new_tokens=3),
    Generate(prompts=("a?",), max_new_tokens=3, chat=True),
    Ping(),
    Shutdown(),
)
SCORE = make_score("e1", locality=(True, False), locality_kl=1e-17, prob_new=0.1, chat_success=None)
OUTCOME = CandidateOutcome(
    measurements=make_measurements(SCORE), num_passes=3, num_rows=7, seconds={"capture": 0.1, "solve": 1 / 3}
)
REPLIES_OF_EACH_KIND = (
    Reply(seq=1),
    Reply(seq=2, digest="e" * 64, outcome=OUTCOME),
    Reply(seq=3, files=KeptFiles(delta=FILE, rows=FILE, accumulator=None)),
    Reply(seq=7, loaded=Loaded(suite_keys=('["facts","a"]',), guard_names=("peru",))),
    Reply(seq=4, answers=(Answer(prompt="p", text=""),)),
    Reply(seq=5, answers=()),
    Reply(seq=6, failure=Failure(error="EditorFailed", message="no", ids={"edit_id": "e1"})),
)


@pytest.fixture
def pair() -> Iterator[tuple[Connection, Connection]]:
    """Two connected ends."""
    one, other = Pipe()
    with one, other:
        yield one, other


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.kind)
def test_a_request_is_the_same_after_the_socket(command: Command) -> None:
    request = Request(seq=9, lineage="facts", epoch=4, command=command)
    assert REQUESTS.decode(REQUESTS.encode(request)) == request


@pytest.mark.parametrize("reply", REPLIES_OF_EACH_KIND, ids=lambda reply: str(reply.seq))
def test_a_reply_is_the_same_after_the_socket(reply: Reply) -> None:
    assert REPLIES.decode(REPLIES.encode(reply)) == reply


@pytest.mark.parametrize("kind", [EditorFailed, WrongBase, IntegrityBroken, LeaseLost, EngineFailed])
def test_an_error_is_raised_as_the_same_class_with_its_sentence_and_ids(kind: type[CorrigendaError]) -> None:
    sent = Reply(seq=1, failure=failure_of(kind("expected this, got that", edit_id="e1")))
    failure = REPLIES.decode(REPLIES.encode(sent)).failure
    assert failure is not None
    error = failure.as_error()
    assert (type(error), str(error), error.ids) == (kind, "expected this, got that", {"edit_id": "e1"})


def test_an_error_that_is_not_ours_becomes_engine_failed() -> None:
    error = failure_of(RuntimeError("out of memory")).as_error()
    assert isinstance(error, EngineFailed)
    assert str(error) == "RuntimeError: out of memory"


@pytest.mark.parametrize("name", ["SystemExit", "annotations", "ClassVar", "NoSuchError"])
def test_a_failure_can_name_no_other_class(name: str) -> None:
    error = Failure(error=name, message="x").as_error()
    assert type(error) is EngineFailed
    assert name in str(error)


@pytest.mark.parametrize("version", [0, PROTOCOL_VERSION - 1, PROTOCOL_VERSION + 1, None, str(PROTOCOL_VERSION)])
def test_another_version_is_named_before_anything_else_is_read(version: object) -> None:
    body = json.dumps({"version": version, "pid": "not even a number"}).encode()
    with pytest.raises(
        EngineFailed, match=f"expected version {PROTOCOL_VERSION} of the rank protocol, got {version!r}"
    ):
        HELLOS.decode(body)


@pytest.mark.parametrize("body", [b"", b"\xff", b"[]", b'{"version":1}', b'{"version":1,"seq":"x"}'])
def test_what_is_no_message_is_refused(body: bytes) -> None:
    with pytest.raises(EngineFailed, match="expected"):
        REPLIES.decode(body)


def test_messages_keep_their_order_and_their_bytes(pair: tuple[Connection, Connection]) -> None:
    one, other = pair
    bodies = [b"", b"x", HELLOS.encode(Hello(pid=1, world_size=1)), b"\0" * 3_000_000]

    def send_all() -> None:
        for body in bodies:
            send(one, body)

    sender = threading.Thread(target=send_all)
    sender.start()
    assert [receive(other) for _ in bodies] == bodies
    sender.join()


def test_a_close_between_messages_is_an_end_and_inside_one_an_error(pair: tuple[Connection, Connection]) -> None:
    one, other = pair
    os.write(one.fileno(), struct.pack("!i", 5) + b"abc")
    one.close()
    with pytest.raises(EngineFailed, match="end of file"):
        receive(other)
    assert receive(other) is None


def test_a_peer_that_was_killed_with_something_unread_is_an_end(pair: tuple[Connection, Connection]) -> None:
    one, other = pair
    send(other, b"never read")
    one.close()
    assert receive(other) is None


def test_a_message_beyond_the_bound_is_refused_on_both_sides(pair: tuple[Connection, Connection]) -> None:
    one, other = pair
    with pytest.raises(EngineFailed, match=str(MAX_MESSAGE_BYTES)):
        send(one, bytes(MAX_MESSAGE_BYTES + 1))
    os.write(one.fileno(), struct.pack("!i", MAX_MESSAGE_BYTES + 1))
    with pytest.raises(EngineFailed, match=str(MAX_MESSAGE_BYTES)):
        receive(other)
