"""Corrections as people give them to `submit`: in options, or as lines of a file that may leave things out.

What a line leaves out is filled in. Its id is then made of what it says, so that a file that is sent twice holds every
correction once; a line that names itself keeps its name.
"""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args
from uuid import uuid4

from pipeline.domain.errors import InvalidInput
from pipeline.domain.formats.canonical import sha256_text
from pipeline.domain.formats.json_lines import json_lines
from pipeline.domain.language.guessing import guessed_subject
from pipeline.domain.language.names import last_mention
from pipeline.domain.prompts import Role
from pipeline.domain.reasons import quoted

ROLES = get_args(Role)
SOURCE = "cli"
QUESTION_MARKS = ("?", "\uff1f", "\u061f")
"""How questions end: in most scripts, in Chinese and Japanese, in Arabic."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One correction, and where it was given."""

    number: int
    """Line of the file, from 1; 1 for a correction in options."""
    document: Mapping[str, Any]
    """The correction, as a message will hold it."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """What was given, without what was filled in here."""
    is_filled_in: bool = False
    """Whether its id or its time was filled in, so that only the database knows whether it was sent before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """A line that can never be an edit."""

    line: int
    """Line of the file, from 1."""
    error: str
    """What was expected, and what was got."""


def correction_in_options(fields: Mapping[str, Any], submitter: str) -> Line:
    """Return the correction that options give; whether it can be an edit is the wire contract's to say.

    Where they name no subject it is the name that the prompt, or the chat's last turn, is probably about: an edit that
    names none moves every other subject of its kind with it.

    Raises:
        InvalidInput: if it says neither what is asked nor what is right.
    """
    if not (fields.get("prompt") or fields.get("messages")) or not (fields.get("target_new") or fields.get("answer")):
        raise InvalidInput("expected a JSONL file, or --prompt (or --message) and --target (or --answer); got less")
    made_up = {"request_id": f"cli-{uuid4().hex[:12]}", "source": SOURCE, "submitted_by": submitter}
    asked = fields.get("prompt") or fields["messages"][-1]["content"]
    if (subject := guessed_subject(asked)) and subject not in fields.get("target_new", ""):
        made_up["subject"] = subject
    document = made_up | {"occurred_at": _now()} | dict(fields)
    return Line(number=1, document=document, given=fields, is_filled_in=True)


def advice(line: Line) -> list[str]:
    """Return what helps a correction that was written by hand: a subject, a stem, rephrases that name the subject."""
    subject, prompt = line.document.get("subject"), line.document.get("prompt") or ""
    found = []
    if not subject:
        found.append(
            "no subject was given or found: others of its kind may move with it; --subject says what it is about"
        )
    elif "subject" not in line.given:
        found.append(f"it is about {subject}, as its prompt says; --subject names another")
    if prompt.rstrip().endswith(QUESTION_MARKS):
        found.append(
            "the prompt is a question: an edit holds better with a stem that ends right before the answer as --prompt, "
            "and with the question as --question"
        )
    unnamed = [text for text in line.document.get("rephrases", ()) if subject and last_mention(text, subject) is None]
    found += [f"{quoted(text)} does not name {subject}, so the edit is not judged by it" for text in unnamed]
    return found


def turn(text: str) -> dict[str, str]:
    """Return a turn of a chat; the user says what nobody else is named for."""
    role, found, said = text.partition(":")
    return {"role": role, "content": said.strip()} if found and role in ROLES else {"role": "user", "content": text}


def corrections_in(file: Path, submitter: str, *, is_named: bool) -> tuple[list[Line], list[Refusal]]:
    """Return the lines of a file that are objects, filled in, and those that are none.

    Args:
        file: JSON lines; - for standard input.
        submitter: who made the corrections that do not say it themselves.
        is_named: whether the submitter was named on purpose; then every line gets it that names nobody.

    Raises:
        InvalidInput: if it cannot be read, or no line is a JSON object.
    """
    try:
        content = _standard_input() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise InvalidInput(f"expected a readable JSONL file, got {file}: {error.strerror}") from error
    refused: list[Refusal] = []
    found = json_lines(content, file, on_refused=lambda number, why: refused.append(Refusal(line=number, error=why)))
    lines = [
        _filled_in(Line(number=number, document=document, given=document), submitter, is_named)
        for number, document in found
    ]
    if refused and not lines:
        got = _other_form(content) or f"none: line {refused[0].line}, {refused[0].error}"
        raise InvalidInput(f"expected a JSONL file, a correction in each line; got {file}, with {got}")
    return lines, refused


def with_lineage(lines: Iterable[Line], name: str) -> list[Line]:
    """Return lines of which each says its lineage: that of the option, where it says none itself."""
    return [replace(line, document={"lineage": name} | dict(line.document)) for line in lines]


def _filled_in(line: Line, submitter: str, is_named: bool) -> Line:
    said = dict(line.document)
    is_filled_in = "request_id" not in said or "occurred_at" not in said
    if is_filled_in or is_named:
        said = {"submitted_by": submitter} | said
    if is_filled_in:
        told = json.dumps(dict(line.document), sort_keys=True)
        said = {"request_id": f"line-{sha256_text(told)[:16]}", "source": SOURCE, "occurred_at": _now()} | said
    return replace(line, document=said, is_filled_in=is_filled_in)


def _other_form(content: bytes) -> str | None:
    """Return what a file is that holds no line of JSON, and how it becomes one; None where nobody can tell."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content[:2]:
        return "text in UTF-16; `iconv -f utf-16 -t utf-8` makes UTF-8 of it"
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return None
    return "one JSON document over several lines; `jq -c '.[]'` makes lines of a list, `jq -c .` one of an object"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _standard_input() -> bytes:
    if sys.stdin is None:
        raise InvalidInput("expected JSONL on standard input, which is closed")
    return sys.stdin.buffer.read()
