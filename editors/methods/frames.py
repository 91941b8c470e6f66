"""The frames of an edit: the wordings in which it is read, so that it holds however it is asked.

A subject's key depends on what stands on its left, and the shift that is found for one wording serves that wording
best. So an edit has several rows an inner parameter, which share one shift: keys come from all frames, and the shift
from the gradients of those in which the target follows. ROME and MEMIT average over prefixes for the same reason.

Guards are other subjects in the edit's own prompt. Their rows ask for no shift: what is said of them stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from editors.models.families import EditableModel
from editors.models.tokens import Encoded
from pipeline.domain.edits import Edit, EditRequest
from pipeline.domain.errors import InvalidInput
from pipeline.domain.language.joining import joined
from pipeline.domain.language.names import renamed
from pipeline.domain.prompts import ChatPrompt, ChatTurn, Prompt
from pipeline.domain.rank_api import EditorSettings

CONTEXT = "In an article that appeared last week, readers learned the following."
"""What stands before the prompt in one frame: a sentence that says nothing."""
SUBJECT_FRAMES = ("{}", "The news about {}")
"""Frames that end with the subject: only their keys are used."""
MAX_ALIASES = 2
"""Most aliases that have a frame."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EditFrames:
    """An edit's frames as token ids; each list is in the order in which frames are asked."""

    asked: tuple[Encoded, ...]
    """Frames in which the target follows; the first is the edit's own prompt."""
    answered: tuple[bool, ...]
    """For each of them, whether its answer tokens are rows too: the model is asked like this."""
    keyed: tuple[Encoded, ...] = ()
    """Frames that end with the subject."""
    guards: tuple[Encoded, ...] = ()
    """The own prompt with other subjects, followed by the target's first token."""


def frames_of(model: EditableModel, edit: Edit, settings: EditorSettings, guards: Sequence[str] = ()) -> EditFrames:
    """Return the frames of an edit.

    Without frames in the settings, and for models whose keys are no subject tokens, they are its own prompt and its
    rephrases.

    Args:
        model: encodes them.
        edit: whose they are.
        settings: how many rephrases are frames, and whether there are others.
        guards: subjects that are held.

    Raises:
        InvalidInput: if the model cannot take the edit's own prompt or target.
    """
    request = edit.request
    own = model.encode_pair(request.own_prompt, request.target_new, request.subject)
    asked: list[tuple[Encoded, bool]] = [(own, True)]
    for prompt, subject, is_answered in _wordings(model, request, settings):
        encoded = _encoded(model, prompt, request.target_new, subject)
        if encoded is not None and encoded not in [known for known, _ in asked]:
            # Answer rows of one token share a shift: where the target is cut into other tokens, there is none to share.
            asked.append((encoded, is_answered and encoded.target_ids == own.target_ids))
    has_keys = settings.frames_per_pass and model.has_subject_keys and request.subject and own.subject_end is not None
    return EditFrames(
        asked=tuple(encoded for encoded, _ in asked),
        answered=tuple(is_answered for _, is_answered in asked),
        keyed=tuple(_keyed(model, request)) if has_keys else (),
        guards=tuple(_guards(model, request, guards)) if has_keys else (),
    )


def _wordings(
    model: EditableModel, request: EditRequest, settings: EditorSettings
) -> Iterator[tuple[Prompt, str | None, bool]]:
    """Yield other wordings: a prompt, the subject as it stands there, and whether the model is asked like this."""
    subject, chat = request.subject, request.chat_prompt
    has_frames = settings.frames_per_pass > 0 and model.has_subject_keys
    if has_frames and model.has_chat_template:
        yield _without_system(chat), subject, True
    if has_frames and isinstance(request.own_prompt, str):
        yield joined(CONTEXT, request.prompt), subject, False
    for rephrase in request.row_rephrases(settings.rephrase_rows):
        yield rephrase, subject, True
    if has_frames:
        yield joined(f"Question: {chat.question}\nAnswer:", chat.begun), subject, False
        if subject and isinstance(request.own_prompt, str):
            for alias in request.aliases[:MAX_ALIASES]:
                yield renamed(request.prompt, subject, alias), alias, True


def _without_system(chat: ChatPrompt) -> ChatPrompt:
    """Return a chat with a blank system turn where it has none: templates put a long one of their own there."""
    if chat.turns[0].role == "system":
        return chat
    return replace(chat, turns=(ChatTurn(role="system", content=""), *chat.turns))


def _keyed(model: EditableModel, request: EditRequest) -> Iterator[Encoded]:
    names = (request.subject or "", *request.aliases[:MAX_ALIASES])
    for name in dict.fromkeys(names):
        for frame in SUBJECT_FRAMES:
            with suppress(InvalidInput):  # the model may have no positions for it
                yield model.encode_named(frame.format(name), name)


def _guards(model: EditableModel, request: EditRequest, names: Sequence[str]) -> Iterator[Encoded]:
    subject = request.subject
    assert subject is not None, "expected a subject that others can take the place of"
    for name in names:
        encoded = _encoded(model, _renamed(request.own_prompt, subject, name), request.target_new, name)
        if encoded is not None and encoded.subject_end is not None:
            yield replace(encoded, target_ids=encoded.target_ids[:1])


def _renamed(prompt: Prompt, subject: str, name: str) -> Prompt:
    """Return a prompt with another subject."""
    if isinstance(prompt, str):
        return renamed(prompt, subject, name)
    turns = tuple(replace(turn, content=renamed(turn.content, subject, name)) for turn in prompt.turns)
    return ChatPrompt(turns=turns, begun=renamed(prompt.begun, subject, name))


def _encoded(model: EditableModel, prompt: Prompt, target: str, subject: str | None) -> Encoded | None:
    """Return a frame as token ids; None where the model cannot take it, which only the own prompt must be."""
    try:
        return model.encode_pair(prompt, target, subject)
    except InvalidInput:
        if isinstance(prompt, ChatPrompt) and not prompt.turns[0].content:  # a template without system turns
            return _encoded(model, replace(prompt, turns=prompt.turns[1:]), target, subject)
        return None
