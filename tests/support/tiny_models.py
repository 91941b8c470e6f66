"""Small models with random weights and a tokenizer, built without a network."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEXT = """the of is a capital city country Japan France Tokyo Paris Lyon Kyoto Rome Italy Milan located in language
spoken by was born river mountain president king queen and who what where Berlin Germany Bonn Madrid Spain ."""


def save_tiny_llama(folder: Path, *, seed: int = 0, hidden: int = 16, mlp: int = 16, num_blocks: int = 4) -> None:
    """A Llama whose edited matrices are square by default, where a wrong orientation runs silently."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(_vocabulary()),
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=num_blocks,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def save_tiny_gpt2(folder: Path, *, seed: int = 0) -> None:
    """A GPT-2, whose layers are Conv1D and whose MLP output here is not square and divides by neither 2 nor 3."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(_vocabulary()),
        n_embd=10,
        n_inner=5,
        n_layer=3,
        n_head=2,
        n_positions=64,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def _vocabulary() -> dict[str, int]:
    return {word: index for index, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *dict.fromkeys(TEXT.split())])}


def tiny_tokenizer(around: str = "") -> PreTrainedTokenizerFast:
    """A tokenizer of the words above.

    Args:
        around: what it puts around a text, `$A` being the text; nothing if empty.
    """
    tokenizer = Tokenizer(models.WordLevel(_vocabulary(), unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if around:
        specials = [(token, _vocabulary()[token]) for token in ("<s>", "</s>")]
        tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
