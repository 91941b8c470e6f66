"""The figures of an evaluation, averaged over edits and over time; every definition is here.

Of edits that hold:

- `edit_success`: teacher-forced, every target token is the argmax after the edit's prompt.
- `generalization`: the same on rephrases that are no edit rows and name the subject; by class (see `wordings`):
  `generalization_same_context` where the text left of the subject is that of the prompt, `generalization_other_context`
  where it is another.
- `generalization_unnamed`: the same on rephrases that do not name the subject. `portability`: on these and on one-hop
  consequences, which both ask what follows from the fact rather than the fact.
- `row_rephrases`: the same on rephrases that were edit rows, which show no generalization.
- `chat_success`: the request's question in the model's chat template gets a reply, of at most 32 tokens, that says the
  new answer as whole words and not the old one (see `wordings.is_right`). Only of requests that have a question.
- `greedy`, `chat`: the teacher-forced figures by free generation instead, which has to begin with the target and stop
  there (see `answers.confirms`): raw, and of the edit's own prompt as a user's turn in the chat template.
- `token_fraction`: share of target tokens that are the argmax (EasyEdit's rewrite accuracy).
- `prefers_new`: share with P(new) > P(true), geometric means over the tokens (ROME's efficacy and paraphrase scores).
- `neighbourhood`: share of neighbours with P(true) > P(new). `score`: harmonic mean of ROME's three.
- `locality_unchanged`: share of neighbours whose every argmax along the base's own answer is the base's;
  `locality_kl`: mean KL from the base there, nats.

Of a stream:

- `retention`: `edit_success` of the active edits that are older than the last batch; `retention_first_batch` that of
  the first batch, `retention_first_tenth` that of the first tenth of the edits so far, `retention_deciles` that of each
  tenth of them, oldest first.
- `base`: the figures of the unedited base, on the edits that are asked freely at the end: what it knew already.
- `drawdown`: perplexity of plain text over the base's, minus 1 (see `editors.measure.quality`).
- `fluency`: entropy of word 2- and 3-grams of continuations, bits, as ROME measures it; ROME shows a hundred times as
  much. A text that repeats itself has little.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import islice, pairwise
from statistics import fmean, harmonic_mean
from typing import Any

import numpy as np
from scipy.special import entr

from editors.measure.questions import EditMeasurement, PromptMeasurement
from pipeline.domain.edits import Edit
from pipeline.domain.measurements import mean

NUM_AGES = 10
"""Parts of a stream, by age, whose retention is told apart."""
NGRAM_WEIGHTS = {2: 2 / 3, 3: 4 / 3}
"""Length of an n-gram -> weight of its entropy; they sum to 2 and the mean is taken."""

_WORDS = re.compile(r"\w+|[^\w\s]")


def averaged(found: Sequence[EditMeasurement]) -> dict[str, Any]:
    """Return the figures of many edits; None where nothing was asked, and how many of each were."""
    parts = _parts(found)
    own, rephrased, ported = (parts[name] for name in ("edit_success", "generalization", "portability"))
    replies = [item.reply.is_right for item in found if item.reply]
    neighbours = [neighbour for item in found for neighbour in item.neighbours]
    scores = {
        "prefers_new": mean(asked.prefers_new for asked in own),
        "generalization_prefers_new": mean(asked.prefers_new for asked in rephrased),
        "neighbourhood": mean(neighbour.prefers_true for neighbour in neighbours),
    }
    return {
        **{name: mean(asked.score.is_hit for asked in part) for name, part in parts.items()},
        **{f"num_{name}": len(part) for name, part in parts.items() if name.startswith("generalization_")},
        "row_rephrases": mean(asked.score.is_hit for item in found for asked in item.row_rephrases),
        "chat_success": mean(replies),
        "num_chat_success": len(replies),
        "locality_unchanged": mean(neighbour.from_base.is_unchanged for neighbour in neighbours),
        "locality_kl": mean(neighbour.from_base.kl for neighbour in neighbours),
        "token_fraction": mean(asked.score.token_fraction for asked in own),
        "generalization_token_fraction": mean(asked.score.token_fraction for asked in rephrased),
        **scores,
        "score": harmonic(scores.values()),
        "greedy": {name: mean(map(_raw, part)) for name, part in parts.items()},
        "chat": {name: mean(map(_in_chat, part)) for name, part in parts.items()},
        "measured": {
            "edits": len(own),
            "rephrases": len(rephrased),
            "portability": len(ported),
            "neighbours": len(neighbours),
            "preferences": _count(asked.prefers_new for asked in own),
            "greedy": _count(map(_raw, own)),
            "chat": _count(map(_in_chat, own)),
        },
    }


def _parts(found: Sequence[EditMeasurement]) -> dict[str, list[PromptMeasurement]]:
    """Return what was asked for each figure that says how targets follow."""
    unnamed = [asked for item in found for asked in item.unnamed]
    return {
        "edit_success": [item.own for item in found],
        "generalization": [asked for item in found for asked in item.rephrases],
        "generalization_same_context": [asked for item in found for asked in item.same_context],
        "generalization_other_context": [asked for item in found for asked in item.other_context],
        "generalization_unnamed": unnamed,
        "portability": [*(asked for item in found for asked in item.portability), *unnamed],
    }


def known(found: Sequence[EditMeasurement]) -> dict[str, Any]:
    """Return what a model does right of edits that it has not got: those of `averaged` that say how targets follow."""
    figures = averaged(found)
    names = {*_parts(found), "chat_success"}
    return {name: value for name, value in figures.items() if name.removeprefix("num_") in names}


def retention(
    found: Sequence[EditMeasurement], others: Sequence[EditMeasurement], history: Sequence[Sequence[Edit]]
) -> dict[str, Any]:
    """Return how edits of different ages hold.

    Args:
        found: what was measured of a sample of the active edits.
        others: of edits of the first batch that are not in the sample.
        history: the batches that were applied, in order.
    """
    order = [edit.edit_id for batch in history for edit in batch]
    bounds = [-(-len(order) * age // NUM_AGES) for age in range(NUM_AGES + 1)]  # the first tenth of few is one edit
    deciles = [_success(found, set(order[low:high])) for low, high in pairwise(bounds)]
    last, first = ({edit.edit_id for edit in history[place]} for place in (-1, 0))
    return {
        "retention": _success(found, set(order) - last),
        "retention_first_batch": _success([*found, *others], first),
        "retention_first_tenth": deciles[0],
        "retention_deciles": deciles,
    }


def replies(found: Sequence[EditMeasurement]) -> list[dict[str, Any]]:
    """Return every question that was asked in a chat with its reply and the verdict, for a reader who checks them."""
    return [{"edit_id": item.edit_id} | asdict(item.reply) for item in found if item.reply]


def harmonic(shares: Iterable[float | None]) -> float | None:
    """Return the harmonic mean, 0 if one share is 0; None if one was not measured."""
    given = list(shares)
    known = [value for value in given if value is not None]
    return harmonic_mean(known) if known and len(known) == len(given) else None


def fluency(texts: Sequence[str]) -> float | None:
    """Return the mean of the texts' weighted entropies, bits; None of no text."""
    return mean(map(weighted_entropy, texts))


def weighted_entropy(text: str) -> float:
    """Return the weighted mean of the entropies of a text's word 2- and 3-grams, bits; 0 for a text without any."""
    words = _WORDS.findall(text)
    return fmean(weight * _entropy(words, length) for length, weight in NGRAM_WEIGHTS.items())


def value_at(figures: Mapping[str, Any], path: Sequence[str]) -> Any:
    """Return what stands under nested names in figures; None where it was not measured."""
    value: Any = figures
    for name in path:
        value = value.get(name) if value is not None else None
    return value


def _entropy(words: Sequence[str], length: int) -> float:
    shifted = [islice(words, start, None) for start in range(length)]
    counts = np.array(list(Counter(zip(*shifted, strict=False)).values()), dtype=float)
    return float(entr(counts / counts.sum()).sum() / np.log(2)) if counts.size else 0.0


def _success(found: Sequence[EditMeasurement], edit_ids: Collection[str]) -> float | None:
    return mean(item.own.score.is_hit for item in found if item.edit_id in edit_ids)


def _raw(asked: PromptMeasurement) -> bool | None:
    return asked.free.is_success if asked.free else None


def _in_chat(asked: PromptMeasurement) -> bool | None:
    return asked.free.is_success_in_chat if asked.free else None


def _count(flags: Iterable[bool | None]) -> int:
    return sum(flag is not None for flag in flags)
