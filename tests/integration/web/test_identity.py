"""Who a caller of the HTTP API is: tokens, roles, and what everybody else is told."""

from __future__ import annotations

import base64
from uuid import uuid4

import psycopg
import pytest

from pipeline.adapters.people import add_person, remove_person
from pipeline.domain.errors import InvalidInput
from pipeline.domain.review.people import Role
from tests.support.web_rig import PASSWORD, WebRig, is_problem


def test_a_token_says_who_calls_as_bearer_and_as_basic(web: WebRig) -> None:
    told = web.client(Role.reviewer, Role.requester).get("/v1/me")
    assert told.json() == {"name": "ada", "roles": ["requester", "reviewer"]}
    assert told.headers["cache-control"] == "no-store"
    assert web.anonymous().get("/v1/me", auth=("ada", PASSWORD)).json()["name"] == "ada"


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ada",
        "Bearer ada:",
        "Bearer ada:wrong",
        "Bearer nobody:of-this-test",
        "Bearer :of-this-test",
        "Basic !!!",
        "Basic " + base64.b64encode(b"ada:\xff").decode(),
        "Basic " + base64.b64encode(b"a\x00da:of-this-test").decode(),
        "Digest ada",
        "Bearer " + "a" * 5_000,
    ],
)
def test_whoever_shows_no_valid_token_is_asked_for_one(web: WebRig, header: str | None) -> None:
    web.client(Role.requester)
    headers = {} if header is None else {"Authorization": header}
    answer = web.anonymous().get("/v1/me", headers=headers)
    assert is_problem(answer, 401).startswith("expected ")
    assert "Bearer" in answer.headers["www-authenticate"]
    assert PASSWORD not in answer.text


def test_unknown_paths_and_wrong_methods_are_problems_too(web: WebRig) -> None:
    assert "openapi.json" in is_problem(web.anonymous().get("/v1/nothing"), 404)
    answer = web.anonymous().delete("/v1/me")
    assert "Allow" in is_problem(answer, 405)
    assert answer.headers["allow"] == "GET"
    big = web.anonymous().post("/v1/me", content=b"x" * (web.settings.web_max_body_bytes + 1))
    assert "at most" in is_problem(big, 413)


def test_a_person_gets_roles_and_a_token_which_can_be_taken_back(web: WebRig, postgres_url: str) -> None:
    name = f"desk_{uuid4().hex[:12]}"
    first = add_person(postgres_url, name, [Role.requester], actor="test")
    token = add_person(postgres_url, name, [Role.auditor], actor="test")
    client = web.anonymous()

    def status(token: str) -> int:
        return client.get("/v1/me", headers={"Authorization": f"Bearer {token}"}).status_code

    assert (status(first), status(token)) == (401, 200)
    me = client.get("/v1/me", headers={"Authorization": f"Bearer {token}"}).json()
    assert me == {"name": name, "roles": ["auditor", "requester"]}
    with psycopg.connect(postgres_url) as owner:
        [stored] = owner.execute("SELECT token_digest FROM people").fetchall()
        assert token.split(":")[1] not in str(stored)
        lines = owner.execute("SELECT subject, payload FROM audit_events WHERE action = 'person:added'").fetchall()
        assert [line[0] for line in lines] == [f"person:{name}"] * 2
        assert not any(token.split(":")[1] in str(line) for line in lines)
        assert owner.execute("SELECT count(*) FROM pg_roles WHERE rolname = %s", (name,)).fetchone() == (0,)
    remove_person(postgres_url, name, [Role.auditor], actor="test")
    assert status(token) == 200
    remove_person(postgres_url, name, actor="test")
    assert status(token) == 401
    with pytest.raises(InvalidInput, match="expected the name of a"):
        remove_person(postgres_url, name, actor="test")
    with pytest.raises(InvalidInput, match="at least one role"):
        add_person(postgres_url, name, [], actor="test")
