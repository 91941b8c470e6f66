"""What the demo asks about a correction, and which answers it takes for right."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.domain.edits import EditRequest
from pipeline.domain.prompts import ChatTurn
from pipeline.entrypoints.demo.asking import Asked, Way, asked_about, share_right
from pipeline.entrypoints.demo.stream import NO_TIME, corrections, unedited
from pipeline.entrypoints.demo.tables import NUM_SHOWN, shown
from tests.support.factories import make_request


def correction(**fields: Any) -> EditRequest:
    return make_request(
        **{
            "request_id": "japan",
            "prompt": "The Prime Minister of Japan is",
            "target_new": "Sanae Takaichi",
            "target_true": "Shinzo Abe",
            "subject": "Japan",
            "question": "Who leads Japan?",
            **fields,
        }
    )


def ways(request: EditRequest) -> dict[Way, str]:
    return {one.way: one.text for one in asked_about([request])}


def test_a_correction_is_asked_by_its_prompt_another_wording_and_its_question() -> None:
    request = correction(rephrases=("Japan's government is led by", "In 2025 the leader of Japan became"))
    assert ways(request) == {
        Way.stem: "The Prime Minister of Japan is",
        Way.wording: "Japan's government is led by",
        Way.chat: "Who leads Japan?",
    }


def test_a_wording_that_shares_the_text_before_the_subject_or_leaves_it_out_is_not_asked() -> None:
    assert Way.wording not in ways(correction(rephrases=("The Prime Minister of Japan is called",)))
    assert Way.wording not in ways(correction(rephrases=("The politician who heads the cabinet in Tokyo is",)))


def test_a_correction_that_came_only_as_a_chat_has_no_stem() -> None:
    turns = (ChatTurn(role="user", content="Who leads Japan?"),)
    assert ways(correction(prompt="Who leads Japan?", messages=turns, question=None)) == {Way.chat: "Who leads Japan?"}


def test_a_correction_without_a_question_is_not_asked_in_a_chat() -> None:
    assert list(ways(correction(question=None))) == [Way.stem]


@pytest.mark.parametrize(
    ("way", "reply", "is_right"),
    [
        (Way.stem, " Sanae Takaichi. She", True),
        (Way.stem, " sanae takaichi", True),
        (Way.stem, " the Liberal Democrat Sanae Takaichi", False),
        (Way.stem, " Sanae Takaichis", False),
        (Way.wording, " Shinzo Abe", False),
        (Way.chat, "Japan is led by Sanae Takaichi.", True),
        (Way.chat, "Not Shinzo Abe but Sanae Takaichi.", False),
        (Way.chat, "", False),
    ],
)
def test_a_stem_goes_on_with_the_answer_and_a_chat_says_it_anywhere(way: Way, reply: str, is_right: bool) -> None:
    assert Asked(request=correction(), way=way, text="?").is_answered_by(reply) is is_right


def test_a_share_is_of_one_way_alone_and_nothing_where_none_is_asked() -> None:
    asked = asked_about([correction(), correction(request_id="other", question=None)])
    said = {one: "Sanae Takaichi" if one.way is Way.chat else "nobody" for one in asked}
    assert share_right(said, Way.chat) == (1.0, 1)
    assert share_right(said, Way.stem) == (0.0, 2)
    assert share_right(said, Way.wording) == (None, 0)


def test_the_demo_asks_most_of_its_corrections_in_every_way_and_shows_the_same_facts_in_each() -> None:
    asked = asked_about(corrections("demo"))
    assert len({one.request.request_id for one in asked if one.way is Way.wording}) >= 18
    assert len({one.request.request_id for one in asked if one.way is Way.chat}) >= 20
    facts = [[one.request.request_id for one in shown(asked, way)] for way in Way]
    assert len(facts[0]) == NUM_SHOWN
    assert facts[0] == facts[1] == facts[2]


def test_what_nobody_corrects_is_asked_as_corrections_are() -> None:
    asked = asked_about(unedited("demo"))
    assert {one.way for one in asked} == {Way.stem, Way.chat}
    assert {one.request.occurred_at.isoformat() for one in asked} == {NO_TIME.replace("Z", "+00:00")}
