"""Edits in their frames, and everything that is asked of them, as token ids.

To make them ready takes minutes for ten thousand edits: each is cut into tokens some twenty times, and its guards are
chosen by the base. So they may be kept in a file (`kept_in`), which a run on other data, settings or base refuses.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from editors.data.atomic_files import write_atomically
from editors.data.datasets import without_question
from editors.measure.losses import TEXT_TOKENS
from editors.methods.frames import EditFrames, frames_of
from editors.methods.guards import Guards, probed_texts
from editors.models.families import EditableModel
from editors.models.tokens import Encoded
from editors.training.examples import require_both, split
from pipeline.domain.edits import Edit, EditRequest
from pipeline.domain.errors import IntegrityBroken, InvalidInput
from pipeline.domain.language.joining import joined
from pipeline.domain.prompts import ChatPrompt, ChatTurn, Prompt
from pipeline.domain.rank_api import EditorSettings

CONTEXT_CHARS = 90
"""Most characters of plain text that are put before a wording."""
MIN_CONTEXT_CHARS = 30
"""Least characters of a line that serves as such a text."""
OTHER_FACTS = (
    "{} was born in",
    "{} is located in",
    "{} is known for",
    "The name of {} comes from",
    "Question: What is {} famous for?\nAnswer: {} is famous for",
    "The history of {} begins",
)
"""What else may be said of a subject: none of it may change."""
NUM_OTHER_FACTS = 2
"""How many of them an edit has."""
GUARDED_TOGETHER = 64
"""Edits whose guards are chosen together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FramedExample:
    """An edit to learn from or to be judged by."""

    frames: EditFrames
    """What the editor reads of it."""
    views: tuple[Encoded, ...]
    """Other wordings with the same target; at least one, and none of them a frame where there are others."""
    locality: tuple[Encoded, ...]
    """Neighbouring prompts with the answers that have to stay; may be empty."""
    others: tuple[Encoded, ...]
    """Texts that say something else of the subject."""
    has_new_relation: bool = False
    """Whether no edit that is learnt from is about its relation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FramedExamples:
    """What a run learns from, and what it is judged by; no fact is in both."""

    training: tuple[FramedExample, ...]
    """Edits to learn from."""
    held_out: tuple[FramedExample, ...]
    """Edits to validate on."""
    text: tuple[Encoded, ...]
    """Lines of plain text, in which the probabilities of every token have to stay."""


def make_framed_examples(
    model: EditableModel,
    edits: Sequence[Edit],
    held_out: Sequence[Edit],
    text: str,
    *,
    use: EditorSettings,
    num_held_out: int,
    new_relations: Collection[str] = (),
) -> FramedExamples:
    """Encode everything that a run learns from and is judged by.

    Half of the edits that come with a question are read without it, and asked it.

    Args:
        model: the base.
        edits: edits to learn from, and to validate on where `held_out` is empty.
        held_out: edits to validate on.
        text: plain text, of which each line is taken by itself.
        use: how the editor is going to be used: which frames and how many guards an edit has.
        num_held_out: most edits to validate on.
        new_relations: relations whose edits are not learnt from.

    Raises:
        InvalidInput: if there is nothing to learn from or to validate on, or the model cannot give a target.
    """
    taught, judged = split(edits, held_out, num_held_out=num_held_out, new_relations=new_relations)
    require_both((taught, judged), "rephrases", edits, held_out)
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    contexts = [line[:CONTEXT_CHARS].rsplit(" ", 1)[0] + "." for line in lines if len(line) >= MIN_CONTEXT_CHARS]
    guards = Guards(model, use, kept=probed_texts(judged))
    groups = [
        tuple(_examples(model, group, use, guards, contexts or [""], new_relations)) for group in (taught, judged)
    ]
    require_both(groups, "a subject that stands in the prompt", edits, held_out)
    encoded = tuple(model.encode_text(line, max_tokens=TEXT_TOKENS) for line in lines)
    return FramedExamples(training=groups[0], held_out=groups[1], text=encoded)


def kept_in(path: Path | None, made_of: str, make: Callable[[], FramedExamples]) -> FramedExamples:
    """Return the examples in a file, or make them and keep them there.

    Args:
        path: the file; nothing is kept if None.
        made_of: digest of all that the examples follow from.
        make: makes them.

    Raises:
        InvalidInput: if the file holds examples of something else.
        IntegrityBroken: if it cannot be read.
    """
    if path is None:
        return make()
    if not path.is_file():
        examples = make()
        content = TypeAdapter(FramedExamples).dump_json(examples)
        write_atomically(path, gzip.compress(f"{made_of}\n".encode() + content, mtime=0))
        return examples
    try:
        known, _, content = gzip.decompress(path.read_bytes()).partition(b"\n")
        if known.decode() != made_of:
            raise InvalidInput(f"expected examples of these edits, this base and these settings in {path}, got others")
        return TypeAdapter(FramedExamples).validate_json(content)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, ValidationError) as error:
        raise IntegrityBroken(f"expected prepared examples in {path}, got something else: {error!r:.200}") from error


def _examples(
    model: EditableModel,
    edits: Sequence[Edit],
    use: EditorSettings,
    guards: Guards,
    contexts: Sequence[str],
    new_relations: Collection[str],
) -> Iterator[FramedExample]:
    numbered = [replace(edit, edit_id=f"{place:06d}") for place, edit in enumerate(edits)]
    for start in range(0, len(numbered), GUARDED_TOGETHER):
        group = numbered[start : start + GUARDED_TOGETHER]
        names = guards.of(group)
        for place, edit in enumerate(group, start=start):
            read = without_question(edit) if place % 2 else edit
            frames = frames_of(model, read, use, names.get(edit.edit_id, ()))
            views = tuple(_views(model, edit.request, frames, contexts[place % len(contexts)]))
            if views and frames.asked[0].subject_end is not None:
                yield FramedExample(
                    frames=frames,
                    views=views,
                    locality=tuple(_neighbours(model, edit.request)),
                    others=tuple(_others(model, edit.request.subject or "", place)),
                    has_new_relation=edit.request.relation in new_relations,
                )


def _views(model: EditableModel, request: EditRequest, frames: EditFrames, context: str) -> list[Encoded]:
    """Return what is asked of an edit: wordings, the question in a chat and without one, and behind other text."""
    chat = request.chat_prompt
    prompts: list[Prompt] = [*request.rephrases, joined(context, request.rephrases[0])]
    prompts.append(joined(f"Q: {chat.question}\nA:", chat.begun))
    if model.has_chat_template:
        prompts += [chat, ChatPrompt(turns=(ChatTurn(role="user", content=request.prompt),), begun=chat.begun)]
    encoded = []
    for prompt in prompts:
        with suppress(InvalidInput):  # a template may not take it, or the model have no positions
            encoded.append(model.encode_pair(prompt, request.target_new))
    asked = {(frame.prompt_ids, frame.target_ids) for frame in frames.asked}
    unseen = [view for view in encoded if (view.prompt_ids, view.target_ids) not in asked]
    return list(dict.fromkeys(unseen or encoded))


def _neighbours(model: EditableModel, request: EditRequest) -> Iterator[Encoded]:
    for probe in request.locality:
        if probe.target:
            with suppress(InvalidInput):
                yield model.encode_pair(probe.prompt, probe.target)


def _others(model: EditableModel, subject: str, place: int) -> Iterator[Encoded]:
    for offset in range(NUM_OTHER_FACTS):
        text = OTHER_FACTS[(place + offset) % len(OTHER_FACTS)].format(subject, subject)
        yield model.encode_text(text, max_tokens=TEXT_TOKENS)
