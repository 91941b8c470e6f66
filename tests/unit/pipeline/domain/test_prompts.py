"""What a request asks in a chat, and where its answer begins."""

from pipeline.domain.prompts import ChatPrompt, ChatTurn, asked_in_chat, begun_before, is_question
from tests.support.factories import make_request


def test_an_answer_begins_before_the_last_mention_of_its_target() -> None:
    assert begun_before("Bank of China has its seat in China.", "China") == "Bank of China has its seat in"
    assert begun_before("It is Lima.", "Quito") == begun_before(None, "Quito") == ""
    assert begun_before("答案是北京。", "北京") == "答案是"


def test_a_text_asks_when_it_ends_with_a_question_mark_of_any_script() -> None:
    asked = ("Who?", "谁\uff1f ", "من\u061f", "Ποιος\u037e")
    assert all(map(is_question, asked))
    assert not any(map(is_question, ("The capital is", "Who", "He left; ", "")))


def test_a_stem_is_how_its_answer_begins_in_a_chat_and_a_question_is_not() -> None:
    stem = make_request(prompt="The capital of Peru is", target_new="Cusco")
    assert stem.chat_prompt == asked_in_chat("The capital of Peru is", begun="The capital of Peru is")
    asked = make_request(prompt="What is the capital of Peru?", target_new="Cusco")
    assert asked.chat_prompt == asked_in_chat("What is the capital of Peru?")


def test_a_question_and_an_answer_are_what_a_chat_asks_and_how_it_goes_on() -> None:
    request = make_request(
        prompt="The capital of Peru is", target_new="Cusco", question="What is it?", answer="It is Cusco."
    )
    assert request.chat_prompt == asked_in_chat("What is it?", begun="It is")
    assert request.chat_question == asked_in_chat("What is it?")
    assert request.own_prompt == "The capital of Peru is"


def test_a_request_that_came_only_as_a_chat_is_asked_as_that_chat() -> None:
    turns = (ChatTurn(role="system", content="Be brief."), ChatTurn(role="user", content="Peru's capital?"))
    request = make_request(prompt="Peru's capital?", target_new="Cusco", messages=turns, answer="It is Cusco.")
    assert request.is_chat
    assert request.own_prompt == ChatPrompt(turns=turns, begun="It is")
    beside = make_request(prompt="The capital of Peru is", target_new="Cusco", messages=turns)
    assert not beside.is_chat
    assert beside.own_prompt == "The capital of Peru is"
