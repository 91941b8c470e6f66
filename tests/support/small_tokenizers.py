"""Small tokenizers of the kinds that models have: pieces as in T5, word pieces as in BERT, bytes as in Llama."""

from __future__ import annotations

import string

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = ("the", "capital", "of", "is", "price", "Paris", "Lima", "Canberra", "Niger", "Nigeria", "Peru")
LETTERS = string.ascii_letters + string.digits + ".,:;?!'-$%()"


def t5_like() -> PreTrainedTokenizerFast:
    """Pieces of Latin texts, made plain as T5 makes them, with one token for all else; it ends a text."""
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *(f"\u2581{word}" for word in WORDS), *LETTERS]
    tokenizer = Tokenizer(models.Unigram([(piece, -len(piece) / 9) for piece in pieces], unk_id=2))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", pad_token="<pad>")


def bert_like(*, lowercase: bool = False) -> PreTrainedTokenizerFast:
    """Word pieces with Chinese letters by themselves; `[CLS]` and `[SEP]` stand around a text, and nothing ends it."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [*LETTERS, *"中国的首都是北京"]
    words = [word.lower() if lowercase else word for word in WORDS]
    vocabulary = dict.fromkeys((*special, *words, *letters, *(f"##{letter}" for letter in LETTERS)))
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def llama_like() -> PreTrainedTokenizerFast:
    """Pieces with bytes for all else, a blank before the first word, and `<s>` in front."""
    control = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<think>"]
    plain = [*(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *LETTERS]
    vocabulary = {piece: place for place, piece in enumerate((*control[:3], *plain))}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    made.add_special_tokens({"additional_special_tokens": control[3:5]})
    made.add_tokens(control[5:])
    return made
