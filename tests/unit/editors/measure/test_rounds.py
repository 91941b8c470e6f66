"""What is answered in one round is what each prompt gets by itself, for every family and any number of ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from editors.measure import rounds
from editors.measure.reference import build_reference
from editors.measure.rounds import Ask, Round, Talk, answered
from editors.measure.scorer import Scorer
from editors.measure.undoing import negative_delta
from editors.models.families import EditableModel
from editors.models.hooks import Branch
from editors.weights.deltas import PlainWeights, WeightDelta
from pipeline.domain.edits import Edit, Probe
from pipeline.domain.measurements import Measurements
from pipeline.domain.rank_api import SuiteProbe
from tests.support.factories import make_edit
from tests.support.tiny_families import tiny_model
from tests.support.tiny_models import TEXT

FAMILIES = ["llama", "gpt2", "gpt_neo", "t5", "bart", "bert"]
PROMPTS = ("who is king", "the capital city of the country of Japan is located in", "Rome", "a river in Spain")


def asks_of(
    model: EditableModel, texts: Sequence[str], *, most: int, stop: int | None = None, is_before: bool = False
) -> Talk[list[list[int]]]:
    def is_done(tokens: Sequence[int]) -> bool:
        return len(tokens) == stop

    answers = yield [
        Ask(
            prompt_ids=model.encode_prompt(text),
            most=most,
            is_done=None if stop is None else is_done,
            is_before=is_before,
        )
        for text in texts
    ]
    return [list(answer) for answer in answers]


def by_itself(model: EditableModel, text: str, most: int) -> list[int]:
    [answer] = model.greedy([model.encode_prompt(text)], max_new_tokens=most)
    return answer


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("at_once", [2, 80])
def test_every_talk_gets_what_each_of_its_prompts_says_alone(
    name: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "AT_ONCE", at_once)
    model = tiny_model(name)
    together = Round(model)
    long, none = together.take(asks_of(model, PROMPTS[:3], most=9)), together.take(asks_of(model, [], most=3))
    short, cut = (
        together.take(asks_of(model, PROMPTS[1:], most=4)),
        together.take(asks_of(model, PROMPTS, most=9, stop=2)),
    )
    together.answer()
    assert none.value == []
    assert long.value == [by_itself(model, text, 9) for text in PROMPTS[:3]]
    assert short.value == [by_itself(model, text, 4) for text in PROMPTS[1:]]
    assert cut.value == [by_itself(model, text, 2) for text in PROMPTS]
    assert answered(model, asks_of(model, PROMPTS[:1], most=9)) == long.value[:1]


def test_a_round_makes_no_more_steps_than_its_longest_answer_has_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    model.stop_ids = frozenset()
    steps: list[int] = []
    model.module.register_forward_hook(lambda *_: steps.append(1))
    together = Round(model)
    for most in (3, 9, 5):
        together.take(asks_of(model, PROMPTS, most=most))
    together.answer()
    # Two forwards read prompts of these lengths; the last token of an answer is not run.
    assert len(steps) == 2 + 9 - 1


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_asked_as_before_is_answered_as_the_model_did_before_it_was_changed(name: str) -> None:
    model = tiny_model(name)
    said = [by_itself(model, text, 9) for text in PROMPTS]
    delta = drawn_delta(model, 0.4 if model.task == "causal" else 4.0, seed=2)
    PlainWeights(model.module, model.inner).apply(delta)
    now = [by_itself(model, text, 9) for text in PROMPTS]
    assert now != said
    together = Round(model, undone=negative_delta(model, delta))
    before = together.take(asks_of(model, PROMPTS, most=9, is_before=True))
    after = together.take(asks_of(model, PROMPTS, most=9))
    cut = together.take(asks_of(model, PROMPTS[:2], most=9, stop=2, is_before=True))
    together.answer()
    assert (before.value, after.value) == (said, now)
    assert cut.value == [answer[:2] for answer in said[:2]]


def edits_of(model: EditableModel) -> list[Edit]:
    said = [("true", "false"), ("unknown", "true")] if model.task == "classifier" else [("Lyon", "Rome"), ("Kyoto", "")]
    return [
        make_edit(
            f"edit-{place}",
            prompt=prompt,
            target_new=new,
            target_true=true or None,
            question="who was it in France",
            rephrases=("who was president in France", "the king of Japan and France is"),
            locality=(Probe(prompt="the river of Paris is"), Probe(prompt="the mountain is located in")),
            portability=(Probe(prompt="born in", target=new),),
        )
        for place, (prompt, (new, true)) in enumerate(zip(PROMPTS, said, strict=False))
    ]


def drawn_delta(model: EditableModel, size: float, *, seed: int) -> WeightDelta:
    draw = torch.Generator().manual_seed(seed)
    return WeightDelta.of(
        {
            param.name: (
                torch.randn(param.in_features, 2, generator=draw) * size,
                torch.randn(2, param.out_features, generator=draw),
            )
            for param in model.inner
        }
    )


def trial(model: EditableModel, size: float) -> Measurements:
    """Two batches on one lineage, the second judged against the first; what is said is read from the second."""
    target = "true" if model.task == "classifier" else "Madrid"
    suite = [
        SuiteProbe(probe=Probe(prompt=f"the {word} of Spain is", target=target), subject="Spain", relation=word)
        for word in ("capital", "king", "language")
    ]
    scorer = Scorer(model, weights := PlainWeights(model.module, model.inner), build_reference(model, suite, TEXT))
    first, second = edits_of(model)
    batches: list[tuple[int, Edit, list[Edit]]] = [(1, first, []), (2, second, [first])]
    found: list[Measurements] = []
    for seed, added, retained in batches:
        delta = drawn_delta(model, size, seed=seed)
        scorer.observe_parent([added], retained)
        weights.apply(delta)
        found.append(scorer.measure(added=[added], retained=retained, gone_keys=(), delta=delta))
        scorer.keep()
    return found[-1]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_trial_finds_in_rounds_what_it_finds_with_every_prompt_by_itself(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tried() -> Measurements:
        model = tiny_model(name)
        if model.task == "causal":
            model.tokenizer.chat_template = "{% for turn in messages %}{{ turn.content }} {% endfor %}is "
        return trial(model, 0.4 if model.task == "causal" else 4.0)

    calls: list[int] = []
    together = rounds._answered_at_once

    def counted(model: EditableModel, asks: Sequence[Ask], undone: Mapping[str, Branch]) -> list[list[int]]:
        calls.append(len(asks))
        return together(model, asks, undone)

    def alone(model: EditableModel, asks: Sequence[Ask], undone: Mapping[str, Branch]) -> list[list[int]]:
        return [together(model, [ask], undone)[0] for ask in asks]

    monkeypatch.setattr(rounds, "_answered_at_once", counted)
    found = tried()
    assert len(calls) == 2  # each batch asks its candidate and its parent at once
    monkeypatch.setattr(rounds, "_answered_at_once", alone)
    plain = tried()
    assert found.moved == plain.moved
    assert found.moved
    for one, expected in zip(found.edits, plain.edits, strict=True):
        assert words_of(one) == words_of(expected)
    assert found.candidate == plain.candidate
    assert found.parent == plain.parent


def words_of(score: Any) -> list[Any]:
    return [
        score.free_success,
        score.chat_success,
        score.generated,
        score.reply,
        score.generated_before,
        score.reply_before,
        score.wording,
        score.wording_before,
        score.wording_after,
        score.moved,
        score.locality,
        score.rephrases,
        score.portability,
    ]


def test_what_a_parent_is_known_to_retain_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    successes = Scorer._successes

    def counted(scorer: Scorer, edits: Sequence[Edit]) -> dict[str, bool]:
        asked.extend(edit.edit_id for edit in edits)
        return successes(scorer, edits)

    monkeypatch.setattr(Scorer, "_successes", counted)
    trial(tiny_model("llama"), 0.4)
    assert len(asked) == 1  # of the second candidate, since its parent was the candidate that made this edit
