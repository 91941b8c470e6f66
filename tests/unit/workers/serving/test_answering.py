"""Answers in the making: which tokens, which text, and where they end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from editors.models.families import EditableModel
from editors.weights.loading import load_base
from tests.support.tiny_models import save_tiny_llama
from workers.serving.answering import Answering, GrowingText, Piece, Sampling, chosen

STEMS = ["the capital of Japan is", "a river located in France is a", "who"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> EditableModel:
    folder = tmp_path_factory.mktemp("base")
    save_tiny_llama(folder)
    return load_base(folder)


def answered(model: EditableModel, stems: Sequence[str], sampling: Sampling) -> tuple[list[str], list[Piece]]:
    """The texts of the answers, and the last piece of each."""
    prompts = [model.encode_raw(stem) for stem in stems]
    most = sampling.max_tokens
    answering = Answering(model, prompts, choices=range(len(prompts)), most=most, sampling=sampling)
    texts, last = [""] * len(prompts), {}
    while not answering.is_done:
        for piece in answering.step():
            texts[piece.choice] += piece.text
            last[piece.choice] = piece
    return texts, [last[place] for place in range(len(prompts))]


def test_without_temperature_the_answers_are_those_that_gates_measure(model: EditableModel) -> None:
    texts, last = answered(model, STEMS, Sampling(max_tokens=8))
    assert texts == model.generate(STEMS, max_new_tokens=8)
    assert {piece.ending for piece in last} <= {"stop", "length"}
    assert all((piece.ending == "length") <= (piece.num_tokens == 8) for piece in last)


def test_the_same_seed_gives_the_same_answers_and_choices_differ(model: EditableModel) -> None:
    asked = [STEMS[0]] * 4
    warm = Sampling(max_tokens=12, temperature=1.5, seed=7)
    first = answered(model, asked, warm)[0]
    assert answered(model, asked, warm)[0] == first
    assert len(set(first)) > 1
    assert answered(model, asked, Sampling(max_tokens=12, temperature=1.5, seed=8))[0] != first


def test_top_p_leaves_out_what_is_beyond_it() -> None:
    logits_V = torch.tensor([3.0, 5.0, 1.0, 4.9])
    draw = torch.Generator().manual_seed(0)
    near = Sampling(max_tokens=1, temperature=1.0, top_p=0.8)
    assert {chosen(logits_V, near, draw) for _ in range(200)} == {1, 3}
    assert {chosen(logits_V, Sampling(max_tokens=1, temperature=1.0, top_p=1e-9), draw) for _ in range(20)} == {1}
    assert {chosen(logits_V, Sampling(max_tokens=1, temperature=5.0), draw) for _ in range(400)} == {0, 1, 2, 3}


@pytest.mark.parametrize("text", ["plain words", "Türkiye", "北京是中国的首都", "🇯🇵 and 👩‍🚀 fly"])
def test_text_comes_in_whole_characters_and_all_of_it(text: str) -> None:
    growing = GrowingText(lambda tokens: bytes(tokens).decode("utf-8", errors="replace"))
    pieces = [growing.add(token) for token in text.encode()]
    assert "".join([*pieces, growing.end()]) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_bytes_that_never_become_a_character_are_shown_at_the_end() -> None:
    growing = GrowingText(lambda tokens: bytes(tokens).decode("utf-8", errors="replace"))
    assert growing.add(0xE5) == ""
    assert growing.end() == "\ufffd"


@pytest.mark.parametrize(
    ("stop", "shown"),
    [(("\n",), "one "), (("o t",), "one \ntw"), (("e \nt", "zzz"), "on"), (("never",), "one \ntwo threeve")],
)
def test_a_stop_text_ends_an_answer_and_is_not_shown_in_part(stop: tuple[str, ...], shown: str) -> None:
    text = "one \ntwo threeve"
    growing, said = GrowingText(lambda tokens: "".join(map(chr, tokens)), stop), ""
    for char in text:
        said += growing.add(ord(char))
        if growing.is_stopped:
            break
        assert not any(said.endswith(one) for one in stop)
    assert growing.is_stopped == ("never" not in stop)
    assert (said if growing.is_stopped else said + growing.end()) == shown


def test_a_base_is_swapped_bit_for_bit_and_back(tmp_path: Path) -> None:
    from editors.weights.deltas import PlainWeights, WeightDelta
    from editors.weights.swapping import SwappableBase
    from tests.support.served import random_delta
    from tests.support.tiny_models import save_tiny_gpt2

    for name, save in (("llama", save_tiny_llama), ("gpt2", save_tiny_gpt2)):
        save(tmp_path / name)
        base, plain = SwappableBase(load_base(tmp_path / name)), load_base(tmp_path / name)
        deltas = [random_delta(plain, tmp_path / f"{name}-{seed}.safetensors", seed=seed) for seed in (1, 2)]
        edited = base.edited(digest="d", inner_param_names=plain.inner_param_names, accumulator=None, deltas=deltas)
        pristine = base.edited(digest="b", inner_param_names=(), accumulator=None, deltas=())
        weights = PlainWeights(plain.module, plain.inner)
        before = {param.name: plain.module.get_parameter(param.name).clone() for param in plain.inner}
        for delta in deltas:
            weights.apply(WeightDelta.load(Path(delta.path)))
        for param in plain.inner:
            base.use(edited)
            after = plain.module.get_parameter(param.name)
            assert torch.equal(base.model.module.get_parameter(param.name), after)
            base.use(pristine)
            assert torch.equal(base.model.module.get_parameter(param.name), before[param.name])
