"""A tiny model of every architecture that has known inner parameters, with random weights, on a tokenizer of words.

All edited layers are square: a wrong orientation would run silently.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

from editors.models.families import EditableModel, editable
from tests.support.tiny_models import tiny_tokenizer

LABELS = ("false", "true", "unknown")
"""Labels of the tiny classifier."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """How a tiny model is made, and what is known of it."""

    task: str
    """As in a lineage."""
    model_type: str
    """As in a config."""
    config: dict[str, Any]
    """Sizes."""
    expected: tuple[str, ...]
    """Default inner parameters, in order."""
    around: str = ""
    """What the tokenizer puts around a text."""


def _names(pattern: str, *places: int) -> tuple[str, ...]:
    return tuple(pattern.format(i=place) for place in places)


GPT = {"n_embd": 16, "n_inner": 16, "n_layer": 4, "n_head": 2, "n_positions": 64}
LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
T5 = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_layers": 3, "num_heads": 2, "decoder_start_token_id": 0}
T5_NAMES = _names("encoder.block.{i}.layer.1.DenseReluDense.wo.weight", 1, 2) + _names(
    "decoder.block.{i}.layer.2.DenseReluDense.wo.weight", 1, 2
)
BART = {"d_model": 16, "max_position_embeddings": 64, "decoder_start_token_id": 2, "forced_eos_token_id": None} | {
    f"{stack}_{name}": size
    for stack in ("encoder", "decoder")
    for name, size in (("layers", 3), ("ffn_dim", 16), ("attention_heads", 2))
}
ARCHITECTURES = {
    "gpt2": Architecture(
        task="causal", model_type="gpt2", config=GPT, expected=_names("transformer.h.{i}.mlp.c_proj.weight", 0, 1, 2, 3)
    ),
    "gpt_neo": Architecture(
        task="causal",
        model_type="gpt_neo",
        config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_layers": 4,
            "num_heads": 2,
            "attention_types": [[["global", "local"], 2]],
        },
        expected=_names("transformer.h.{i}.mlp.c_proj.weight", 0, 1, 2, 3),
    ),
    "gptj": Architecture(
        task="causal",
        model_type="gptj",
        config=GPT | {"rotary_dim": 4},
        expected=_names("transformer.h.{i}.mlp.fc_out.weight", 0, 1, 2, 3),
    ),
    "gpt_neox": Architecture(
        task="causal",
        model_type="gpt_neox",
        config=LLAMA,
        expected=_names("gpt_neox.layers.{i}.mlp.dense_4h_to_h.weight", 0, 1, 2, 3),
    ),
    **{
        name: Architecture(
            task="causal",
            model_type=name,
            config=LLAMA | {"num_key_value_heads": 1},
            expected=_names("model.layers.{i}.mlp.down_proj.weight", 0, 1, 2, 3),
        )
        for name in ("llama", "mistral", "qwen2", "qwen3")
    },
    "t5": Architecture(task="seq2seq", model_type="t5", config=T5, expected=T5_NAMES, around="$A </s>"),
    "t5_gated": Architecture(
        task="seq2seq",
        model_type="t5",
        config=T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        expected=T5_NAMES,
        around="$A </s>",
    ),
    "mt5": Architecture(task="seq2seq", model_type="mt5", config=T5, expected=T5_NAMES, around="$A </s>"),
    "bart": Architecture(
        task="seq2seq",
        model_type="bart",
        config=BART,
        expected=_names("model.encoder.layers.{i}.fc2.weight", 1, 2)
        + _names("model.decoder.layers.{i}.fc2.weight", 1, 2),
        around="<s> $A </s>",
    ),
    "bert": Architecture(
        task="classifier",
        model_type="bert",
        config=LLAMA | {"id2label": dict(enumerate(LABELS)), "label2id": {name: i for i, name in enumerate(LABELS)}},
        expected=_names("bert.encoder.layer.{i}.output.dense.weight", 1, 2, 3),
        around="<s> $A </s>",
    ),
}
"""By name; every model type of `inner_params.REGISTRY` is here."""

_LOADERS: dict[str, Any] = {
    "causal": AutoModelForCausalLM,
    "seq2seq": AutoModelForSeq2SeqLM,
    "classifier": AutoModelForSequenceClassification,
}


def tiny_module(name: str, *, seed: int = 1, **changes: Any) -> tuple[Any, PreTrainedTokenizerFast]:
    """A module of an architecture with weights that are large enough for every layer to matter, and its tokenizer."""
    made = ARCHITECTURES[name]
    tokenizer = tiny_tokenizer(made.around)
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(made.model_type, vocab_size=len(tokenizer), **special, **(made.config | changes))
    torch.manual_seed(seed)
    module = _LOADERS[made.task].from_config(config)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.25)
    return module, tokenizer


def tiny_model(name: str, *, inner_params: tuple[str, ...] = (), seed: int = 1, **changes: Any) -> EditableModel:
    """The same as a model of its task."""
    module, tokenizer = tiny_module(name, seed=seed, **changes)
    return editable(ARCHITECTURES[name].task, module, tokenizer, inner_params)


def pairs_of(model: EditableModel) -> list[tuple[str, str]]:
    """Prompts of unlike length with targets that the model can say."""
    prompts = ["the capital of Japan is", "Rome is located in", "who spoken by the king of Spain and France"]
    targets = LABELS if model.task == "classifier" else ("Tokyo", "Italy Milan", "king")
    return list(zip(prompts, targets, strict=True))
