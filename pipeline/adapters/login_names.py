"""The logins that processes have in the database."""

from __future__ import annotations

from enum import StrEnum


class Login(StrEnum):
    """The database logins of our processes. None of them owns anything."""

    intake = "corrigenda_intake"
    """Records polls: requests, dead letters, offsets."""
    editor = "corrigenda_editor"
    """The edit worker: batches, snapshots, the ledger."""
    control = "corrigenda_control"
    """The control worker: side effects, requests in the registry."""
    console = "corrigenda_console"
    """Commands of people that no reviewer's token names."""
    web = "corrigenda_web"
    """The HTTP API and the pages: what people submit and decide there, in their names."""
    serving = "corrigenda_serving"
    """Reads which versions are approved and what their files have to be, to serve them; nothing else."""
    auditor = "corrigenda_auditor"
    """Reads the history and its views, and writes nothing; the process behind `ask` looks up snapshots with it."""
