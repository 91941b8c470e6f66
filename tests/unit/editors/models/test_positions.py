"""What is longer than a model has positions for is refused alone, and answers stop where the positions end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from editors.measure.free_answers import free_answers
from editors.measure.quality import quality_probes
from editors.measure.reference import own_answers
from editors.measure.rounds import answered
from editors.models.positions import answered_together, max_positions
from editors.models.tokens import num_tokens
from pipeline.domain.edits import Probe
from pipeline.domain.errors import EditorFailed, InvalidInput
from pipeline.domain.prompts import asked_in_chat
from tests.support.factories import make_edit
from tests.support.tiny_families import ARCHITECTURES, tiny_model
from workers.rank.validation import require_encodable

MOST = 24
LIMITED: dict[str, dict[str, Any]] = {
    "gpt2": {"n_positions": MOST},
    "gptj": {"n_positions": MOST},
    "gpt_neo": {"max_position_embeddings": MOST},
    "gpt_neox": {"max_position_embeddings": MOST},
    "llama": {"max_position_embeddings": MOST},
    "bart": {"max_position_embeddings": MOST},
    "bert": {"max_position_embeddings": MOST},
}


def limited(name: str) -> Any:
    """A tiny model with few positions, that no stop token ends before them."""
    model = tiny_model(name, **LIMITED[name])
    model.__dict__["stop_ids"] = frozenset()
    return model


def words(model: Any, num: int) -> str:
    """A text of so many tokens, with those that the tokenizer puts around it."""
    around = len(model.tokenizer("king")["input_ids"]) - 1
    return " ".join(["king"] * (num - around))


def target_of(model: Any) -> str:
    return "true" if model.task == "classifier" else "Rome"


def edit_of(model: Any, request_id: str, **changes: Any) -> Any:
    fields = {"prompt": "the king of Spain is", "target_new": target_of(model), "subject": None, "target_true": None}
    return make_edit(request_id, **(fields | changes))


@pytest.mark.parametrize("name", sorted(LIMITED))
def test_a_prompt_that_is_too_long_is_refused_alone_with_both_numbers(name: str) -> None:
    model = limited(name)
    good = [edit_of(model, f"good{number}") for number in range(4)]
    require_encodable(model, [*good, edit_of(model, "just", prompt=words(model, MOST))])
    long = edit_of(model, "long", prompt=words(model, MOST + 3))
    with pytest.raises(EditorFailed, match=rf"expected a prompt of at most {MOST} tokens, got {MOST + 3}") as failed:
        require_encodable(model, [*good, long])
    assert failed.value.ids == {"edit_id": long.edit_id}


@pytest.mark.parametrize("name", sorted(LIMITED))
def test_whatever_else_of_an_edit_is_too_long_is_named(name: str) -> None:
    model = limited(name)
    long = words(model, MOST + 1)
    fields: dict[str, dict[str, Any]] = {
        r"rephrases\[1\]": {"rephrases": ("the king is", long)},
        r"locality\[0\]": {"locality": (Probe(prompt=long),)},
        r"portability\[0\]": {"portability": (Probe(prompt=long, target=target_of(model)),)},
        "question": {"question": f"{long} ?"},
    }
    for field, changes in fields.items():
        with pytest.raises(EditorFailed, match=rf"{field}: expected a prompt of at most {MOST} tokens, got"):
            require_encodable(model, [edit_of(model, "r1", **changes)])


@pytest.mark.parametrize("name", sorted(set(LIMITED) - {"bert"}))
def test_a_free_answer_stops_where_the_positions_end(name: str) -> None:
    model = limited(name)
    prompts = [model.encode_prompt(words(model, num)) for num in (MOST, MOST - 2, MOST - 5, 5, 7)]
    answers = model.greedy(prompts, max_new_tokens=40)
    is_decoder = model.task == "causal"
    start = 0 if is_decoder else int(model.pack([model.encode_pair("king", "Rome")]).position_N[0]) + 1
    rooms = [MOST + 1 - (len(prompt) if is_decoder else start) for prompt in prompts]
    assert [len(answer) for answer in answers] == rooms
    for prompt, answer in zip(prompts, answers, strict=True):
        assert model.greedy([prompt], max_new_tokens=40) == [answer]
    with pytest.raises(InvalidInput, match=f"expected a prompt of at most {MOST} tokens, got {MOST + 1}"):
        model.generate([words(model, MOST + 1)])


def test_a_classifier_refuses_what_it_has_no_positions_for() -> None:
    model = limited("bert")
    assert len(model.generate([words(model, MOST)])) == 1
    with pytest.raises(InvalidInput, match=f"expected a prompt of at most {MOST} tokens, got {MOST + 1}"):
        model.generate([words(model, MOST + 1)])


@pytest.mark.parametrize("name", ["gpt2", "gptj", "gpt_neo", "bart"])
def test_all_that_is_measured_of_a_prompt_at_the_end_of_the_positions_can_be(name: str) -> None:
    model = limited(name)
    prompt = words(model, MOST)
    [answer], replies = answered(model, free_answers(model, [(prompt, "Rome")], questions=[asked_in_chat(prompt)]))
    assert answer.text
    assert all(replies[question] for question in [asked_in_chat(prompt)])
    [own] = own_answers(model, [Probe(prompt=prompt)])
    if model.task == "causal":
        assert num_tokens(own) == MOST
    assert torch.isfinite(model.target_logits(model.pack([own]))).all()


@pytest.mark.parametrize("name", ["gpt2", "gptj", "gpt_neo", "llama"])
def test_text_is_read_in_windows_that_the_positions_suffice_for(name: str) -> None:
    model = limited(name)
    text = words(model, 5 * MOST)
    windows = quality_probes(model, [], text, num_windows=3)
    assert [num_tokens(window.sequence) for window in windows] == [MOST - 1] * 3
    assert num_tokens(model.encode_text(text, max_tokens=200)) <= MOST


@pytest.mark.parametrize("name", ["bart", "bert"])
def test_an_encoder_reads_the_beginning_of_a_long_text(name: str) -> None:
    model = limited(name)
    batch = model.pack([model.encode_text(words(model, 5 * MOST), max_tokens=200)])
    assert torch.isfinite(model.target_logits(batch)).all()


@pytest.mark.parametrize("name", sorted(name for name, made in ARCHITECTURES.items() if "t5" in name))
def test_positions_that_are_relative_have_no_end(name: str) -> None:
    model = tiny_model(name)
    assert model.max_positions is None
    require_encodable(model, [edit_of(model, "r1", prompt=words(model, 700))])


def test_positions_that_are_counted_from_behind_padding_are_fewer_than_the_table_has() -> None:
    config = AutoConfig.for_model(
        "roberta",
        vocab_size=56,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=MOST + 2,
        pad_token_id=1,
    )
    module = AutoModelForSequenceClassification.from_config(config).eval()
    assert max_positions(module) == MOST
    module(input_ids=torch.full((1, MOST), 7))
    with pytest.raises((IndexError, RuntimeError)):
        module(input_ids=torch.full((1, MOST + 1), 7))


def test_prompts_are_answered_together_unless_one_comes_to_the_end() -> None:
    prompts = [[7] * num for num in (3, 10, 5, 10)]
    assert list(answered_together(prompts, max_new_tokens=3, most=None)) == [([0, 1, 2, 3], 3)]
    assert list(answered_together(prompts, max_new_tokens=3, most=12)) == [([0, 1, 2, 3], 3)]
    assert list(answered_together(prompts, max_new_tokens=3, most=11)) == [([0, 2], 3), ([1, 3], 2)]
