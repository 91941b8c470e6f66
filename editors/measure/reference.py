"""The reference that candidates are held against: the base's answers to a lineage's suite, and its quality at large.

It is measured once and kept in one JSON file, `baseline.json`, whose digest is kept with the lineage.

Legend: T target tokens of one probe, K top tokens kept.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch

from editors.measure.losses import Reading
from editors.measure.quality import Figure, QualityProbe, prepared_quality, quality_probes
from editors.measure.rounds import AT_ONCE
from editors.measure.scoring import Score, prepare, readings, scores
from editors.models.families import EditableModel
from editors.models.tokens import Encoded
from pipeline.domain.edits import Probe
from pipeline.domain.errors import IntegrityBroken
from pipeline.domain.formats.canonical import canonical_json, sha256_file, sha256_json
from pipeline.domain.rank_api import SuiteProbe

ANSWER_TOKENS = 8
"""Length of the base's own answer where a probe gives none, in tokens."""
NUM_WINDOWS = 4
"""Windows of plain text in a lineage's reference: every candidate is measured on them."""
FORMAT = 2
"""Raised when the file changes so that earlier ones cannot be read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteAnswer:
    """A suite probe and what the base says to it."""

    probe: SuiteProbe
    """The question, and the fact that it is about."""
    sequence: Encoded
    """Its prompt, and the base's own greedy continuation."""
    reading: Reading
    """The base's distribution at each token of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """The suite, what drawdown is measured on, and the base's figures on both."""

    suite: tuple[SuiteAnswer, ...]
    """Probes with the base's answers."""
    quality_probes: tuple[QualityProbe, ...]
    """What drawdown is measured on."""
    scores: tuple[Score, ...]
    """The base's scores, one for each quality probe."""
    figure: Figure
    """The base's figure on all of them."""

    def save(self, path: Path) -> str:
        """Write the reference as canonical JSON, and return the file's SHA-256."""
        scored = zip(self.quality_probes, self.scores, strict=True)
        document = {
            "format": FORMAT,
            "figure": asdict(self.figure),
            "references": [_probe_to_json(probe, score) for probe, score in scored],
            "suite": [_answer_to_json(answer) for answer in self.suite],
        }
        path.write_text(canonical_json(document), encoding="utf-8")
        return sha256_file(path)

    @classmethod
    def load(cls, path: Path, expected_digest: str | None = None) -> Self:
        """Read a reference back.

        Raises:
            IntegrityBroken: if the file is missing, is no reference, or has another digest than expected.
        """
        if not path.is_file():
            raise IntegrityBroken(f"expected a reference in {path}, got nothing there")
        if expected_digest is not None and (digest := sha256_file(path)) != expected_digest:
            raise IntegrityBroken(f"expected digest {expected_digest} of the reference {path}, got {digest}")
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["format"] != FORMAT:
                raise IntegrityBroken(f"expected a reference of format {FORMAT}, got {document['format']!r}")
            return cls(
                suite=tuple(_answer_from_json(item) for item in document["suite"]),
                quality_probes=tuple(_probe_from_json(item) for item in document["references"]),
                scores=tuple(_score_from_json(item) for item in document["references"]),
                figure=Figure(**document["figure"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise IntegrityBroken(f"expected a reference in {path}, got something else: {error!r}") from error

    @property
    def texts(self) -> tuple[str, ...]:
        """All that the suite names: prompts, given answers and subjects."""
        probes = [answer.probe for answer in self.suite]
        return tuple(
            text for item in probes for text in (item.probe.prompt, item.probe.target, item.subject) if text is not None
        )

    @property
    def digest(self) -> str:
        """SHA-256 of everything that is asked, for reports."""
        suite = [answer.sequence for answer in self.suite]
        quality = [probe.sequence for probe in self.quality_probes]
        asked = [[[list(item.prompt_ids), list(item.target_ids)] for item in part] for part in (suite, quality)]
        return sha256_json(asked)


def build_reference(model: EditableModel, suite: Sequence[SuiteProbe], text: str) -> Reference:
    """Ask the base, and return what it said.

    Args:
        model: the base, unedited.
        suite: probes of what edits should leave alone.
        text: plain text for perplexity; not read where the family has no use for it.

    Raises:
        Misconfigured: if there is nothing to measure drawdown on: a text of two tokens, or a suite with targets.
        InvalidInput: if the model could never give a probe's target.
    """
    probes = [item.probe for item in suite]
    measured_on = quality_probes(model, probes, text, num_windows=NUM_WINDOWS)
    sequences = own_answers(model, probes)
    found = readings(model, prepare(model, sequences))
    answers = tuple(
        SuiteAnswer(probe=probe, sequence=sequence, reading=reading)
        for probe, sequence, reading in zip(suite, sequences, found, strict=True)
    )
    scored = tuple(scores(model, prepared_quality(model, measured_on)))
    return Reference(suite=answers, quality_probes=measured_on, scores=scored, figure=Figure.of(model, scored))


def own_answers(model: EditableModel, probes: Sequence[Probe]) -> list[Encoded]:
    """Return each probe with the model's own greedy continuation: as long as the given answer, else 8 tokens.

    Where the model ends at once, its answer is the token that ends it. So many are continued together as have room.
    """
    most = AT_ONCE * model.times_more
    parts = (probes[start : start + most] for start in range(0, len(probes), most))
    return [answer for part in parts for answer in _own_answers_together(model, part)]


def _own_answers_together(model: EditableModel, probes: Sequence[Probe]) -> list[Encoded]:
    prompts = [model.encode_prompt(probe.prompt) for probe in probes]
    lengths = [
        len(model.encode_pair(probe.prompt, probe.target).target_ids) if probe.target else ANSWER_TOKENS
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


def _answer_to_json(answer: SuiteAnswer) -> dict[str, Any]:
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


def _answer_from_json(item: dict[str, Any]) -> SuiteAnswer:
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


def _probe_to_json(probe: QualityProbe, score: Score) -> dict[str, Any]:
    return {
        "prompt_ids": list(probe.sequence.prompt_ids),
        "target_ids": list(probe.sequence.target_ids),
        "place": probe.place,
        "hits": list(score.hits),
        "mean_log_probability": score.mean_log_probability,
    }


def _probe_from_json(item: dict[str, Any]) -> QualityProbe:
    sequence = Encoded(prompt_ids=tuple(item["prompt_ids"]), target_ids=tuple(item["target_ids"]))
    return QualityProbe(sequence=sequence, place=item["place"])


def _score_from_json(item: dict[str, Any]) -> Score:
    return Score(hits=tuple(item["hits"]), mean_log_probability=float(item["mean_log_probability"]))
