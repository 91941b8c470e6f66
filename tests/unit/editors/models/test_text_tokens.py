"""Where texts meet a tokenizer, of any family: what it puts around them, and what of them comes back."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import ByT5Tokenizer

from editors.models.text_tokens import require_known, require_plain, subject_end, tokens_of
from editors.models.tokens import encode_pair, encode_prompt, raw_tokens
from pipeline.domain.errors import InvalidInput
from pipeline.domain.prompts import ChatPrompt, ChatTurn, asked_in_chat
from tests.support.byte_tokens import byte_tokenizer
from tests.support.small_tokenizers import bert_like, llama_like, t5_like
from tests.support.tiny_families import ARCHITECTURES, tiny_model, tiny_module

MAKERS: dict[str, Any] = {
    "t5": t5_like,
    "bert": bert_like,
    "llama": llama_like,
    "bytes": byte_tokenizer,
    "byt5": ByT5Tokenizer,
}


@pytest.fixture(params=sorted(MAKERS))
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return MAKERS[request.param]()


def said(tokenizer: Any, *ids: int) -> str:
    return str(tokenizer.decode(list(ids)))


def test_a_prompt_ends_with_its_own_last_token_whatever_a_tokenizer_puts_behind_it(tokenizer: Any) -> None:
    ids = encode_prompt(tokenizer, "the capital of Peru is")
    whole = tuple(tokenizer("the capital of Peru is")["input_ids"])
    closing = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
    assert whole[: len(ids)] == ids
    assert set(whole[len(ids) :]) <= closing
    assert ids[-1] not in closing


def test_what_stands_around_a_text_is_told_for_a_text_of_nothing_too() -> None:
    tokenizer = bert_like()
    assert tokens_of(tokenizer, "").own == ()
    around = tokens_of(tokenizer, ""), tokens_of(tokenizer, "Paris")
    assert {(found.before, found.behind) for found in around} == {((2,), (3,))}
    assert raw_tokens(tokenizer, "") == (2,)
    assert tokens_of(byte_tokenizer(), "").before == ()


def test_a_target_continues_its_prompt_and_comes_back_from_its_tokens(tokenizer: Any) -> None:
    encoded = encode_pair(tokenizer, "the capital of Peru is", "Lima", "Peru")
    assert said(tokenizer, *encoded.target_ids).strip() == "Lima"
    assert encoded.subject_end is not None
    up_to = said(tokenizer, *encoded.prompt_ids[: encoded.subject_end + 1])
    assert up_to.endswith("the capital of Peru")


@pytest.mark.parametrize("name", ["bert", "llama", "bytes", "byt5"])
def test_a_target_in_chinese_follows_its_prompt_without_a_blank(name: str) -> None:
    tokenizer = MAKERS[name]()
    encoded = encode_pair(tokenizer, "中国的首都是", "北京", "中国")
    assert said(tokenizer, *encoded.target_ids).replace(" ", "" if name == "bert" else " ") == "北京"
    whole = tokens_of(tokenizer, "中国的首都是北京")
    assert (*encoded.prompt_ids, *encoded.target_ids) == (*whole.before, *whole.own)


def test_a_price_follows_its_sign(tokenizer: Any) -> None:
    encoded = encode_pair(tokenizer, "the price is $", "499")
    whole = tokens_of(tokenizer, "the price is $499")
    assert (*encoded.prompt_ids, *encoded.target_ids) == (*whole.before, *whole.own)


@pytest.mark.parametrize("target", ["北京", "{a}", "Zoë", "Łódź", "CO₂", "10⁹", "a\u0301{", "😀"])
@pytest.mark.parametrize("name", ["t5", "bert"])
def test_a_target_that_a_tokenizer_cannot_write_is_refused(name: str, target: str) -> None:
    if name == "bert" and target == "北京":
        return
    with pytest.raises(InvalidInput, match="expected a target that the tokenizer can write"):
        encode_pair(MAKERS[name](), "the capital is", target)


@pytest.mark.parametrize("name", ["llama", "bytes", "byt5"])
@pytest.mark.parametrize("target", ["北京", "{a}", "Zoë", "CO₂", "😀", "a\u0301", "\uff21"])
def test_a_target_that_falls_into_bytes_comes_back(name: str, target: str) -> None:
    tokenizer = MAKERS[name]()
    encoded = encode_pair(tokenizer, "the capital is", target)
    assert said(tokenizer, *encoded.target_ids).strip() == target


def test_blanks_and_case_and_width_are_the_tokenizers_own_affair() -> None:
    encode_pair(t5_like(), "the capital is", "New-York:  U.S. (20%)")
    encode_pair(t5_like(), "the capital is", "".join(chr(ord(letter) + 0xFEE0) for letter in "Paris"))
    encode_pair(bert_like(), "the capital is", "New-York: U.S.")
    encode_pair(bert_like(lowercase=True), "the capital is", "Paris")
    with pytest.raises(InvalidInput, match="can write"):
        encode_pair(bert_like(lowercase=True), "the capital is", "Straße")


@pytest.mark.parametrize("prompt", ["北京", "中国 首都?", "{ } {", "Ελλάδα ..."])
def test_a_prompt_of_nothing_but_unknown_tokens_is_refused(prompt: str) -> None:
    for asked in (prompt, asked_in_chat(prompt)):
        for encode in (encode_prompt, lambda tokenizer, text: encode_pair(tokenizer, text, "Paris")):
            with pytest.raises(InvalidInput, match="knows a word of"):
                encode(t5_like(), asked)
    encode_prompt(byte_tokenizer(), prompt)
    encode_prompt(t5_like(), f"{prompt} is")
    with pytest.raises(InvalidInput, match="expected a subject that"):
        require_known(t5_like(), prompt, "a subject")


@pytest.mark.parametrize("family", sorted(name for name, made in ARCHITECTURES.items() if made.task != "causal"))
def test_encoders_refuse_what_decoders_refuse(family: str) -> None:
    model = tiny_model(family)
    model.tokenizer = t5_like()
    target = "true" if model.task == "classifier" else "Paris"
    assert model.encode_pair("Niger unlike Nigeria is", target, "Niger").subject_end == 0
    assert model.encode_pair("Nigeria is", target, "Niger").subject_end is None
    for prompt, reason in (("北京", "knows a word of"), ("the </s> is", "own token '</s>'")):
        with pytest.raises(InvalidInput, match=reason):
            model.encode_pair(prompt, target)
        with pytest.raises(InvalidInput, match=reason):
            model.encode_prompt(prompt)
    if model.task == "seq2seq":
        for wrong, reason in (("北京", "can write"), ("{a}", "can write"), ("Paris</s>", "own token '</s>'")):
            with pytest.raises(InvalidInput, match=reason):
                model.encode_pair("the capital is", wrong)


@pytest.mark.parametrize(
    "text",
    ["<|im_start|>", "Canberra<|im_end|>", "the</s>", "<s>", "a <unk> b", "<think>Paris"],
)
def test_a_control_token_is_refused_in_every_text(text: str) -> None:
    tokenizer = llama_like()
    turns = (ChatTurn(role="system", content=text), ChatTurn(role="user", content="Who is it?"))
    for prompt in (text, asked_in_chat(text), ChatPrompt(turns=turns), asked_in_chat("Who?", begun=text)):
        with pytest.raises(InvalidInput, match="own token"):
            encode_prompt(tokenizer, prompt)
        with pytest.raises(InvalidInput, match="own token"):
            encode_pair(tokenizer, prompt, "Paris")
    with pytest.raises(InvalidInput, match="own token"):
        encode_pair(tokenizer, "the capital is", text)
    require_plain(tokenizer, "1 < 2 > 0 | im_start [CLS] <b>")


def test_a_control_token_that_two_texts_make_together_is_refused() -> None:
    tokenizer = llama_like()
    require_plain(tokenizer, "the tag is <")
    require_plain(tokenizer, "|im_start|> follows")
    with pytest.raises(InvalidInput, match=r"own token '<\|im_start\|>'"):
        encode_pair(tokenizer, "the tag is <", "|im_start|> follows")


def test_blanks_that_a_tokenizer_has_a_token_for_are_text() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["    ", "\n\n"])
    require_plain(tokenizer, "a    b\n\nc")


def test_a_subject_ends_where_its_last_letter_is_read(tokenizer: Any) -> None:
    text = "Niger, not Nigeria, is"
    end = subject_end(tokenizer, text, "Niger")
    assert end is not None
    assert said(tokenizer, *tokenizer(text)["input_ids"][: end + 1]).replace("[CLS] ", "").endswith("Niger")
    assert subject_end(tokenizer, "Nigeria is", "Niger") is None
    assert subject_end(tokenizer, "Nigeria is", None) is None


def test_a_tokenizer_without_a_closing_token_of_its_own_gives_targets_an_end() -> None:
    module, _ = tiny_module("bart")
    model = type(tiny_model("bart"))(module, bert_like())
    assert model.encode_pair("the capital is", "Paris").target_ids[-1] == model.tokenizer.sep_token_id
    assert model.tokenizer.sep_token_id in model.stop_ids
