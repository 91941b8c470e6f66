"""Options that several programs take: each reads the same words in the same way."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from editors.evaluation.arguments import parser as evaluation_parser
from editors.evaluation.arguments import settings_given
from editors.methods.options import natural, positive
from editors.training.arguments import USED, parsed, use_settings
from editors.training.arguments import parser as training_parser
from pipeline.domain.rank_api import EditorSettings

EVALUATE = ["--data", "edits.jsonl", "--edits", "2", "--model", "base"]
TRAIN = ["--data", "edits.jsonl", "--out", "run", "--model", "base"]
SHARED = ["--inner-param", "a", "--inner-param", "b", "--subject-param", "b", "--ridge", "0.5", "--prior-text", "p.txt"]


def test_evaluation_and_training_read_the_same_words_alike() -> None:
    evaluation = evaluation_parser().parse_args([*EVALUATE, *SHARED])
    training = training_parser().parse_args([*TRAIN, *SHARED])
    for given in (evaluation, training):
        assert (given.model, given.prior_text) == (Path("base"), [Path("p.txt")])
        assert (given.inner_params, given.subject_params, given.ridge) == (["a", "b"], ["b"], 0.5)


def test_what_is_left_out_is_the_editors_in_an_evaluation_and_the_default_in_a_training() -> None:
    assert settings_given(evaluation_parser().parse_args(EVALUATE)) == {}
    usual = {field.name: field.default for field in fields(EditorSettings)}
    with_frames = {"num_passes": 3, "trained_passes": 3}
    without = {"frames_per_pass": 0, "num_guards": 0}
    for words, differing in (
        (["--task", "causal"], with_frames),
        (["--task", "causal", "--num-passes", "2"], {"num_passes": 2, "trained_passes": 2}),
        (["--task", "causal", "--frames-per-pass", "0"], without),
        (["--task", "seq2seq"], without),
    ):
        assert use_settings(parsed([*TRAIN, *words])) == {name: usual[name] for name in USED} | differing
    assert evaluation_parser().parse_args(EVALUATE).task == "causal"
    assert training_parser().parse_args(TRAIN).task is None


@pytest.mark.parametrize(("read", "least"), [(natural, 0), (positive, 1)])
def test_a_number_that_is_too_small_is_refused(read: object, least: int) -> None:
    assert callable(read)
    assert read(str(least)) == least
    with pytest.raises(ValueError, match=str(least - 1)):
        read(str(least - 1))
