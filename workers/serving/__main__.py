"""Serves what is live of lineages over OpenAI's API, and follows their aliases."""

from __future__ import annotations

import argparse
import signal
import stat
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

from pipeline.adapters.mlflow.versions import MlflowVersions
from pipeline.adapters.sql.database.engine import connect, for_a_process
from pipeline.adapters.sql.sealed import SqlSealedVersions
from pipeline.config import Settings, load_settings
from pipeline.domain.errors import CorrigendaError, Misconfigured
from pipeline.domain.formats.refusals import INTERRUPTED, refused_in_a_sentence
from pipeline.telemetry import tracing
from pipeline.telemetry.logs import log_to_stderr
from workers.serving.http_server import bound_socket, require_loopback, serve, url_of

MISCONFIGURED = 3
"""Exit statuses of the command `corrigenda`."""


def main(words: Sequence[str] | None = None) -> int:
    """Serve until a signal comes; return 3 after one sentence on standard error if that cannot be done."""
    try:
        with refused_in_a_sentence():
            options = _options().parse_args(words)
        _serve(options, load_settings())
    except CorrigendaError as error:
        print(f"corrigenda: {error}", file=sys.stderr)
        return MISCONFIGURED
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="corrigenda serve", description=__doc__)
    parser.add_argument("-l", "--lineage", action="append", help="a lineage to serve; every one if left out")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8100, help="port to listen on; 0 for any free one")
    parser.add_argument("--token-file", type=Path, help="file with a token a line, which nobody else may read")
    parser.add_argument("--poll", type=float, default=2.0, metavar="SECONDS", help="time between two looks at an alias")
    parser.add_argument("--alias", default="champion", help="which alias to follow")
    parser.add_argument("--device", default="cpu", help="where models go: cpu, cuda, cuda:1")
    parser.add_argument(
        "--cache", type=Path, help="folder for files of versions; `serving` in CORRIGENDA_HOME if left out"
    )
    parser.add_argument("--queue", type=int, default=32, help="most requests that wait; more get status 503")
    parser.add_argument("--active", type=int, default=4, help="most requests that are answered at once, in turn")
    parser.add_argument(
        "--trust-tags",
        action="store_true",
        help="take digests of versions from MLflow's tags, where no database can be asked; needs --lineage",
    )
    return parser


def _serve(options: argparse.Namespace, settings: Settings) -> None:
    tokens = tokens_of(options.token_file) if options.token_file else ()
    if not tokens:
        require_loopback(options.host)
    settings.require("mlflow_uri")
    sealed = None if options.trust_tags else _sealed(settings)
    if sealed is None and not options.lineage:
        raise Misconfigured("expected --lineage with --trust-tags: nothing else says which there are")
    with bound_socket(options.host, options.port) as made, ExitStack() as stack:
        log_to_stderr("serving")
        # The server ends what it does before it passes a signal on; then the process ends as one that was asked to.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        # Only now what takes seconds to import: a wrong word is refused before that.
        from workers.serving.application import ServingApplication
        from workers.serving.bases import Bases
        from workers.serving.following import Follower
        from workers.serving.generation_thread import GenerationThread
        from workers.serving.lineages import ServedLineages
        from workers.serving.version_files import VersionFiles

        versions = MlflowVersions(
            settings.mlflow_uri, username=settings.mlflow_username, password=settings.mlflow_password.get_secret_value()
        )
        files = VersionFiles((options.cache or settings.home / "serving").absolute(), versions.fetch)
        thread = stack.enter_context(GenerationThread(most_active=options.active, most_waiting=options.queue))
        bases = Bases(options.device)

        def follow(lineage: str) -> Follower:
            return Follower(
                lineage,
                alias=options.alias,
                versions=versions,
                sealed=sealed,
                files=files,
                bases=bases,
                thread=thread,
            )

        def names() -> Iterable[str]:
            return options.lineage or (sealed.lineages() if sealed else ())

        lineages = ServedLineages(names, follow, interval=timedelta(seconds=options.poll))
        stack.enter_context(lineages)
        if settings.traces_endpoint:
            tracing.send_traces("serve", endpoint=settings.traces_endpoint)
            stack.callback(tracing.stop_traces)
        print(f"serving {url_of(made)}/v1", *told_at_start(options, sealed, url_of(made)), sep="\n", flush=True)
        serve(ServingApplication(lineages, thread, tokens=tokens).app(), made).run(sockets=[made])


def told_at_start(options: argparse.Namespace, sealed: SqlSealedVersions | None, url: str) -> Iterable[str]:
    """Return what is said at the start, below the address: which models, for whom, and where it tells how it is."""
    every = "each lineage" if options.alias == "champion" else f"each lineage with the alias {options.alias}"
    try:
        known = ", ".join(options.lineage or (sealed.lineages() if sealed else ())) or "none yet"
    except CorrigendaError as error:
        known = f"not known now: {error}"
    models = known if options.lineage else f"{every} with an approved snapshot: {known}"
    yield f"models   {models}; looked at every {options.poll:g} s"
    who = f"whoever has a token of {options.token_file}" if options.token_file else "this machine, without a token"
    yield f"for      {who}"
    yield f"health   {url}/readyz says what is not served, and why; {url}/metrics"
    yield "end      Ctrl-C"


def _sealed(settings: Settings) -> SqlSealedVersions:
    if not settings.database_url.get_secret_value():
        raise Misconfigured(
            "expected CORRIGENDA_DATABASE_URL, which says what the files of a version have to be, got nothing; "
            "--trust-tags takes the word of MLflow's tags instead"
        )
    return SqlSealedVersions(for_a_process(connect(settings.database_url.get_secret_value(), settings.database_role)))


def tokens_of(path: Path) -> tuple[str, ...]:
    """Return the tokens of a file, one a line.

    Raises:
        Misconfigured: if it cannot be read, holds none, or others may read it.
    """
    try:
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise Misconfigured(f"expected a file of tokens that nobody else may read, got {path}; chmod 600 mends it")
        tokens = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except OSError as error:
        raise Misconfigured(f"expected a file of tokens at {path}, got: {error.strerror}") from error
    if not tokens or any(len(token) < 16 for token in tokens):
        raise Misconfigured(f"expected tokens of 16 characters or more in {path}, one a line")
    return tokens


if __name__ == "__main__":
    sys.exit(main())
