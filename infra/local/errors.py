"""The one error of the embedded stack."""

from pathlib import Path


class LocalStackError(Exception):
    """A part of the embedded stack cannot run; the text is one sentence that names the part and its log."""

    def __init__(self, *, service: str, reason: str, log: Path | None = None) -> None:
        self.service = service
        self.reason = reason
        self.log = log
        super().__init__(f"{service}: {reason}" + (f" (log: {log})" if log else ""))
