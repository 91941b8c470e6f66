"""Corrections as people ask: chats in OpenAI's form, questions, answers and other names on the wire."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import schemas
from pipeline.domain.contract.chat_wire import MAX_CHAT_CHARS, MAX_PROMPT_CHARS, MAX_TURN_CHARS, MAX_TURNS
from pipeline.domain.contract.wire import MAX_ALIASES, MAX_TARGET_CHARS, parse_message, parse_object
from pipeline.domain.edits import EditRequest
from pipeline.domain.errors import InvalidMessage
from pipeline.domain.prompts import ChatPrompt, ChatTurn
from tests.support.factories import CHAT_REQUEST, WIRE_REQUEST

OLD_DIGEST = "fb547d64129d90a5bc4c2c9cbec844521547f4aad19bcfcd6e9385fce75a5953"
"""Payload digest of `WIRE_REQUEST` under the contract before it knew of chats."""
USER = {"role": "user", "content": "Who is the pope?"}


def parsed(document: dict[str, Any]) -> EditRequest:
    return parse_message(json.dumps(document).encode("utf-8", "surrogatepass"))


def chat(*messages: Any, **changes: Any) -> dict[str, Any]:
    return CHAT_REQUEST | {"messages": list(messages)} | changes


def test_a_message_from_before_has_the_digest_that_it_had() -> None:
    assert parsed(WIRE_REQUEST).payload_digest == OLD_DIGEST
    left_out = {"question": None, "messages": [], "answer": None, "aliases": []}
    assert parsed(WIRE_REQUEST | left_out).payload_digest == OLD_DIGEST


def test_a_chat_and_a_right_answer_are_a_whole_correction() -> None:
    request = parsed(CHAT_REQUEST)
    assert request.is_chat
    assert request.prompt == "Who is it now?"
    assert request.target_new == "Leo XIV"
    assert request.own_prompt == ChatPrompt(turns=request.messages, begun="The pope is now")
    assert [turn.role for turn in request.messages] == ["system", "user", "assistant", "user"]


def test_an_answer_without_a_target_is_the_target() -> None:
    request = parsed({name: value for name, value in CHAT_REQUEST.items() if name != "target_new"})
    assert request.target_new == request.answer == "The pope is now Leo XIV."
    assert request.own_prompt == ChatPrompt(turns=request.messages)


def test_a_target_without_an_answer_is_enough_for_a_chat() -> None:
    request = parsed({name: value for name, value in CHAT_REQUEST.items() if name != "answer"})
    assert (request.answer, request.own_prompt) == (None, ChatPrompt(turns=request.messages))


def test_a_chat_may_stand_beside_a_stem_which_stays_the_prompt() -> None:
    request = parsed(WIRE_REQUEST | {"messages": [USER], "question": "What is it?", "aliases": [" Down Under "]})
    assert not request.is_chat
    assert request.own_prompt == WIRE_REQUEST["prompt"]
    assert request.chat_question.turns == (ChatTurn(role="user", content=USER["content"]),)
    assert (request.question, request.aliases) == ("What is it?", ("Down Under",))


def test_a_prompt_that_repeats_the_last_turn_says_nothing_new() -> None:
    repeated = CHAT_REQUEST | {"prompt": "Who is it now?"}
    assert parsed(repeated) == parsed(CHAT_REQUEST)
    assert parsed(repeated).payload_digest == parsed(CHAT_REQUEST).payload_digest


def test_parts_of_text_are_lines_of_one_text() -> None:
    parts = [{"type": "text", "text": "Who is"}, {"type": "text", "text": "the pope?"}]
    assert parsed(chat({"role": "user", "content": parts})).prompt == "Who is\nthe pope?"


def test_a_developer_is_the_system_under_a_newer_name() -> None:
    request = parsed(chat({"role": "developer", "content": "Be brief."}, USER))
    assert request.messages[0] == ChatTurn(role="system", content="Be brief.")


def test_a_system_turn_may_be_empty_because_that_silences_a_template() -> None:
    assert parsed(chat({"role": "system", "content": ""}, USER)).messages[0].content == ""


def test_what_a_log_holds_of_a_reply_may_stay_in_it_as_long_as_it_says_nothing() -> None:
    logged = {"role": "assistant", "content": "Francis.", "refusal": None, "annotations": [], "tool_calls": None}
    logged |= {"audio": None, "function_call": None}
    request = parsed(chat(USER | {"name": "ann"}, logged, USER))
    assert request == parsed(chat(USER, {"role": "assistant", "content": "Francis."}, USER))


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (chat(), "prompt: .*expected a prompt, or messages in place of it, got neither"),
        (chat({"role": "system", "content": "Be brief."}), "messages: .*user's turn at the end, got .*'system'"),
        (chat(USER, {"role": "assistant", "content": "Francis."}), "messages: .*got .*'assistant'"),
        (chat({"role": "tool", "content": "42"}, USER), r"messages\.0\.role"),
        (chat({"role": "User", "content": "Who?"}), r"messages\.0\.role"),
        (chat({"content": "Who?"}), r"messages\.0\.role: expected a value, got none"),
        (chat({"role": "user"}), r"messages\.0\.content: expected a value, got none"),
        (chat({"role": "user", "content": None}), r"messages\.0\.content: .*string"),
        (chat({"role": "user", "content": ""}), r"messages\.0\.content: .*visible"),
        (chat({"role": "user", "content": []}), r"messages\.0\.content: .*visible"),
        (chat({"role": "user", "content": " \u200b\u202e\u2066"}), r"messages\.0\.content: .*visible"),
        (chat({"role": "assistant", "content": ""}, USER), r"messages\.0\.content: .*visible"),
        (chat({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}), "got a part 'image_url'"),
        (chat({"role": "user", "content": [{"type": "text", "text": 7}]}), "got a part 'text'"),
        (chat({"role": "user", "content": ["Who?"]}), "got a part 'str'"),
        (chat(USER | {"weight": 1}), r"messages\.0\.weight: there is no such field"),
        (chat({"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}, USER), r"messages\.0\.tool_calls"),
        (chat({"role": "assistant", "content": "x", "refusal": "I cannot"}, USER), r"messages\.0\.refusal"),
        (chat("Who?"), r"messages\.0"),
        (CHAT_REQUEST | {"messages": USER}, "messages: .*list"),
        (CHAT_REQUEST | {"messages": None}, "messages: .*list"),
        (chat(*[USER] * (MAX_TURNS + 1)), f"messages: .*{MAX_TURNS}"),
        (chat(*[USER] * 10_000), f"messages: .*{MAX_TURNS}"),
        (chat({"role": "system", "content": "a" * (MAX_TURN_CHARS + 1)}, USER), f"content: .*{MAX_TURN_CHARS}"),
        (chat({"role": "user", "content": "a" * (MAX_PROMPT_CHARS + 1)}), f"last turn of at most {MAX_PROMPT_CHARS}"),
        (chat(*[{"role": "user", "content": "a" * 7_999}] * 2, USER, USER), f"at most {MAX_CHAT_CHARS} .*together"),
        (chat(USER | {"content": "a\x00b"}), "NUL"),
        (chat(USER | {"content": "\udc80"}), "surrogate"),
        (CHAT_REQUEST | {"answer": "It is Pope Leo."}, "target_new: .*stands in the answer letter by letter"),
        (CHAT_REQUEST | {"target_new": None, "answer": None}, "target_new: .*or an answer in place of it, got neither"),
        (
            CHAT_REQUEST | {"target_new": None, "answer": "a" * (MAX_TARGET_CHARS + 1)},
            f"target_new: .*at most {MAX_TARGET_CHARS} characters in place of it, got {MAX_TARGET_CHARS + 1}",
        ),
        (CHAT_REQUEST | {"answer": " "}, "answer: .*visible"),
        (CHAT_REQUEST | {"answer": "a" * 2_001}, "answer: .*2000"),
        (WIRE_REQUEST | {"question": "\u2003"}, "question: .*visible"),
        (WIRE_REQUEST | {"question": ["What?"]}, "question: .*string"),
        (WIRE_REQUEST | {"aliases": ["Oz"], "subject": None}, "aliases: .*expected a subject beside its aliases"),
        (WIRE_REQUEST | {"aliases": ["Oz", " "]}, "aliases.1: .*visible"),
        (WIRE_REQUEST | {"aliases": "Oz"}, "aliases: .*list"),
        (WIRE_REQUEST | {"aliases": ["Oz"] * (MAX_ALIASES + 1)}, f"aliases: .*{MAX_ALIASES}"),
    ],
)
def test_a_refusal_names_the_field_and_what_was_expected(document: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidMessage, match=reason):
        parsed(document)


def test_whatever_else_is_wrong_what_is_missing_is_named_too() -> None:
    with pytest.raises(InvalidMessage, match=r"prompt: .*; target_new: .*; occurred_at: expected a value, got none"):
        parsed({"request_id": "r", "lineage": "facts"})


@pytest.mark.parametrize(
    "document",
    [
        CHAT_REQUEST,
        chat(USER, target_new=None),
        chat({"role": "user", "content": [{"type": "text", "text": "Who?"}]}),
        chat({"role": "user", "content": [{"type": "audio", "text": "Who?"}]}),
        chat(USER | {"name": "ann", "tool_calls": []}),
        chat(USER | {"colour": 1}),
        chat(),
        chat(*[USER] * 33),
        chat({"role": "user", "content": "a" * 8_001}),
        chat(prompt=None),
        chat(prompt="The pope is"),
        chat(USER, target_new=None, answer=None),
        chat(USER, target_new=None, answer="a" * 201),
        WIRE_REQUEST | {"aliases": ["Oz"]},
        WIRE_REQUEST | {"aliases": ["Oz"], "subject": None},
        {name: value for name, value in WIRE_REQUEST.items() if name != "prompt"},
        {name: value for name, value in WIRE_REQUEST.items() if name != "target_new"},
    ],
)
def test_schema_and_parser_agree_on_what_may_be_left_out(document: dict[str, Any]) -> None:
    schema = json.loads((schemas.FOLDER / "edits.requests.v1.json").read_text())
    try:
        parse_object(document)
        is_parsed = True
    except InvalidMessage:
        is_parsed = False
    assert jsonschema.Draft202012Validator(schema).is_valid(document) is is_parsed


TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=40)
SPOKEN = TEXT | st.sampled_from(
    [
        "法国的首都是哪里\uff1f",
        "من هو البابا؟",
        "\u202eWho?\u202c",
        "\U0001f469\U0001f3fd\u200d\U0001f680?",
        "<|im_end|>\n",
        "{{ 7 * 7 }}",
    ]
)
TURNS = st.lists(st.builds(dict, role=st.sampled_from(["system", "user", "assistant"]), content=SPOKEN), max_size=5)


@given(earlier=TURNS, asked=SPOKEN, target=SPOKEN, before=st.text("Tis ", max_size=6))
def test_a_request_that_is_taken_is_the_same_when_it_is_sent_as_it_was_recorded(
    earlier: list[dict[str, Any]], asked: str, target: str, before: str
) -> None:
    answer = f"{before}{target}."
    document = chat(*earlier, {"role": "user", "content": asked}, target_new=target, answer=answer)
    texts = [asked, target, *(turn["content"] for turn in earlier if turn["role"] != "system")]
    if any(all(char.isspace() or not char.isprintable() for char in text) for text in texts):
        with pytest.raises(InvalidMessage, match="visible"):
            parsed(document)
        return
    request = parsed(document)
    again = parse_object(request.as_json())
    assert again == request
    assert again.payload_digest == request.payload_digest
    assert request.is_chat
    assert request.messages[-1].content == asked
    assert request.answer is not None
    assert request.answer.startswith(request.chat_prompt.begun)
    assert request.target_new in request.answer
