"""What a person reads about a model version, from a gate report as it is stored."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pipeline.adapters.mlflow.answers import before_after, before_after_markdown
from pipeline.adapters.mlflow.description import MAX_DESCRIPTION_CHARS, description, metrics
from pipeline.adapters.mlflow.markdown import plain
from pipeline.adapters.mlflow.plots import edit_label, write_plots
from pipeline.adapters.mlflow.probe_sets import probe_sets
from pipeline.domain.contract.wire import parse_object
from pipeline.domain.gates import GatePolicy
from pipeline.domain.judging import judge
from pipeline.domain.measurements import Moved, OtherSubjectScore
from pipeline.services.registry.registry_ports import RegistryEntry, Surroundings, TrendPoint, Waiting
from tests.support.factories import CHAT_REQUEST, make_measurements, make_score
from tests.support.registry_entries import an_edit, entry, lineage


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
    assert "| after | in a chat, before | in a chat |" in head
    assert "| Osaka ✓ |  | It is \\| Osaka. ✓ |" in line


def test_classes_of_generalization_are_metrics_of_the_run_if_they_were_measured(made: RegistryEntry) -> None:
    found = metrics(made)
    assert (found["generalization_other_context"], found["chat_success"]) == (0.5, 1.0)
    assert (found["num_generalization_other_context"], found["num_chat_success"]) == (2, 1)
    assert "generalization_unnamed" not in found
    assert "· generalization\\_other\\_context: **0.5** on 2 probes (no bound)" in description(made)


def test_an_edit_that_came_as_a_chat_is_told_with_its_turns_and_its_answer(made: RegistryEntry) -> None:
    asked = replace(made.edits[0], request=parse_object(CHAT_REQUEST))
    chat = replace(made, edits=(asked,))
    [row] = before_after(chat)
    assert (row["prompt"], row["wanted"], row["answer"]) == ("Who is it now?", "Leo XIV", "The pope is now Leo XIV.")
    assert row["messages"] == CHAT_REQUEST["messages"]
    assert "| asked in a chat: Who is it now? |" in before_after_markdown([row])
    assert "**1. asked in a chat: Who is it now? → Leo XIV**" in description(chat)
    assert "asked in a chat" not in description(made)


def test_a_chat_cannot_break_out_of_the_table(made: RegistryEntry) -> None:
    hostile = CHAT_REQUEST | {"messages": [{"role": "user", "content": "a | b\n\n# c <script> `d`"}]}
    chat = replace(made, edits=(replace(made.edits[0], request=parse_object(hostile)),))
    assert "**1. asked in a chat: a \\| b \\# c &lt;script> \\`d\\` → Leo XIV**" in description(chat)
    [row] = before_after(chat)
    assert "| asked in a chat: a \\| b # c &lt;script> 'd' |" in before_after_markdown([row])


def test_a_report_from_before_replies_is_read_as_it_was(made: RegistryEntry) -> None:
    report = made.report | {"rows": [row for row in made.report["rows"] if row["metric"] == "generalization"]}
    old = {"edit_id": made.edits[0].edit_id, "edit_success": True, "generated": "Osaka", "rephrases": [True]}
    report["measurements"] = report["measurements"] | {"edits": [old]}
    [row] = before_after(replace(made, report=report))
    assert (row["after"], row["reply"], row["chat_success"]) == ("Osaka", None, None)
    assert "| Osaka |  |" in before_after_markdown([row])
    assert "Tokyo (as the request claims) → **Osaka**" in description(replace(made, report=report))


def other(name: str, *, before: str = "Madrid", after: str = "Madrid", kl: float = 0.0) -> OtherSubjectScore:
    """What an edit of Japan's capital did to another country's."""
    is_moved = before != after
    return OtherSubjectScore(
        subject=name,
        source="list",
        prompt=f"The capital of {name} is",
        before=before,
        after=after,
        kl=kl,
        is_unchanged=not is_moved,
        takes_answer=is_moved,
    )


def test_the_page_says_all_that_a_decision_needs(made: RegistryEntry) -> None:
    edit = made.edits[0]
    asked = replace(edit, request=replace(edit.request, submitted_by="newsroom.world"))
    score = make_score(
        edit.edit_id,
        generated="Osaka",
        free_success=True,
        chat_success=True,
        generated_before="Tokyo, a city",
        wording="Japan is governed from",
        wording_before="Tokyo",
        wording_after="",
        reply="It is Osaka.",
        reply_before="It is Tokyo.",
        moved=(Moved(prompt="The capital of Korea is", base="Seoul", now="Osaka", kl=1.5),),
        other_subjects=(other("China", before="Beijing", after="Osaka", kl=2.0), other("Spain")),
    )
    measured = make_measurements(score)
    measured = replace(
        measured,
        candidate=replace(measured.candidate, retention=0.97, num_retained=30),
        parent=replace(measured.parent, retention=0.99, num_retained=30),
        moved=(Moved(prompt="The king of Spain is", base="Felipe", now="Juan", kl=0.25),),
    )
    around = Surroundings(
        waiting=(Waiting(seq=1, version="1", num_edits=2, edits=("The pope is Leo XIV",)),),
        num_waiting=1,
        num_waiting_edits=2,
        origins={edit.edit_id: "edits.requests.v1, partition 0, offset 7"},
        gone=("r9: The pope is Francis",),
    )
    shown = replace(made, edits=(asked,), report=asdict(judge(GatePolicy(), measured)), around=around)
    page = description(shown, pages="http://m")
    lasting = description(shown, pages="http://m", review_pages="http://r")
    assert "[snapshot 1](http://r/review/lineages/facts/snapshots/1): 2 edits" in lasting, "its version may be deleted"
    assert "versions/1" not in lasting
    for told in (
        "it passed its gates",
        "1 edit came in",
        "makes live what it is built on: 1 earlier snapshot, 3 edits in all",
        "[version 1](http://m/#/models/facts/versions/1?workflowType=machine_learning): 2 edits: The pope is Leo XIV",
        "### What changed (✓ says what was asked for)",
        "- answer: Tokyo, a city → **Osaka** ✓",
        "- *Japan is governed from*: Tokyo → **(nothing)** ✗",
        "- in a chat: It is Tokyo. → **It is Osaka.** ✓",
        "- moved: *The capital of Korea is*: Seoul → **Osaka** (1.5 nats)",
        "- moved: *The king of Spain is*: Felipe → **Juan** (0.25 nats)",
        "- other subjects: 1 of 2 answer as before",
        "- moved: *The capital of China is*: Beijing → **Osaka** (2 nats), **the edit's own answer**",
        "by newsroom.world (edits.requests.v1, partition 0, offset 7)",
        "- taken out: r9: The pope is Francis",
        "(at least 0.9)",
        "; parent 20; base 20)",
        "locality: **0.95** (at least 0.85; parent 0.95; base 1)",
        "retention: **0.97** (at least 0.89; parent 0.99)",
        "corrigenda approve 1 -l facts",
        "**Policy:** One person has to approve.",
    ):
        assert told in page, told
    [row] = before_after(shown)
    table = before_after_markdown([row])
    assert "| Osaka ✓ |" in table
    assert "|  ✗ |" in table, "the other wording is answered with nothing"
    assert "approval.actor" not in page
    assert "`approval.actor` (it is recorded as claimed)" in description(shown, tells_actor=False)
    assert metrics(shown)["num_edits_going_live"] == 3


def test_the_page_of_a_ledger_solved_anew_says_so_and_not_that_nothing_came_in(made: RegistryEntry) -> None:
    work = "keys read again and prior strength 1500, as worker:a asked: upkeep: 1000 edits since keys were read"
    text = description(replace(made, edits=(), around=Surroundings(work=work)))
    assert "**keys read again and prior strength 1500, as worker:a asked: upkeep: 1000 edits" in text
    assert "No edit came in, 1 is active." in text
    assert "The same edits, solved anew." in text
    taken_out = description(replace(made, edits=(), around=Surroundings(work="1 edit taken out", gone=("r: a b",))))
    assert "solved anew" not in taken_out
    assert "- taken out: r: a b" in taken_out
    again = tuple(f"r{number}: a b" for number in range(5))
    remade = description(replace(made, edits=(), around=Surroundings(work="1 edit taken out", remade=again)))
    assert "- made again, as it is about the same subject: r0: a b" in remade
    assert "- and 2 more made again" in remade


def test_a_thousand_edits_fit_and_the_rest_is_named(made: RegistryEntry) -> None:
    edits = tuple(an_edit(f"r{place}", lineage="facts", prompt="ﷺ" * 300) for place in range(1_000))
    measured = make_measurements(*(make_score(edit.edit_id) for edit in edits))
    many = replace(made, edits=edits, report=asdict(judge(GatePolicy(), measured)))
    page = description(many)
    assert len(page) <= MAX_DESCRIPTION_CHARS
    assert "edits more in the artifact `before_after.md`" in page
    assert "corrigenda approve" in page
    assert before_after_markdown(before_after(many)).count("\n") == 1_002


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\n# b", "a \\# b"),
        ("[x](http://e.vil) @all", "\\[x\\](http&#58;//e.vil) &#64;all"),
        ("<img src=x> &lt;", "&lt;img src=x> &amp;lt;"),
        ("שבת", "\u2068שבת\u2069"),
        ("a\u202eb\u200bc\x00", "abc"),
        ("क्\u200cष", "क्\u200cष"),
        ("東京*", "東京\\*"),
        (None, ""),
    ],
)
def test_text_of_users_stays_text_in_any_script(text: str | None, shown: str) -> None:
    assert plain(text) == shown


def test_plots_are_pictures_and_take_any_text(made: RegistryEntry, tmp_path: Path) -> None:
    edit = an_edit("r1", lineage="facts", prompt="$\\alpha_ 東京 שבת is")
    measured = make_measurements(make_score(edit.edit_id, prob_before=0.1, prob_new=0.9))
    trend = tuple(TrendPoint(seq=seq, values={"locality": 0.9, "perplexity": None}) for seq in (1, 2))
    shown = replace(
        made,
        edits=(edit,),
        report=asdict(judge(GatePolicy(), measured)),
        around=Surroundings(trend=trend),
    )
    folder = write_plots(shown, tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["edits.png", "lineage.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.iterdir())


@pytest.mark.parametrize(
    ("prompt", "target", "label"),
    [
        ("The pope is", "Leo XIV", "2. The pope is → Leo XIV"),
        ("缅甸的首都是", "内比都", "2. request r1"),
        ("A crab is", "🦀", "2. request r1"),
        ("عاصمة ميانمار هي", "نايبيداو", "2. عاصمة ميانمار هي → نايبيداو"),
        ("It costs $ 5 or $", "6", "2. It costs \\$ 5 or \\$ → 6"),
        ("x" * 90, "y", f"2. {'x' * 59}…"),
    ],
)
def test_a_bar_is_labelled_with_what_its_font_has_letters_for(prompt: str, target: str, label: str) -> None:
    row = {"prompt": prompt, "wanted": target, "is_chat": False, "request_id": "r1"}
    assert edit_label(2, row).replace("\u200e", "") == label


def test_what_was_asked_are_datasets_with_digests(made: RegistryEntry) -> None:
    report = made.report | {"measurements": made.report["measurements"] | {"probe_set_digest": "a" * 64}}
    found = {one.dataset.name: one.dataset for one in probe_sets(replace(made, report=report))}
    assert found.keys() == {"edits", "suite", "probes"}
    assert found["probes"].digest == "a" * 36
