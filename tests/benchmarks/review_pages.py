"""What the benchmark of the HTTP API asks of the review pages, and the history that they are asked on.

`python -m tests.benchmarks.http_api` measures both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from itertools import chain, cycle
from typing import Any

from starlette.testclient import TestClient
from starlette.types import Message, Scope

from pipeline.domain.review.people import Role
from tests.support.factories import make_request
from tests.support.store_rig import LINEAGE, StoreRig
from tests.support.web_rig import PASSWORD, WebRig, fields_on

HOME = f"/review/lineages/{LINEAGE}"
EDITS, CANDIDATES = 32, 3
"""Edits of each candidate, and candidates above the champion."""

# What `fill` made was approved, and each of its edits has left the lines of a real one in the audit trail.
GROW_OLD = """
INSERT INTO approvals (lineage_id, snapshot_id, snapshot_digest, decision, actor, is_claimed, reason, channel)
    SELECT s.lineage_id, s.snapshot_id, s.digest, 'approved', 'cli:old (claimed)', true, 'old', 'cli'
    FROM snapshots s JOIN lineages l ON s.snapshot_id = l.head_snapshot_id;
UPDATE snapshots SET status = 'approved';
UPDATE lineages SET champion_snapshot_id = head_snapshot_id;
INSERT INTO audit_events (chain, seq, at, actor, action, subject, payload, prev_hash, hash)
    SELECT 'facts', 3 * r.place + line + 10, clock_timestamp(), 'old', action, r.edit_id::text, '{}',
           lpad((3 * r.place + line)::text, 64, 'a'), lpad((3 * r.place + line + 1)::text, 64, 'a')
    FROM edit_rows r,
        (VALUES (0, 'edit:received'), (1, 'edit:claimed'), (2, 'edit:snapshotted')) lines (line, action);
UPDATE chain_heads SET seq = found.seq, hash = found.hash FROM (
    SELECT seq, hash FROM audit_events WHERE chain = 'facts' ORDER BY seq DESC LIMIT 1
) found WHERE chain = 'facts';
VACUUM ANALYZE
"""


def grow_old(rig: StoreRig) -> None:
    """Let the edits of `fill` be live, with candidates above them, dead edits and debts that were given up."""
    for statement in GROW_OLD.split(";"):
        rig.query(statement)
    for number in range(CANDIDATES):
        _submit(rig, f"candidate-{number}")
        rig.commit_batch(rig.acquire())
    _submit(rig, "dead")
    rig.query("UPDATE edit_requests SET status = 'dead', reason = 'no memory' WHERE request_id LIKE 'dead-%%'")
    rig.query("UPDATE outbox SET given_up_at = clock_timestamp(), error = 'no answer' WHERE kind = 'register'")


def _submit(rig: StoreRig, stem: str) -> None:
    names = [f"{stem}-{number}" for number in range(EDITS)]
    rig.submit(*(make_request(name, prompt=f"The capital of {name} is") for name in names))


def page_requests(web: WebRig, rig: StoreRig) -> Mapping[str, Callable[[], object]]:
    """What is asked of the pages, by what it is; each call is one request that has to succeed."""
    client = web.browser(Role.reviewer, Role.operator, name="page")
    [top] = rig.query("SELECT max(seq) AS seq FROM snapshots")
    edits = rig.query("SELECT edit_id FROM edit_requests ORDER BY edit_id")
    oldest, middle = edits[0]["edit_id"], edits[len(edits) // 2]["edit_id"]
    pages = {
        "page: what waits": "/review/queue",
        "page: a candidate of 32 edits": f"{HOME}/snapshots/{top['seq'] - 1}",
        "page: the newest snapshots": f"{HOME}/snapshots",
        "page: snapshots in the middle": f"{HOME}/snapshots?before={top['seq'] // 2 + 50}",
        "page: the newest corrections": f"{HOME}/edits",
        "page: corrections in the middle": f"{HOME}/edits?before={middle}",
        "page: search by request id": f"{HOME}/find?id=old-1",
        "page: an old correction with its history": f"{HOME}/edits/{oldest}",
        "page: what happens now": f"{HOME}/stream",
        "page: upkeep": f"{HOME}/upkeep",
        "page: operations": "/review/operations",
    }
    asked = {name: _get(client, path) for name, path in pages.items()}
    return {
        "page: log in with a token": _login(web, name="page"),
        **asked,
        "the first event of the stream": _first_event(web, client),
        "page: approve and roll back, by turns": _decisions(client, rig, top["seq"] - 2),
    }


def _get(client: TestClient, path: str) -> Callable[[], object]:
    def get() -> object:
        answer = client.get(path)
        assert answer.status_code == 200, answer.text
        return answer

    return get


def _login(web: WebRig, *, name: str) -> Callable[[], object]:
    client = web.anonymous()

    def log_in() -> object:
        answer = client.post("/review/login", data={"token": f"{name}:{PASSWORD}"}, follow_redirects=False)
        assert answer.status_code == 303, answer.text
        return answer

    return log_in


def _first_event(web: WebRig, client: TestClient) -> Callable[[], object]:
    """Open the stream of what happens now, as a page does that has seen nothing, and leave at the first lines.

    The application is called without a client, because the test client waits for the end of a stream.
    """
    cookies = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": f"{HOME}/stream/events",
        "root_path": "",
        "query_string": b"after=0",
        "headers": [(b"host", b"testserver"), (b"cookie", cookies.encode())],
        "client": ("testclient", 50_000),
        "server": ("testserver", 80),
    }

    async def ask() -> None:
        seen, has_lines = bytearray(), asyncio.Event()

        async def receive() -> Message:
            await has_lines.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            seen.extend(message.get("body", b""))
            if b"event: lines" in seen or message.get("status", 200) != 200:
                has_lines.set()

        await web.app(dict(scope), receive, send)
        assert b"event: lines" in seen, seen.decode()

    return lambda: asyncio.run(ask())


def _decisions(client: TestClient, rig: StoreRig, seq: int) -> Callable[[], object]:
    """Approve a candidate; then approve the one above it, roll back to the first, and again."""
    query = "SELECT snapshot_id, seq, digest FROM snapshots WHERE seq BETWEEN %s AND %s ORDER BY seq"
    old, first, second = rig.query(query, seq - 1, seq + 1)
    csrf = fields_on(client.get("/review/queue"), "/review/logout")["csrf"]
    by_turns = cycle([(second, first, "approved"), (first, second, "rolled_back")])
    turns = chain([(first, old, "approved")], by_turns)

    def decide() -> object:
        wanted, champion, decision = next(turns)
        fields: dict[str, Any] = {
            "csrf": csrf,
            "digest": wanted["digest"],
            "champion": str(champion["snapshot_id"]),
            "decision": decision,
            "reason": "to measure",
        }
        answer = client.post(f"{HOME}/snapshots/{wanted['seq']}", data=fields, follow_redirects=False)
        assert answer.status_code == 303, answer.text
        return answer

    decide()
    return decide
