"""A tokenizer that knows every text, a token a byte, so that a test can read what a model is asked."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from editors.models.tokens import Encoded

CHAT_TEMPLATE = (
    "{% for turn in messages %}[{{ turn.role }}] {{ turn.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
"""A line a turn; the answer follows a mark."""
NO_SYSTEM_TEMPLATE = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + CHAT_TEMPLATE
)
"""The same, without system turns."""


def byte_tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes with a chat template or none."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: place for place, token in enumerate(["<pad>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<pad>")
    made.chat_template = chat_template
    return made


def prompt_of(tokenizer: PreTrainedTokenizerFast, encoded: Encoded) -> str:
    """The prompt of a sequence as text."""
    return str(tokenizer.decode(encoded.prompt_ids))


def target_of(tokenizer: PreTrainedTokenizerFast, encoded: Encoded) -> str:
    """Its target as text."""
    return str(tokenizer.decode(encoded.target_ids))


def up_to_subject(tokenizer: PreTrainedTokenizerFast, encoded: Encoded) -> str:
    """Its prompt up to where the subject ends, as text."""
    assert encoded.subject_end is not None, "expected a sequence that names its subject"
    return str(tokenizer.decode(encoded.prompt_ids[: encoded.subject_end + 1]))
