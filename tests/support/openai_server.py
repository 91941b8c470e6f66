"""A serving process inside this one: two lineages on a tiny base, a registry of folders, and OpenAI's client."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import openai

from pipeline.adapters.mlflow.versions import FollowedVersion
from pipeline.services.registry.registry_ports import RegistryEntry
from tests.support.served import FolderRegistry, TinyHistory, chatting_base
from tests.support.waiting import eventually
from workers.serving.application import ServingApplication
from workers.serving.bases import Bases
from workers.serving.following import Follower
from workers.serving.generation_thread import GenerationThread
from workers.serving.http_server import bound_socket, serve, url_of
from workers.serving.lineages import ServedLineages
from workers.serving.version_files import VersionFiles


class Served:
    """The server, and what it serves: `other` has no champion at first.

    Args:
        folder: for the base, the versions and the cache.
        tokens: one of these has to come with a request, if there are any.
        most_waiting: requests that may wait.
        interval: time between two looks at an alias.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tokens: tuple[str, ...] = (),
        most_waiting: int = 32,
        interval: timedelta = timedelta(seconds=0.02),
    ) -> None:
        self.base = chatting_base(folder / "base")
        self.histories = {name: TinyHistory(self.base, folder, name) for name in ("facts", "other")}
        (folder / "registry").mkdir()
        self.registry = FolderRegistry(folder / "registry")
        self.entries: dict[str, RegistryEntry] = {}
        self.thread = GenerationThread(most_active=2, most_waiting=most_waiting)
        self.bases = Bases()
        files = VersionFiles(folder / "cache", self.registry.fetch)
        registry: Any = self.registry

        def follow(name: str) -> Follower:
            return Follower(
                name,
                alias="champion",
                versions=registry,
                sealed=registry,
                files=files,
                bases=self.bases,
                thread=self.thread,
            )

        self.lineages = ServedLineages(lambda: self.histories, follow, interval=interval)
        self.app = ServingApplication(self.lineages, self.thread, tokens=tokens).app()
        self.url = ""

    def approve(self, name: str) -> RegistryEntry:
        """Make a snapshot more, point the alias to it and wait until it is served."""
        made = self.histories[name].next()
        self.point(name, self.registry.add(made), made)
        return made

    def point(self, name: str, version: FollowedVersion, made: RegistryEntry) -> None:
        """Point the alias of a lineage to a version and wait until its snapshot is served."""
        self.registry.aliases[name] = version
        eventually(lambda: self.served_id(name) == made.snapshot.snapshot_id, "the snapshot to be served")

    def served_id(self, name: str) -> str | None:
        """The snapshot that a lineage is served with."""
        follower = self.lineages.get(name)
        return follower.serving.files.snapshot_id if follower and follower.serving else None

    def client(self, token: str = "none") -> openai.OpenAI:
        """OpenAI's own client, which tries nothing twice."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=token, max_retries=0)

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of a path."""
        try:
            with urlopen(f"{self.url}{path}") as answer:  # noqa: S310 - our own server
                return answer.status, answer.read().decode()
        except HTTPError as error:
            return error.code, error.read().decode()


@contextmanager
def running(served: Served) -> Iterator[Served]:
    """Listen on a free port for the length of a block."""
    with bound_socket("127.0.0.1", 0) as made, served.thread, served.lineages:
        served.url = url_of(made)
        server = serve(served.app, made)
        thread = threading.Thread(target=lambda: server.run(sockets=[made]))
        thread.start()
        try:
            eventually(lambda: server.started, "a server that listens")
            yield served
        finally:
            server.should_exit = True
            thread.join()
