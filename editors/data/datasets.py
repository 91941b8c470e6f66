"""Files of edits, of probes and of text.

Edits come in our own wire format, in which `lineage`, `request_id` and `occurred_at` may be left out, or in one of the
literature's (see `formats`). A file holds one JSON object a line, or all of them in one JSON list. Each object shows
by its fields which format it is in.
"""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

from editors.data.formats import as_wire
from pipeline.domain.contract.chat_wire import is_readable
from pipeline.domain.contract.wire import parse_object
from pipeline.domain.edits import Edit, EditRequest, Probe
from pipeline.domain.errors import InvalidInput, InvalidMessage, Misconfigured
from pipeline.domain.formats.canonical import canonical_json
from pipeline.domain.formats.json_lines import json_lines, json_object, located, text_lines
from pipeline.domain.language.joining import joined
from pipeline.domain.language.spelling import normalised
from pipeline.domain.rank_api import SuiteProbe

EDIT_FILES = (".json", ".jsonl")
"""How the names of files of edits end, among the files that a prior is measured over; others show it."""
WRITTEN = (
    "prompt", "messages", "question", "subject", "aliases", "relation", "target_new", "target_true", "answer",
    "rephrases", "locality", "portability",
)  # fmt: skip
"""Fields of a request that `edit_lines` writes, in this order."""
LINEAGE = "evaluation"
"""Lineage of an edit that names none."""
NO_TIME = "1970-01-01T00:00:00+00:00"
"""Time of an edit that has none: of two corrections of a fact the later line wins all the same."""


def read_edits(path: Path, *, limit: int | None = None) -> list[Edit]:
    """Return the first edits of a file, as if they had been received in this order.

    Raises:
        Misconfigured: if the file cannot be read, a line is no edit, or there is none.
    """
    edits = []
    for number, (where, document) in enumerate(islice(_objects(path), limit), start=1):
        try:
            request = parse_object(_complete(as_wire(document), number))
        except InvalidMessage as error:
            raise Misconfigured(f"expected an edit in {where}, got one with {error}") from error
        edits.append(Edit(edit_id=f"{number:06d}", request=request))
    if not edits:
        raise Misconfigured(f"expected at least one edit in {path}, got none")
    return edits


def _complete(wire: dict[str, Any], number: int) -> dict[str, Any]:
    """Return an edit with what its line may leave out."""
    return {"lineage": LINEAGE, "request_id": f"line-{number}", "occurred_at": NO_TIME} | wire


def read_suite(path: Path) -> list[SuiteProbe]:
    """Read a locality suite: JSON objects with `prompt`, and optionally `target`, `subject` and `relation`.

    Raises:
        Misconfigured: if the file cannot be read or a line is no probe.
    """
    suite = []
    for where, item in _objects(path):
        said = {name: _said(item, name, where) for name in ("prompt", "target", "subject", "relation")}
        if said["prompt"] is None:
            raise Misconfigured(f"expected a probe with a prompt in {where}, got {item!r:.80}")
        probe = Probe(prompt=item["prompt"].rstrip(), target=said["target"])
        suite.append(SuiteProbe(probe=probe, subject=said["subject"], relation=said["relation"]))
    return suite


def facts_of(probe: SuiteProbe) -> set[str]:
    """Return the facts that a probe may be about: conflict keys as canonical JSON, without a lineage's name."""
    keys = {canonical_json([normalised(probe.probe.prompt)])}
    if probe.subject and probe.relation:
        keys.add(canonical_json([normalised(probe.subject), normalised(probe.relation)]))
    return keys


def _said(item: dict[str, Any], name: str, where: str) -> str | None:
    """Return a text of a probe without outer blanks; None where there is none."""
    value = item.get(name)
    if value is not None and (not isinstance(value, str) or not is_readable(value)):
        raise Misconfigured(f"expected a {name} with at least one visible character in {where}, got {value!r:.80}")
    return value.strip() if value is not None else None


def read_text(path: Path) -> str:
    """Read a text file in UTF-8.

    Raises:
        Misconfigured: if it cannot be read.
    """
    try:
        return "\n".join(line for _, line in text_lines(_content(path), path))
    except InvalidInput as error:
        raise Misconfigured(str(error)) from error


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Misconfigured(f"expected a UTF-8 text file, got {path}: {error}") from error


def prior_lines(path: Path) -> list[str]:
    """Return the lines that a prior is measured over.

    Of a text these are its lines that are not blank. Of a file of edits they are each edit's prompt and its neighbours
    with their answers: nothing of what the edit changes.
    """
    if not _holds_edits(path):
        return [line for line in read_text(path).split("\n") if line.strip()]
    requests = [edit.request for edit in read_edits(path)]
    return [
        line
        for request in requests
        for line in (request.prompt, *(joined(near.prompt, near.target or "") for near in request.locality))
    ]


def prior_subjects(paths: Iterable[Path]) -> list[tuple[str, str]]:
    """Return the edits' prompts with the subjects that they name, from those files that are files of edits."""
    edits = [edit for path in paths if _holds_edits(path) for edit in read_edits(path)]
    return [(edit.request.prompt, edit.request.subject) for edit in edits if edit.request.subject]


def _holds_edits(path: Path) -> bool:
    """Return whether a file is one of edits: by its name, or by a first line that is a JSON object and so no text."""
    if path.suffix in EDIT_FILES:
        return True
    with suppress(InvalidInput):
        return any(True for _ in islice(json_lines(_content(path), path), 1))
    return False


def latest_of_each_fact(edits: list[Edit]) -> list[Edit]:
    """Return the edits without those whose fact a later edit of the list corrects again."""
    last: dict[str, EditRequest] = {edit.request.conflict_key: edit.request for edit in edits}
    return [edit for edit in edits if last[edit.request.conflict_key] is edit.request]


def without_question(edit: Edit) -> Edit:
    """Return an edit without what says how its fact is asked in a chat; one that came only as a chat stays as it is."""
    if edit.request.is_chat:
        return edit
    return replace(edit, request=replace(edit.request, question=None, messages=(), answer=None))


def edit_lines(edits: Sequence[Edit]) -> bytes:
    """Return the content of a file in our own format from which `read_edits` reads the same requests."""
    return "".join(json.dumps(_wire(edit)) + "\n" for edit in edits).encode()


def _wire(edit: Edit) -> dict[str, Any]:
    known = asdict(edit.request)
    for kind in ("locality", "portability"):
        known[kind] = [{name: value for name, value in probe.items() if value} for probe in known[kind]]
    return {name: known[name] for name in WRITTEN if known[name]}


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a file, each with where it stands."""
    content = _content(path)
    try:
        if content.removeprefix(BOM_UTF8).lstrip().startswith(b"["):
            for place, item in enumerate(located(read_text(path), str(path)), start=1):
                where = f"item {place} of {path}"
                yield where, json_object(item, where)
        else:
            for number, document in json_lines(content, path):
                yield f"line {number} of {path}", document
    except InvalidInput as error:
        raise Misconfigured(str(error)) from error
