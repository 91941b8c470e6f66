"""What a person reads about a model version, from a gate report as it is stored."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pipeline.adapters.mlflow.description import before_after, before_after_markdown, description, metrics
from pipeline.domain.contract.wire import parse_object
from pipeline.domain.gates import GatePolicy
from pipeline.domain.judging import judge
from pipeline.services.registry.registry_ports import RegistryEntry
from tests.support.factories import CHAT_REQUEST, make_measurements, make_score
from tests.support.registry_entries import entry, lineage


@pytest.fixture
def made(tmp_path: Path) -> RegistryEntry:
    found = entry(lineage("facts"), tmp_path)
    said = {"generated": "Osaka", "reply": "It is | Osaka.", "chat_success": True}
    score = make_score(found.edits[0].edit_id, other_context=(True, False), **said)
    return replace(found, report=asdict(judge(GatePolicy(), make_measurements(score))))


def test_the_reply_in_a_chat_stands_beside_the_answer_to_the_prompt(made: RegistryEntry) -> None:
    [row] = before_after(made)
    assert (row["after"], row["reply"], row["chat_success"]) == ("Osaka", "It is | Osaka.", True)
    head, _, line = before_after_markdown([row]).splitlines()
    assert "| after | in a chat |" in head
    assert "| Osaka | It is \\| Osaka. |" in line


def test_classes_of_generalization_are_metrics_of_the_run_if_they_were_measured(made: RegistryEntry) -> None:
    found = metrics(made)
    assert (found["generalization_other_context"], found["chat_success"]) == (0.5, 1.0)
    assert (found["num_generalization_other_context"], found["num_chat_success"]) == (2, 1)
    assert "generalization_unnamed" not in found
    assert "| generalization_other_context | 0.5 of 2 | none | policy | reported |" in description(made)


def test_an_edit_that_came_as_a_chat_is_told_with_its_turns_and_its_answer(made: RegistryEntry) -> None:
    asked = replace(made.edits[0], request=parse_object(CHAT_REQUEST))
    chat = replace(made, edits=(asked,))
    [row] = before_after(chat)
    assert (row["prompt"], row["wanted"], row["answer"]) == ("Who is it now?", "Leo XIV", "The pope is now Leo XIV.")
    assert row["messages"] == CHAT_REQUEST["messages"]
    assert "| asked in a chat: Who is it now? |" in before_after_markdown([row])
    assert "| asked in a chat: Who is it now? |  | Leo XIV |" in description(chat)
    assert "asked in a chat" not in description(made)


def test_a_chat_cannot_break_out_of_the_table(made: RegistryEntry) -> None:
    hostile = CHAT_REQUEST | {"messages": [{"role": "user", "content": "a | b\n\n# c <script> `d`"}]}
    chat = replace(made, edits=(replace(made.edits[0], request=parse_object(hostile)),))
    assert "| asked in a chat: a \\| b # c &lt;script> 'd' |" in description(chat)


def test_a_report_from_before_replies_is_read_as_it_was(made: RegistryEntry) -> None:
    report = made.report | {"rows": [row for row in made.report["rows"] if row["metric"] == "generalization"]}
    old = {"edit_id": made.edits[0].edit_id, "edit_success": True, "generated": "Osaka", "rephrases": [True]}
    report["measurements"] = report["measurements"] | {"edits": [old]}
    [row] = before_after(replace(made, report=report))
    assert (row["after"], row["reply"], row["chat_success"]) == ("Osaka", None, None)
    assert "| Osaka |  |" in before_after_markdown([row])
