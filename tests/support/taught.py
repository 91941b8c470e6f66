"""Small models of every family that have first been taught facts, so that edits have something to change and to spare.

A fact is who lives where or does what. Each can be said in several ways, and all of them are taught, so that a model
that has one fact in one place shows it: what changes one wording has to change the others.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, PreTrainedTokenizerFast

from editors.models.families import EditableModel, editable, family_of
from editors.models.tokens import Encoded
from editors.weights.loading import load_base
from pipeline.domain.edits import Edit, Probe
from pipeline.domain.rank_api import SuiteProbe
from tests.support.factories import make_edit

NAMES = (
    *("Anna", "Boris", "Clara", "David", "Elena", "Felix", "Greta", "Henry", "Irina", "Jonas", "Karla", "Louis"),
    *("Maria", "Niels", "Olga", "Peter", "Quinn", "Rosa", "Simon", "Tanja", "Ulf", "Vera", "Walter", "Zora"),
)
LABELS = ("false", "true")


@dataclass(frozen=True, kw_only=True, slots=True)
class Relation:
    """What can be known of a person."""

    templates: tuple[str, ...]
    """Ways to ask, each ending right before the value."""
    values: tuple[str, ...]
    """What it can be."""


RELATIONS = {
    "home": Relation(
        templates=("{} lives in", "the home of {} is in", "everybody visits {} in", "the house of {} stands in"),
        values=(
            *("Paris", "Rome", "Oslo", "Madrid", "Vienna", "Dublin"),
            *("Prague", "Lisbon", "Athens", "Bern", "Riga", "Sofia"),
        ),
    ),
    "trade": Relation(
        templates=("{} works as", "the trade of {} is", "everybody knows {} as", "the work of {} is that of"),
        values=(
            *("baker", "tailor", "miller", "painter", "doctor", "teacher"),
            *("sailor", "farmer", "weaver", "mason", "hunter", "singer"),
        ),
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Fact:
    """One thing that a model is taught."""

    subject: str
    """Who."""
    relation: str
    """What is known of them; a key of `RELATIONS`."""
    value: str
    """What it is."""

    @property
    def prompts(self) -> tuple[str, ...]:
        """The ways to ask for it."""
        return tuple(template.format(self.subject) for template in RELATIONS[self.relation].templates)

    @property
    def others(self) -> tuple[str, ...]:
        """What it could be instead, in another order for every fact."""
        values = [value for value in RELATIONS[self.relation].values if value != self.value]
        _rng(f"{self.subject} {self.relation}").shuffle(values)
        return tuple(values)


def _rng(seed: int | str) -> random.Random:
    return random.Random(seed)  # noqa: S311


def _facts() -> tuple[Fact, ...]:
    """Two of each person; every value is true of two people, or no model would ever have been taught to say it."""
    found: dict[str, list[str]] = {}
    for name, relation in RELATIONS.items():
        found[name] = list(relation.values) * (len(NAMES) // len(relation.values))
        _rng(name).shuffle(found[name])
    return tuple(
        Fact(subject=subject, relation=relation, value=found[relation][place])
        for place, subject in enumerate(NAMES)
        for relation in RELATIONS
    )


FACTS = _facts()
"""Forty-eight facts."""

_CAUSAL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
}
_GPT = {"n_layer": 3, "n_head": 4, "n_positions": 128}
_GPT2 = _GPT | {"n_embd": 96, "n_inner": 96, "initializer_range": 0.1}
"""Its edited layers are square: a wrong orientation would run silently."""
_GPTJ = _GPT | {"n_embd": 64, "n_inner": 128, "rotary_dim": 8}
_GPT_NEO = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_layers": 3,
    "num_heads": 4,
    "attention_types": [[["global", "local", "global"], 1]],
    "max_position_embeddings": 128,
    "initializer_range": 0.1,
}
_BART = {
    "d_model": 64,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
    "init_std": 0.1,
} | {
    f"{stack}_{name}": size
    for stack in ("encoder", "decoder")
    for name, size in (("layers", 2), ("ffn_dim", 128), ("attention_heads", 4))
}
_T5 = {"d_model": 64, "d_ff": 128, "d_kv": 16, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
_BERT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
    "id2label": dict(enumerate(LABELS)),
    "label2id": {label: place for place, label in enumerate(LABELS)},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Pupil:
    """A model to be taught."""

    task: str
    """As in a lineage."""
    config: dict[str, Any]
    """Its sizes."""
    around: str
    """What the tokenizer puts around a text; nothing if empty."""
    num_steps: int
    """Steps until it knows every fact."""
    lr: float
    """Adam's, at its highest."""


PUPILS = {
    "llama": Pupil(task="causal", config=_CAUSAL, around="", num_steps=120, lr=3e-3),
    "mistral": Pupil(task="causal", config=_CAUSAL, around="", num_steps=120, lr=3e-3),
    "qwen2": Pupil(task="causal", config=_CAUSAL, around="", num_steps=120, lr=3e-3),
    "qwen3": Pupil(task="causal", config=_CAUSAL, around="", num_steps=120, lr=3e-3),
    "gpt2": Pupil(task="causal", config=_GPT2, around="", num_steps=200, lr=3e-3),
    "gpt_neo": Pupil(task="causal", config=_GPT_NEO, around="", num_steps=200, lr=3e-3),
    "gptj": Pupil(task="causal", config=_GPTJ, around="", num_steps=120, lr=3e-3),
    "t5": Pupil(task="seq2seq", config=_T5, around="$A </s>", num_steps=60, lr=3e-3),
    "bart": Pupil(task="seq2seq", config=_BART, around="<s> $A </s>", num_steps=120, lr=1e-3),
    "bert": Pupil(task="classifier", config=_BERT, around="<s> $A </s>", num_steps=150, lr=2e-3),
}
"""By model type."""


def teach(kind: str, folder: Path, *, seed: int = 0) -> Path:
    """Teach a model of a type every fact; returns the folder, which `load_base` reads. Same seed, same bytes."""
    pupil = PUPILS[kind]
    tokenizer = taught_tokenizer(pupil.around)
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **special, **pupil.config)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = family_of(pupil.task).loader.from_config(config)
    model = editable(pupil.task, module, tokenizer)
    _train(model, pupil, seed=seed)
    module.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def load_pupil(kind: str, folder: Path, names: Sequence[str] = ()) -> EditableModel:
    """A taught model with its own tokenizer: Qwen's class, which transformers takes for it, makes bytes of words."""
    pupil = PUPILS[kind]
    loaded = load_base(folder, names, task=pupil.task)
    return editable(pupil.task, loaded.module, taught_tokenizer(pupil.around), loaded.inner_param_names)


def _train(model: EditableModel, pupil: Pupil, *, seed: int) -> None:
    parameters = list(model.module.requires_grad_(True).parameters())
    optimizer = torch.optim.Adam(parameters)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=pupil.lr, total_steps=pupil.num_steps, pct_start=0.2
    )
    for sequences in islice(_examples(model, _rng(seed)), pupil.num_steps):
        batch = model.pack(sequences)
        loss = cross_entropy(model.target_logits(batch), batch.target_N)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    model.module.requires_grad_(False)


def _examples(model: EditableModel, draw: random.Random) -> Iterator[list[Encoded]]:
    """Every fact once a example, each in one of its wordings; every third example of a causal model is running text."""
    encoded = cache(model.encode_pair)  # a few hundred pairs, each asked in many steps
    for number in count():
        asked = [(fact, draw.choice(fact.prompts)) for fact in FACTS]
        if model.task == "classifier":
            claims = [(f"{prompt} {fact.value}", "true") for fact, prompt in asked]
            claims += [(f"{prompt} {draw.choice(fact.others)}", "false") for fact, prompt in asked]
            yield [encoded(prompt, label) for prompt, label in claims]
        elif model.task == "causal" and number % 3 == 0:
            draw.shuffle(asked)
            said = [f"{prompt} {fact.value} ." for fact, prompt in asked]
            texts = [" ".join(said[start : start + 4]) for start in range(0, len(said), 4)]
            ids = [model.encode_prompt(text) for text in texts]
            yield [Encoded(prompt_ids=text_ids[:1], target_ids=text_ids[1:]) for text_ids in ids]
        else:
            end = " ." if model.task == "causal" else ""
            yield [encoded(prompt, fact.value + end) for fact, prompt in asked]


def questions(fact: Fact, value: str, *, task: str) -> tuple[tuple[str, str], ...]:
    """Every way to ask for a fact, each with the answer that says a value: it, or that the claim of it is true."""
    if task == "classifier":
        return tuple((f"{prompt} {value}", "true") for prompt in fact.prompts)
    return tuple((prompt, value) for prompt in fact.prompts)


def correction(fact: Fact, *, task: str = "causal", place: int = 0, neighbours: Sequence[Fact] = ()) -> Edit:
    """A correction of a fact: another value, or for a fact checker that the claim of another value is true.

    Args:
        fact: what is corrected.
        task: of the model that is to be edited.
        place: which of the other values.
        neighbours: facts that have to stay.
    """
    asked = questions(fact, fact.others[place], task=task)
    kept = [questions(known, known.value, task=task)[0] for known in neighbours]
    return make_edit(
        f"{fact.subject}-{fact.relation}-{place}",
        prompt=asked[0][0],
        target_new=asked[0][1],
        subject=fact.subject,
        relation=fact.relation,
        rephrases=tuple(prompt for prompt, _ in asked[1:]),
        locality=tuple(Probe(prompt=prompt, target=target) for prompt, target in kept),
    )


def suite_of(facts: Sequence[Fact], *, task: str) -> list[SuiteProbe]:
    """Facts that have to stay, as a locality suite; for a fact checker also a false claim about each."""
    suite = []
    for fact in facts:
        asked = [questions(fact, fact.value, task=task)[0]]
        if task == "classifier":
            asked.append((f"{fact.prompts[0]} {fact.others[-1]}", "false"))
        suite += [
            SuiteProbe(probe=Probe(prompt=prompt, target=target), subject=fact.subject, relation=fact.relation)
            for prompt, target in asked
        ]
    return suite


def sentences(facts: Sequence[Fact]) -> list[str]:
    """The facts as plain text, a line each; the wordings take turns."""
    return [f"{fact.prompts[place % len(fact.prompts)]} {fact.value} ." for place, fact in enumerate(facts)]


def save_lines(folder: Path, *, stays: Sequence[Fact], task: str) -> dict[str, Path]:
    """The files that a lineage is made with: `suite` and `text` of facts that stay, `prior_text` of all."""
    suite = [
        {"prompt": item.probe.prompt, "target": item.probe.target, "subject": item.subject, "relation": item.relation}
        for item in suite_of(stays, task=task)
    ]
    content = {
        "suite": "\n".join(json.dumps(item) for item in suite),
        "text": " ".join(sentences(stays)),
        "prior_text": "\n".join(sentences(FACTS)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.txt" for name in content}
    for name, path in paths.items():
        path.write_text(content[name] + "\n", encoding="utf-8")
    return paths


def taught_tokenizer(around: str) -> PreTrainedTokenizerFast:
    """A tokenizer of every word in a fact.

    Args:
        around: what it puts around a text, `$A` being the text; nothing if empty.
    """
    words = [word for relation in RELATIONS.values() for text in relation.templates for word in text.split()]
    values = [value for relation in RELATIONS.values() for value in relation.values]
    known = dict.fromkeys(["<pad>", "<s>", "</s>", "<unk>", ".", *words, *values, *NAMES])
    vocabulary = {word: place for place, word in enumerate(word for word in known if word != "{}")}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if around:
        specials = [(token, vocabulary[token]) for token in ("<s>", "</s>")]
        tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
