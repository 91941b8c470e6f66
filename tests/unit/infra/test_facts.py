"""How the files in infra/local/facts have to be shaped; what a model answers is not asked here."""

import json
import re
import unicodedata
from collections import Counter
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pipeline.domain.contract.wire import parse_object
from pipeline.domain.edits import EditRequest
from pipeline.domain.wordings import Wording, wording_of

FOLDER = Path(__file__).resolve().parents[3] / "infra" / "local" / "facts"

Row = dict[str, Any]


@cache
def read(name: str) -> tuple[Row, ...]:
    """The rows of one JSONL file, one object a line, without blank lines."""
    lines = (FOLDER / name).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    return tuple(json.loads(line) for line in lines)


def corrections() -> tuple[Row, ...]:
    return read("corrections.jsonl")


def suite() -> tuple[Row, ...]:
    return read("suite.jsonl")


def unedited() -> tuple[Row, ...]:
    return read("unedited.jsonl")


def asked(row: Row) -> str:
    """The prompt of a correction, or of one that came as a chat the user's last turn."""
    prompt: str = row["prompt"] if "prompt" in row else row["messages"][-1]["content"]
    return prompt


def request(row: Row) -> EditRequest:
    return parse_object({"lineage": "demo"} | row)


def normal(text: str) -> str:
    """Text as conflict keys compare it: NFKC, case folded."""
    return unicodedata.normalize("NFKC", text).casefold()


def repeated(values: list[Any]) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]


def fact_key(row: Row) -> tuple[str, str]:
    return normal(row["subject"]), row["relation"]


def edit_texts() -> dict[str, str]:
    """Every prompt and rephrase, normalised, with the id of its correction."""
    return {normal(text): row["request_id"] for row in corrections() for text in [asked(row), *row["rephrases"]]}


def stems() -> list[str]:
    """Every text that a model is asked to continue."""
    edits = [text for row in corrections() for text in [row.get("prompt"), *row["rephrases"]] if text]
    probes = [probe["prompt"] for row in corrections() for probe in row["locality"] + row.get("portability", [])]
    return edits + probes + [row["prompt"] for row in [*suite(), *unedited()]]


def targets() -> list[str]:
    """Every answer of every file that has one."""
    edits = [row[field] for row in corrections() for field in ("target_new", "target_true") if field in row]
    probes = [
        probe["target"]
        for row in corrections()
        for probe in row["locality"] + row.get("portability", [])
        if probe["target"] is not None
    ]
    return edits + probes + [row["target"] for row in suite()] + [row["target_new"] for row in unedited()]


def is_bare(row: Row) -> bool:
    return not row["rephrases"] and not row["locality"]


def test_there_are_enough_corrections_for_the_demo() -> None:
    assert len(corrections()) >= 24
    assert len(suite()) >= 40


def test_request_ids_are_unique_slugs() -> None:
    ids = [row["request_id"] for row in corrections()]
    assert repeated(ids) == []
    assert [name for name in ids if not re.fullmatch(r"fact(-[a-z0-9]+)+", name)] == []


def test_each_correction_is_a_valid_message_once_it_names_a_lineage() -> None:
    required = {"request_id", "target_new", "rephrases", "locality", "source", "submitted_by", "occurred_at"}
    for row in corrections():
        assert required <= row.keys(), row["request_id"]
        assert ("subject" in row) == ("relation" in row), row["request_id"]
        assert request(row).request_id == row["request_id"]


def test_some_corrections_came_only_as_a_chat() -> None:
    chats = [row for row in corrections() if "prompt" not in row]
    assert len(chats) >= 2
    assert all(request(row).is_chat and row["answer"] for row in chats)
    assert any("subject" not in row for row in chats), "production feedback names no subject"


def test_most_corrections_say_how_the_fact_is_asked_and_answered_in_a_chat() -> None:
    asking = [row for row in corrections() if request(row).has_question]
    assert len(asking) >= 20
    assert all(row["question"].endswith("?") for row in asking if "question" in row)
    answered = [row for row in asking if "answer" in row]
    assert len(answered) >= 20
    assert all(row["target_new"] in row["answer"] for row in answered)


def test_every_rephrase_names_the_subject_behind_other_text_and_the_rest_is_portability() -> None:
    for row in corrections():
        for text in row["rephrases"]:
            assert wording_of(text, request(row)) is Wording.other_context, text


def test_no_fact_is_corrected_twice() -> None:
    keyed = [row for row in corrections() if "subject" in row]
    assert len(keyed) >= 0.9 * len(corrections())
    assert repeated([fact_key(row) for row in keyed]) == []
    assert repeated([normal(row["subject"]) for row in keyed]) == []


def test_a_subject_is_part_of_the_prompt_of_its_correction() -> None:
    keyed = [row for row in corrections() if "subject" in row]
    assert [row["request_id"] for row in keyed if normal(row["subject"]) not in normal(asked(row))] == []


def test_a_few_corrections_come_with_neither_rephrases_nor_neighbours() -> None:
    assert 2 <= len([row for row in corrections() if is_bare(row)]) <= 6


def test_the_other_corrections_come_with_both() -> None:
    for row in corrections():
        if not is_bare(row):
            assert 2 <= len(row["rephrases"]) <= 4, row["request_id"]
            assert 1 <= len(row["locality"]) <= 3, row["request_id"]


def test_no_prompt_or_rephrase_occurs_twice() -> None:
    texts = [normal(text) for row in corrections() for text in [asked(row), *row["rephrases"]]]
    assert repeated(texts) == []


def test_a_rephrase_does_not_give_its_answer_away() -> None:
    for row in corrections():
        for text in [asked(row), *row["rephrases"]]:
            found = re.search(rf"(?<!\w){re.escape(row['target_new'])}(?!\w)", text)
            assert found is None, f"{row['request_id']}: the target is in {text!r}"


def test_stems_are_stripped_and_end_right_before_the_answer() -> None:
    assert [text for text in stems() if text != text.strip() or not text or text.endswith((".", ":"))] == []


def test_targets_are_stripped_and_not_empty() -> None:
    assert [text for text in targets() if not text or text != text.strip()] == []


def test_no_neighbour_is_itself_edited() -> None:
    edited = edit_texts()
    subjects: dict[str, list[str]] = {}
    for row in corrections():
        if "subject" in row:
            subjects.setdefault(row["relation"], []).append(normal(row["subject"]))
    for row in corrections():
        for probe in row["locality"]:
            prompt = normal(probe["prompt"])
            assert prompt not in edited, f"{row['request_id']}: {probe['prompt']!r} is edited"
            rivals = subjects.get(row.get("relation", ""), [])
            near = [name for name in rivals if re.search(rf"\b{re.escape(name)}\b", prompt)]
            assert near == [], f"{row['request_id']}: {probe['prompt']!r} asks about edited {near}"


def test_nothing_in_the_suite_is_edited() -> None:
    edited, keys = edit_texts(), {fact_key(row) for row in corrections() if "subject" in row}
    for row in suite():
        assert set(row) == {"prompt", "target", "subject", "relation"}
        assert normal(row["prompt"]) not in edited, row["prompt"]
        assert fact_key(row) not in keys, row["prompt"]


def test_the_suite_asks_each_thing_once_and_about_many_relations() -> None:
    assert repeated([normal(row["prompt"]) for row in suite()]) == []
    assert repeated([fact_key(row) for row in suite()]) == []
    assert len({row["relation"] for row in suite()}) >= 20


def test_the_suite_has_neighbours_of_the_edited_relations() -> None:
    edited = {row["relation"] for row in corrections() if "relation" in row}
    assert len(edited & {row["relation"] for row in suite()}) >= 4


def test_what_nobody_corrects_is_asked_in_both_ways_and_is_not_edited() -> None:
    edited, keys = edit_texts(), {fact_key(row) for row in corrections() if "subject" in row}
    assert len(unedited()) >= 3
    for row in unedited():
        assert set(row) == {"prompt", "question", "target_new", "subject", "relation"}
        assert not {normal(row["prompt"]), normal(row["question"])}.intersection(edited), row["prompt"]
        assert fact_key(row) not in keys, row["prompt"]


def test_corrections_occur_at_different_times_in_utc_and_in_order() -> None:
    times = [datetime.fromisoformat(row["occurred_at"]) for row in corrections()]
    assert all(time.utcoffset() == timedelta(0) for time in times)
    assert times == sorted(set(times))


@pytest.mark.parametrize(("name", "least", "most"), [("perplexity.txt", 6_000, 8_192), ("prior.txt", 25_000, 36_000)])
def test_plain_texts_have_the_size_they_are_used_at(name: str, least: int, most: int) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert least <= len(text.encode()) <= most
    assert text.endswith("\n")


def test_the_prior_is_512_different_lines_none_of_them_a_probe() -> None:
    lines = (FOLDER / "prior.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(set(lines)) == 512
    assert [line for line in lines if normal(line.rstrip(".")) in edit_texts()] == []
