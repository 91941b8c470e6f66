"""The one error of the embedded stack, and how it tells what the system said."""

from pathlib import Path


class LocalStackError(Exception):
    """A part of the embedded stack cannot run; the text is one sentence that names the part and its log."""

    def __init__(self, *, service: str, reason: str, log: Path | None = None) -> None:
        self.service = service
        self.reason = reason
        self.log = log
        super().__init__(f"{service}: {reason}" + (f" (log: {log})" if log else ""))


def said(error: OSError) -> str:
    """Return what the system says of a file, as a person would: without its number, and with the file it names."""
    match error:
        case FileExistsError():
            what = "a file is in its place"
        case NotADirectoryError():
            what = "a part of its path is a file"
        case _:
            what = error.strerror or str(error)
    return f"{what} ({error.filename})" if error.filename else what
