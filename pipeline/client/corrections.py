"""A correction as programs write it: every field by its name, none checked before the API has checked it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """A neighbour or a consequence of a correction: a stem about something else."""

    prompt: str
    """A stem that ends right before its answer."""
    target: str | None = None
    """The answer that it should have; of a neighbour it may be left out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Correction:
    """One correction of one fact. `prompt` or `messages` say what is asked, `target_new` or `answer` what is right.

    Everything else helps it to hold and to be measured; CORRECTIONS.md says how. A value that cannot be right is told
    by the API, with the field and what was expected.
    """

    prompt: str | None = None
    """A stem that ends right before the answer."""
    target_new: str | None = None
    """What the model has to say after the prompt, up to 200 characters."""
    messages: Sequence[Mapping[str, Any]] = ()
    """The chat that went wrong, in OpenAI's form, up to the user's turn that was answered wrongly."""
    answer: str | None = None
    """A right answer as a sentence; `target_new` stands in it."""
    subject: str | None = None
    """The entity that the fact is about, as it stands in the prompt."""
    aliases: Sequence[str] = ()
    """Other names of the subject."""
    relation: str | None = None
    """One word for one kind of fact, such as `capital`."""
    question: str | None = None
    """The fact as people ask for it in a chat."""
    rephrases: Sequence[str] = ()
    """Other stems with the same answer; the first is kept back to test the edit."""
    locality: Sequence[str | Probe] = ()
    """Neighbours: stems about other subjects, whose answers have to stay."""
    portability: Sequence[Probe] = ()
    """Consequences, with the answers that follow from the fact."""
    target_true: str | None = None
    """What the model said until now."""
    lineage: str | None = None
    """The lineage that it is for; may be left out while there is only one."""
    request_id: str | None = None
    """Your own id: sent again with it, also by another process, it is the same correction. One is made up otherwise."""
    occurred_at: datetime | None = None
    """When the fact was seen to be wrong, with a time zone; now, if left out."""
    source: str | None = None
    """The system that it comes from."""

    def document(self) -> dict[str, Any]:
        """Return the JSON object that the API takes: what was given, and nothing else."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: _plain(value) for name, value in given.items() if value is not None and value != ()}


def _plain(value: Any) -> Any:
    """Return a value of a field as JSON has it."""
    match value:
        case datetime():
            return value.isoformat()
        case Probe():
            return {"prompt": value.prompt} | ({} if value.target is None else {"target": value.target})
        case str() | Mapping():
            return value
        case Sequence():
            return [_plain(one) for one in value]
        case _:
            return value
