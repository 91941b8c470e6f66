"""The HTTP API in this process, on a real database as its own login, with people of every role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psycopg
from fastapi import FastAPI
from pydantic import SecretStr
from starlette.testclient import TestClient

from pipeline import bootstrap
from pipeline.adapters.logins import Login
from pipeline.config import Settings
from pipeline.domain.errors import Unavailable
from pipeline.domain.formats.canonical import sha256_text
from pipeline.domain.people import Role
from pipeline.entrypoints.web.app import create_app
from pipeline.entrypoints.web.parts import WebParts

PASSWORD = "of-this-test"


class HeardPublisher:
    """Remembers what was sent, in place of a broker; or has none that answers."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str, bytes | None]] = []
        self.is_away = False

    def publish(self, topic: str, *, key: str, value: bytes | None, headers: Sequence[tuple[str, bytes]] = ()) -> None:
        """Remember a message."""
        if self.is_away:
            raise Unavailable("the broker at secret-host:9092 does not answer")
        self.sent.append((topic, key, value))


class WebRig:
    """The application, clients of it, and who they are."""

    def __init__(self, url: str, folder: Path, **changes: Any) -> None:
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
        self.parts = WebParts(settings=self.settings, stores=bootstrap.stores(self.settings), publisher=self.publisher)
        self.app: FastAPI = create_app(self.parts)

    def client(self, *roles: Role, name: str = "ada") -> TestClient:
        """A client that shows the token of somebody with these roles."""
        return TestClient(self.app, headers=self.token_of(name, roles), raise_server_exceptions=False)

    def anonymous(self) -> TestClient:
        """A client that shows nothing."""
        return TestClient(self.app, raise_server_exceptions=False)

    def token_of(self, name: str, roles: Sequence[Role]) -> Mapping[str, str]:
        """Make a person as `person add` does, but without a database login; return the header with their token."""
        with psycopg.connect(self.url) as owner:
            owner.execute(
                "INSERT INTO people (name, roles, token_digest) VALUES (%s, %s, %s)"
                " ON CONFLICT (name) DO UPDATE SET roles = EXCLUDED.roles, token_digest = EXCLUDED.token_digest",
                (name, [str(role) for role in roles], sha256_text(PASSWORD)),
            )
        return {"Authorization": f"Bearer {name}:{PASSWORD}"}
