"""The HTTP API in this process, on a real database as its own login, with people of every role."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from html import unescape
from pathlib import Path
from typing import Any

import psycopg
from fastapi import FastAPI
from httpx2 import Response
from pydantic import SecretStr
from starlette.testclient import TestClient

from pipeline.adapters.logins import Login
from pipeline.bootstrap import batch_publisher
from pipeline.config import Settings
from pipeline.domain.errors import Unavailable
from pipeline.domain.formats.canonical import sha256_text
from pipeline.domain.review.people import Role
from pipeline.entrypoints.web.app import create_app
from pipeline.entrypoints.web.parts import web_parts
from pipeline.services.accepting import Place

PASSWORD = "of-this-test"


class HeardPublisher:
    """Remembers what was sent, in place of a broker; or has none that answers."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.is_away = False

    def publish_all(
        self, topic: str, messages: Sequence[tuple[str, bytes]], *, headers: Sequence[tuple[str, bytes]] = ()
    ) -> Sequence[Place]:
        """Remember messages."""
        if self.is_away:
            raise Unavailable("the broker at secret-host:9092 does not answer")
        first = len(self.sent)
        self.sent += [(key, json.loads(value)) for key, value in messages]
        return [Place(topic=topic, partition=0, offset=first + number) for number in range(len(messages))]


class WebRig:
    """The application, clients of it, and who they are."""

    def __init__(self, url: str, folder: Path, *, with_broker: bool = False, **changes: Any) -> None:
        fields: dict[str, Any] = {
            "home": folder,
            "database_url": SecretStr(url),
            "database_role": str(Login.web),
            "kafka_bootstrap": "127.0.0.1:1",
            "artifact_root": folder / "artifacts",
        }
        self.url = url
        self.settings = Settings(**(fields | changes))
        self.publisher = HeardPublisher()
        sends = batch_publisher(self.settings) if with_broker else self.publisher
        self.parts = web_parts(self.settings, sends)
        self.app: FastAPI = create_app(self.parts)

    def client(self, *roles: Role, name: str = "ada") -> TestClient:
        """A client that shows the token of somebody with these roles."""
        return TestClient(self.app, headers=dict(self.token_of(name, roles)))

    def anonymous(self) -> TestClient:
        """A client that shows nothing."""
        return TestClient(self.app)

    def token_of(self, name: str, roles: Sequence[Role]) -> Mapping[str, str]:
        """Make a person as `person add` does, but without a database login; return the header with their token."""
        with psycopg.connect(self.url) as owner:
            owner.execute(
                "INSERT INTO people (name, roles, token_digest) VALUES (%s, %s, %s)"
                " ON CONFLICT (name) DO UPDATE SET roles = EXCLUDED.roles, token_digest = EXCLUDED.token_digest",
                (name, [str(role) for role in roles], sha256_text(PASSWORD)),
            )
        return {"Authorization": f"Bearer {name}:{PASSWORD}"}

    def browser(self, *roles: Role, name: str = "ada") -> TestClient:
        """A browser in which somebody with these roles has logged in to the pages."""
        self.token_of(name, roles)
        client = self.anonymous()
        told = client.post("/review/login", data={"token": f"{name}:{PASSWORD}"}, follow_redirects=False)
        assert told.status_code == 303, told.text
        return client

    def again(self, *, with_broker: bool = False, **changes: Any) -> WebRig:
        """Another process on the same database, with other settings."""
        return WebRig(self.url, self.settings.home, with_broker=with_broker, **changes)


def fields_on(page: Response, action: str) -> dict[str, str]:
    """What the hidden fields of a page's form hold."""
    (form,) = re.findall(rf'<form[^>]+action="{re.escape(action)}">(.*?)</form>', page.text, flags=re.DOTALL)
    return {name: unescape(value) for name, value in re.findall(r'type="hidden" name="([^"]+)" value="([^"]*)"', form)}


def text_of(page: Response) -> str:
    """What a page says, without its tags."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", page.text)).split())


def is_problem(answer: Response, status: int) -> str:
    """Check that an answer is a problem with this status; return what it says."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == status
    assert body["title"]
    return str(body["detail"])
