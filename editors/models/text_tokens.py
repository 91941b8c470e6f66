"""What a tokenizer makes of a text: its tokens, what is put around them, and whether they still say the text.

Nothing here asks for a tokenizer's family: what it puts before and behind a text, it marks itself.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pipeline.domain.errors import InvalidInput
from pipeline.domain.language.names import last_mention
from pipeline.domain.language.spelling import lowered, normalised

ANY_TEXT = "."
"""Asks a tokenizer what it puts around a text, where the text itself has no token."""
BEFORE_TARGET = ("\n", ":", "\u3002", "a")
"""Texts whose tokens may come before a target's when no token of the prompt ends where the target begins."""

MOST_REMEMBERED = 4_096
"""Texts whose tokens are remembered. A pair is looked at in seven ways before it is encoded, and training, trials and
measurements encode the same texts again and again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextTokens:
    """The token ids of a text, and those that the tokenizer put around them."""

    before: tuple[int, ...]
    """Special tokens in front."""
    own: tuple[int, ...]
    """The text's own; none for a text of nothing."""
    behind: tuple[int, ...]
    """Special tokens that close it."""


@lru_cache(maxsize=MOST_REMEMBERED)
def tokens_of(tokenizer: Any, text: str, *, is_target: bool = False) -> TextTokens:
    """Return the tokens of a text; `is_target` reads it as what a decoder has to say."""
    given = {"text_target": text} if is_target else {"text": text}
    encoded = tokenizer(**given, return_special_tokens_mask=True)
    ids, mask = tuple(encoded["input_ids"]), encoded["special_tokens_mask"]
    if ids and all(mask) and text != ANY_TEXT:
        around = tokens_of(tokenizer, ANY_TEXT, is_target=is_target)
        return TextTokens(before=around.before, own=(), behind=around.behind)
    start = next((place for place, is_special in enumerate(mask) if not is_special), len(ids))
    end = len(ids) - next((place for place, is_special in enumerate(mask[::-1]) if not is_special), len(ids) - start)
    return TextTokens(before=ids[:start], own=ids[start:end], behind=ids[end:])


@lru_cache(maxsize=MOST_REMEMBERED)
def own_tokens(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Return the token ids of a text with nothing around them."""
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def continuing(tokenizer: Any, prompt_ids: Sequence[int], whole_ids: Sequence[int], text: str) -> tuple[int, ...]:
    """Return the tokens of a text that stands at the end of a whole, behind a prompt.

    Tokens depend on what is around them ("Lima" is another token than " Lima"), so they are cut from the whole. Where a
    token spans the seam, the text is encoded by itself; a tokenizer that would put a blank before it there is given
    something to put it before.
    """
    if tuple(whole_ids[: len(prompt_ids)]) == tuple(prompt_ids):
        return tuple(whole_ids[len(prompt_ids) :])
    alone = own_tokens(tokenizer, text)
    if text[:1].isspace() or not str(tokenizer.decode([*own_tokens(tokenizer, "a"), *alone])).startswith("a "):
        return alone
    for anchor in BEFORE_TARGET:
        start, both = own_tokens(tokenizer, anchor), own_tokens(tokenizer, anchor + text)
        if both[: len(start)] == start and len(both) > len(start):
            return both[len(start) :]
    return alone


def subject_end(tokenizer: Any, text: str, subject: str | None, *, is_templated: bool = False) -> int | None:
    """Return the place of the token that ends the subject's last mention in a text; None if it has none.

    Only whole words are a mention: "Niger" is not named in "Nigeria".
    """
    span = last_mention(text, subject)
    if span is None:
        return None
    if not tokenizer.is_fast:  # knows no places in the text: the subject ends where a text that is cut there ends
        cut = tokens_of(tokenizer, text[: span[1]])
        return len(cut.own) + (0 if is_templated else len(cut.before)) - 1
    spans = tokenizer(text, return_offsets_mapping=True, add_special_tokens=not is_templated)["offset_mapping"]
    named = [place for place, (first, last) in enumerate(spans) if first < span[1] and last > max(first, span[0])]
    return max(named, default=None)


def require_plain(tokenizer: Any, text: str) -> None:
    """Refuse a text with a token of the tokenizer's own in it, such as the one that ends a turn.

    A tokenizer reads it as that token wherever it stands: the text of one turn would become several, and speak as
    somebody else; a target would end there.

    Raises:
        InvalidInput: naming the token.
    """
    control = _control_tokens(tokenizer)
    found = next((token for token in control.values() if token in text), None)
    if found is None:
        ids = own_tokens(tokenizer, text)
        found = next((control[id_] for id_ in ids if id_ in control and id_ != tokenizer.unk_token_id), None)
    if found is not None:
        raise InvalidInput(f"expected plain text, got one with the tokenizer's own token {found!r:.40} in it")


def require_known(tokenizer: Any, text: str, what: str = "a prompt") -> None:
    """Refuse a text of which the tokenizer knows nothing: the model would read it like any other of that kind.

    Raises:
        InvalidInput: with the text.
    """
    ids, unknown = own_tokens(tokenizer, text), tokenizer.unk_token_id
    if unknown is None or unknown not in ids:
        return
    known = str(tokenizer.decode([id_ for id_ in ids if id_ != unknown]))
    if not any(char.isalnum() for char in known):
        raise InvalidInput(f"expected {what} that the tokenizer knows a word of, got {text!r:.80}")


def require_same(tokenizer: Any, target: str, target_ids: Sequence[int], before: Sequence[int] = ()) -> None:
    """Refuse a target whose tokens say something else, or nothing that is known.

    Case, width and blanks are the tokenizer's own affair; all else has to come back.

    Args:
        tokenizer: what the tokens are of.
        target: what was to be said.
        target_ids: its tokens.
        before: tokens that they follow, which may tell how they are read.

    Raises:
        InvalidInput: with what the tokens say.
    """
    said = str(tokenizer.decode(list(target_ids)))
    if _letters(said) == _letters(target):
        return
    start, whole = (str(tokenizer.decode([*before, *ids])) for ids in ((), target_ids))
    if not before or _letters(whole) != _letters(start) + _letters(target):
        raise InvalidInput(f"expected a target that the tokenizer can write, got {target!r:.80}, read as {said!r:.80}")


def _letters(text: str) -> str:
    """Return a text as tokenizers may change it: without blanks and unseen marks, in small plain letters."""
    plain = lowered(unicodedata.normalize("NFC", normalised(text)))
    return "".join(char for char in plain if not char.isspace() and unicodedata.category(char) != "Cf")


@lru_cache(maxsize=16)
def _control_tokens(tokenizer: Any) -> dict[int, str]:
    """Return the tokens that are no text, by id: special ones, and others that look like markup."""
    added = {id_: str(token) for id_, token in tokenizer.added_tokens_decoder.items() if _is_control(token)}
    special = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=False)
    return {id_: token for id_, token in (*added.items(), *special) if token.strip()}


def _is_control(token: Any) -> bool:
    text = str(token)
    return bool(token.special) or (len(text) > 2 and text[0] + text[-1] in ("<>", "[]"))
