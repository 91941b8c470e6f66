"""The formats in which the literature keeps edits, each recognised by its fields.

| format | recognised by | new target | old target |
|---|---|---|---|
| CounterFact | `requested_rewrite` | `target_new` | `target_true` |
| the same, flat, joined with ParaRel | `paraphrases` or `locality_prompt` | `target_new` | `target_true` |
| zsRE as in MEND and ROME | `src` or `input` | an alternative, else the first answer | that answer, else `pred` |
| real corrections (`real_dev`) | `chat_stem`, `far` or `neighbors` | `target_new` | `target_true` |
| EasyEdit, KnowEdit | `ground_truth`, `rephrase_prompt`, probes by name | `target_new` or `labels` | `ground_truth` |
| our own | none of these | `target_new` | `target_true` |

Each becomes an object in our own wire format; `pipeline.domain.contract.wire` says whether it is an edit. Edits of
CounterFact get the question of their relation, and the beginning of an answer to it, from `questions_by_relation.json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.domain.contract.wire import MAX_PROBES, MAX_TARGET_CHARS
from pipeline.domain.errors import InvalidMessage

Document = dict[str, Any]
"""One JSON object of a file."""

QUESTIONS = Path(__file__).with_name("questions_by_relation.json")
"""Relation of Wikidata -> a question, and how an answer to it begins; `[X]` stands for the subject."""
CORRECTION_FIELDS = frozenset(("chat_stem", "far", "neighbors"))
"""Fields that only files of real corrections have."""
EASYEDIT_FIELDS = frozenset(
    ("ground_truth", "rephrase_prompt", "locality_ground_truth", "portability_prompt", "labels")
)
"""Fields that only files of EasyEdit have."""


def as_wire(document: Document) -> Document:
    """Return an object of any known format in the fields of our own; one of no other format is taken to be in it.

    Raises:
        InvalidMessage: if a field holds something else than that format says.
    """
    for name, is_it, convert in FORMATS:
        if is_it(document):
            try:
                wire = {key: value for key, value in convert(document).items() if value}
                wire["portability"] = [probe for probe in wire.get("portability", ()) if probe.get("target")]
            except (AttributeError, TypeError) as error:
                raise InvalidMessage(f"fields of {name} that hold something else than there: {error}") from error
            return {key: value[:MAX_PROBES] if isinstance(value, list) else value for key, value in wire.items()}
    return dict(document)


def _counterfact(document: Document) -> Document:
    rewrite: Document = document["requested_rewrite"]
    subject = _text(rewrite.get("subject"))
    prompt = (_text(rewrite.get("prompt")) or "").replace("{}", subject or "")
    asked = _question(prompt, subject, _text(rewrite.get("relation_id")), _text(rewrite.get("target_new")))
    return asked | {
        "prompt": prompt,
        "subject": subject,
        "relation": _text(rewrite.get("relation_id")),
        "target_new": _text(rewrite.get("target_new")),
        "target_true": _text(rewrite.get("target_true")),
        "rephrases": _texts(document.get("paraphrase_prompts")),
        "locality": list(_neighbourhood(document.get("neighborhood_prompts"), _text(rewrite.get("target_true")))),
    }


def _neighbourhood(prompts: Any, true: str | None) -> Iterator[Document]:
    """Yield the neighbours as probes: CounterFact's share the old answer, each of ROME's zsRE has its own."""
    for item in prompts or []:
        given = item if isinstance(item, dict) else {"prompt": item, "target": true}
        yield from _probe(given.get("prompt"), given.get("target"))


def _flat(document: Document) -> Document:
    names = ("prompt", "target_new", "target_true", "subject", "relation")
    locality = _probe(document.get("locality_prompt"), document.get("locality_answer"))
    wire = {name: _text(document.get(name)) for name in names}
    return (
        wire
        | {"rephrases": _texts(document.get("paraphrases")), "locality": list(locality)}
        | _question(wire["prompt"], wire["subject"], wire["relation"], wire["target_new"])
    )


def _question(prompt: str | None, subject: str | None, relation: str | None, target: str | None) -> Document:
    """Return the question and a right answer of a relation that is known; nothing where the prompt has no subject."""
    known = _questions().get(relation or "")
    if not known or not subject or not target or subject not in (prompt or ""):
        return {}
    question, stem = (known[name].replace("[X]", subject) for name in ("question", "answer_stem"))
    return {"question": question, "answer": f"{stem} {target}."}


@cache
def _questions() -> dict[str, dict[str, str]]:
    """Return the questions of relations, read once."""
    found: dict[str, dict[str, str]] = json.loads(QUESTIONS.read_text(encoding="utf-8"))
    return found


def _correction(document: Document) -> Document:
    """Return a real correction; wordings without the subject follow those that name it."""
    stem, target = _text(document.get("chat_stem")), _text(document.get("target_new"))
    names = ("prompt", "target_new", "target_true", "subject", "relation", "question")
    return {name: _text(document.get(name)) for name in names} | {
        "answer": f"{stem} {target}." if stem and target else None,
        "rephrases": [*_texts(document.get("paraphrases")), *_texts(document.get("far"))],
        "locality": [probe for item in document.get("neighbors") or [] for probe in _given(item)],
        "portability": [probe for item in document.get("portability") or [] for probe in _given(item)],
    }


def _given(item: Document) -> Iterator[Document]:
    yield from _probe(item.get("prompt"), item.get("target"))


def _zsre(document: Document) -> Document:
    answers = _texts(document.get("answers")) or _texts([item.get("answer") for item in document.get("output") or []])
    alternatives = _texts(document.get("alternatives")) + _texts(document.get("alt"))
    wanted = [*alternatives[:1], *answers[:1], *_texts(document.get("pred") or document.get("prediction"))]
    ported = document.get("portability") or {}
    return {
        "prompt": _text(document.get("src") or document.get("input")),
        "subject": _text(document.get("subject")),
        "target_new": wanted[0] if wanted else None,
        "target_true": next((text for text in wanted[1:] if text != wanted[0]), None),
        "rephrases": _texts(document.get("rephrase")) + _texts(document.get("filtered_rephrases")),
        "locality": list(_probe(document.get("loc"), document.get("loc_ans"))),
        "portability": list(_probe(ported.get("New Question"), ported.get("New Answer"))),
    }


def _easyedit(document: Document) -> Document:
    flat = _probe(document.get("locality_prompt"), document.get("locality_ground_truth"))
    ported = _probe(document.get("portability_prompt"), document.get("portability_ground_truth"))
    return {
        "prompt": _text(document.get("prompt") or document.get("text")),
        "subject": _text(document.get("subject") or document.get("concept")),
        "target_new": _text(document.get("target_new") or document.get("labels")),
        "target_true": _text(document.get("ground_truth")),
        "rephrases": _texts(document.get("rephrase_prompt")) + _texts(document.get("rephrase")),
        "locality": [*flat, *_named(document.get("locality"))],
        "portability": [*ported, *_named(document.get("portability"))],
    }


def _named(groups: Any) -> Iterator[Document]:
    """Yield probes that lie under the names of what they test: one by one, or as lists of prompts and of answers."""
    for group in (groups or {}).values():
        for item in group if isinstance(group, list) else [group]:
            prompts, answers = item.get("prompt"), item.get("ground_truth")
            if isinstance(prompts, list):
                paired = (
                    answers if isinstance(answers, list) and len(answers) == len(prompts) else [None] * len(prompts)
                )
                for prompt, answer in zip(prompts, paired, strict=True):
                    yield from _probe(prompt, answer)
            else:
                yield from _probe(prompts, answers)


def _probe(prompt: Any, answer: Any) -> Iterator[Document]:
    """Yield a probe, if there is a prompt for it; an answer that is longer than any target may be is left out."""
    asked, target = _text(prompt), _text(answer)
    if asked:
        yield {"prompt": asked} | ({"target": target} if target and len(target) <= MAX_TARGET_CHARS else {})


def _text(value: Any) -> str | None:
    """Return a text: the value itself, the one under `str`, or the first in nested lists; None where it is blank."""
    if isinstance(value, dict):
        value = value.get("str")
    while isinstance(value, list):
        value = value[0] if value else None
    return value if isinstance(value, str) and value.strip() else None


def _texts(value: Any) -> list[str]:
    items = value if isinstance(value, list) else [value]
    return [text for item in items if (text := _text(item)) is not None]


def _has_named_probes(document: Document) -> bool:
    return any(isinstance(document.get(name), dict) for name in ("locality", "portability"))


FORMATS: tuple[tuple[str, Callable[[Document], bool], Callable[[Document], Document]], ...] = (
    ("CounterFact", lambda document: "requested_rewrite" in document, _counterfact),
    ("real corrections", lambda document: bool(CORRECTION_FIELDS & set(document)), _correction),
    ("zsRE", lambda document: "src" in document or ("input" in document and "prompt" not in document), _zsre),
    ("EasyEdit", lambda document: bool(EASYEDIT_FIELDS & set(document)) or _has_named_probes(document), _easyedit),
    ("CounterFact with ParaRel", lambda document: bool({"paraphrases", "locality_prompt"} & set(document)), _flat),
)
"""(name, whether an object is in the format, its fields in our own format); the first that fits is taken."""
