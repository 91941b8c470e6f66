"""Rows and priors of random numbers, and a tiny model with everything an editor needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from editors.models.families import CausalModel
from editors.solve.ledger import Ledger
from editors.solve.prior import Prior, measure_prior
from editors.solve.rows import EditRows, consecutive
from editors.weights.deltas import PlainWeights
from editors.weights.loading import load_base
from pipeline.domain.edits import Edit
from pipeline.domain.rank_api import EditorSettings
from tests.support.factories import make_edit
from tests.support.tiny_models import TEXT, save_tiny_gpt2, save_tiny_llama

NAME = "block.weight"
SETTINGS = EditorSettings(
    prior_strength=0.1,
    ridge=1.0,
    damping=0.02,
    step=1.0,
    stop_probability=0.5,
    num_passes=40,
    frames_per_pass=0,
    num_guards=0,
    rephrase_rows=0,
)
"""Constants for a model that has nothing to lose: a weak prior, long steps."""
FACTS = (
    ("who is king of Japan", "Kyoto"),
    ("a capital city in Italy", "Milan"),
    ("born where the president", "Lyon"),
    ("the language spoken by", "Bonn"),
    ("a mountain river located", "queen Madrid"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rig:
    """A tiny model at its base."""

    model: CausalModel
    """Random weights."""
    weights: PlainWeights
    """Its edited weights."""
    ledger: Ledger
    """Empty."""


def make_rig(folder: Path, kind: str = "llama") -> Rig:
    """A rig in a folder; two of one kind are the same bit for bit."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "llama":
        save_tiny_llama(folder, hidden=32, mlp=32)
    else:
        _save_roomier_gpt2(folder)
    model = load_base(folder)
    assert isinstance(model, CausalModel)
    prior = measure_prior(model, prior_lines())
    ledger = Ledger(prior, strength=SETTINGS.prior_strength, ridge=SETTINGS.ridge)
    return Rig(model=model, weights=PlainWeights(model.module, model.inner), ledger=ledger)


def _save_roomier_gpt2(folder: Path) -> None:
    """The tiny GPT-2 with as many key dimensions as a handful of facts needs."""
    save_tiny_gpt2(folder)
    torch.manual_seed(0)
    config = GPT2Config.from_pretrained(folder, n_embd=32, n_inner=32)
    GPT2LMHeadModel(config).save_pretrained(folder)


def prior_lines() -> list[str]:
    """Plain text in the tiny models' words."""
    words = TEXT.split()
    return [" ".join(words[(i * 7 + j * 5) % len(words)] for j in range(6)) for i in range(40)]


def edits_of(*places: int) -> list[Edit]:
    """Edits of the facts above, with distinct conflict keys."""
    return [make_edit(f"fact-{i}", prompt=FACTS[i][0], target_new=FACTS[i][1]) for i in places]


def random_prior(width: int, *names: str) -> Prior:
    """Moments of random keys."""
    draw = torch.Generator().manual_seed(11)
    keys = torch.randn(4 * width, width, generator=draw)
    return Prior(moments={name: keys.T @ keys / len(keys) for name in names or (NAME,)}, num_tokens=len(keys))


def whole_shift(ledger: Ledger, name: str) -> torch.Tensor:
    """S = A^-1 B (I x O), fp64: the weights that the active rows define, from all of them."""
    keys_TI, targets_TO = ledger.rows_of(name, ledger.edit_ids)
    return ledger.without().factor(name).solve(keys_TI.T @ targets_TO)


def keys_of(rows: EditRows, name: str = NAME) -> Tensor:
    """The keys of rows that are not packed."""
    keys = rows.keys[name]
    assert isinstance(keys, Tensor)
    return keys


def targets_of(rows: EditRows, name: str = NAME) -> Tensor:
    """The targets of rows that are not packed."""
    targets = rows.targets[name]
    assert isinstance(targets, Tensor)
    return targets


def random_rows(seed: int, lengths: dict[str, int], *, width: int = 12, out: int = 5) -> EditRows:
    """Rows of some edits with random keys and targets for one inner parameter."""
    draw = torch.Generator().manual_seed(seed)
    total = sum(lengths.values())
    return EditRows(
        keys={NAME: torch.randn(total, width, generator=draw)},
        targets={NAME: torch.randn(total, out, generator=draw)},
        ranges={NAME: consecutive(list(lengths.items()))},
    )
