"""Knows what the base answers to a lineage's suite and plain text, measured once. Knows no edit.

One JSON file: it is the reference of every floor, so its digest is kept with the lineage.

Legend: T target tokens of one probe, K top tokens kept.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from editors.families import CausalModel
from editors.prompts import Encoded, encode_pair, encode_prompt
from editors.scoring import Prepared, Reading, prepare, readings, scores
from pipeline.domain.canonical import canonical_json, sha256_file, sha256_json
from pipeline.domain.edits import Probe
from pipeline.domain.errors import IntegrityBroken, Misconfigured
from pipeline.domain.trials import SuiteProbe

ANSWER_TOKENS = 8
"""Length of the base's own answer where a probe gives none."""
WINDOW_TOKENS = 128
"""Length of a window of plain text; its first token is given."""
NUM_WINDOWS = 4
"""Windows of plain text in a lineage's baseline: every candidate is measured on them."""
TEXT_CHUNK_TOKENS = 512
"""Most positions of plain text whose logits are held at once."""
FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteAnswer:
    """A suite probe and what the base says to it."""

    probe: SuiteProbe
    """The question."""
    sequence: Encoded
    """Its prompt, and the base's own greedy continuation."""
    reading: Reading
    """The base's distribution at each token of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """The suite, plain text, and the base's figures on both."""

    suite: tuple[SuiteAnswer, ...]
    """Probes with answers."""
    windows: tuple[tuple[int, ...], ...]
    """Plain text as token ids."""
    perplexity: float
    """Of the base on the windows."""

    def save(self, path: Path) -> str:
        """Write the baseline as canonical JSON; returns the file's SHA-256."""
        document = {
            "format": FORMAT,
            "perplexity": self.perplexity,
            "suite": [_to_json(answer) for answer in self.suite],
            "windows": [list(window) for window in self.windows],
        }
        path.write_text(canonical_json(document), encoding="utf-8")
        return sha256_file(path)

    @classmethod
    def load(cls, path: Path, expected_digest: str | None = None) -> Self:
        """Read a baseline back.

        Raises:
            IntegrityBroken: if the file is missing, is no baseline, or has another digest than expected.
        """
        if not path.is_file():
            raise IntegrityBroken(f"expected a baseline in {path}, got nothing there")
        if expected_digest is not None and (digest := sha256_file(path)) != expected_digest:
            raise IntegrityBroken(f"expected digest {expected_digest} of the baseline {path}, got {digest}")
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["format"] != FORMAT:
                raise IntegrityBroken(f"expected a baseline of format {FORMAT}, got {document['format']!r}")
            suite = tuple(_from_json(item) for item in document["suite"])
            windows = tuple(tuple(window) for window in document["windows"])
            return cls(suite=suite, windows=windows, perplexity=float(document["perplexity"]))
        except (ValueError, KeyError, TypeError) as error:
            raise IntegrityBroken(f"expected a baseline in {path}, got something else: {error!r}") from error

    @property
    def digest(self) -> str:
        """SHA-256 of what is asked, for reports."""
        asked = [[list(answer.sequence.prompt_ids), list(answer.sequence.target_ids)] for answer in self.suite]
        return sha256_json([asked, [list(window) for window in self.windows]])

    def prepared_text(self, model: CausalModel) -> Prepared:
        """The windows, ready for `text_perplexity`."""
        sequences = [Encoded(prompt_ids=window[:1], target_ids=window[1:]) for window in self.windows]
        return prepare(model, sequences, max_tokens=TEXT_CHUNK_TOKENS)


def build_baseline(
    model: CausalModel, suite: Sequence[SuiteProbe], text: str, *, num_windows: int = NUM_WINDOWS
) -> Baseline:
    """Ask the base.

    Args:
        model: the base, unedited.
        suite: probes of what edits should leave alone.
        text: plain text for perplexity.
        num_windows: how much of it is read at most.

    Raises:
        Misconfigured: if the text is shorter than two tokens.
    """
    sequences = own_answers(model, [item.probe for item in suite])
    found = readings(model, prepare(model, sequences))
    answers = tuple(
        SuiteAnswer(probe=probe, sequence=sequence, reading=reading)
        for probe, sequence, reading in zip(suite, sequences, found, strict=True)
    )
    windows = _windows(model, text, num_windows)
    unmeasured = Baseline(suite=answers, windows=windows, perplexity=math.nan)
    perplexity = text_perplexity(model, unmeasured.prepared_text(model))
    return Baseline(suite=answers, windows=windows, perplexity=perplexity)


def own_answers(model: CausalModel, probes: Sequence[Probe]) -> list[Encoded]:
    """Each probe with the model's own greedy continuation: as long as the given answer, else 8 tokens.

    Where the model ends at once, its answer is the token that ends it.
    """
    prompts = [encode_prompt(model.tokenizer, probe.prompt) for probe in probes]
    lengths = [
        len(encode_pair(model.tokenizer, probe.prompt, probe.target).target_ids) if probe.target else ANSWER_TOKENS
        for probe in probes
    ]
    answers = model.greedy(
        prompts,
        max_new_tokens=max(lengths, default=0),
        is_done=lambda place, tokens: len(tokens) >= lengths[place],
    )
    end = min(model.stop_ids, default=0)
    return [
        Encoded(prompt_ids=prompt, target_ids=tuple(answer) or (end,))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def text_perplexity(model: CausalModel, prepared: Prepared) -> float:
    """exp of the mean negative log-probability of every token but the first of each window."""
    found = scores(model, prepared)
    num_tokens = sum(len(score.hits) for score in found)
    return math.exp(-sum(score.mean_log_probability * len(score.hits) for score in found) / num_tokens)


def _windows(model: CausalModel, text: str, num_windows: int) -> tuple[tuple[int, ...], ...]:
    ids = encode_prompt(model.tokenizer, text)
    cut = [ids[start : start + WINDOW_TOKENS] for start in range(0, len(ids), WINDOW_TOKENS)]
    windows = tuple(window for window in cut[:num_windows] if len(window) > 1)
    if not windows:
        raise Misconfigured("expected plain text of at least two tokens for perplexity, got none")
    return windows


def _to_json(answer: SuiteAnswer) -> dict[str, Any]:
    reading = answer.reading
    return {
        "prompt": answer.probe.probe.prompt,
        "target": answer.probe.probe.target,
        "subject": answer.probe.subject,
        "relation": answer.probe.relation,
        "prompt_ids": list(answer.sequence.prompt_ids),
        "answer_ids": list(answer.sequence.target_ids),
        "argmax": reading.argmax_T.tolist(),
        "top": reading.top_TK.tolist(),
        "log_top": [[round(value, 6) for value in row] for row in reading.log_top_TK.tolist()],
        "log_rest": [round(value, 6) for value in reading.log_rest_T.tolist()],
    }


def _from_json(item: dict[str, Any]) -> SuiteAnswer:
    return SuiteAnswer(
        probe=SuiteProbe(
            probe=Probe(prompt=item["prompt"], target=item["target"]),
            subject=item["subject"],
            relation=item["relation"],
        ),
        sequence=Encoded(prompt_ids=tuple(item["prompt_ids"]), target_ids=tuple(item["answer_ids"])),
        reading=Reading(
            argmax_T=torch.tensor(item["argmax"]),
            top_TK=torch.tensor(item["top"]),
            log_top_TK=torch.tensor(item["log_top"]),
            log_rest_T=torch.tensor(item["log_rest"]),
        ),
    )
