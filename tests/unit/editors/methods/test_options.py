"""Options that several programs take: each reads the same words in the same way."""

from __future__ import annotations

import json
import re
from argparse import ArgumentTypeError
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from editors.evaluation.arguments import parser as evaluation_parser
from editors.evaluation.arguments import settings_given
from editors.methods.options import natural, positive
from editors.methods.select import resolved
from editors.training.arguments import OBJECTIVES, USED, parsed, use_settings
from editors.training.arguments import RANGES as OBJECTIVE_RANGES
from editors.training.arguments import parser as training_parser
from editors.training.setup import set_up
from pipeline.domain.errors import Misconfigured
from pipeline.domain.formats.ranges import SEED, require_within
from pipeline.domain.rank_api import RANGES, EditorSettings

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
def test_a_number_that_is_too_small_is_refused(read: Callable[[str], int], least: int) -> None:
    assert read(str(least)) == least
    with pytest.raises(ArgumentTypeError, match=f"a whole number from {least} to .*, got '{least - 1}'"):
        read(str(least - 1))


WRONG = {
    **dict.fromkeys(("--prior-strength", "--stop-probability"), ("nan", "-1", "0", "inf")),
    **dict.fromkeys(("--ridge", "--damping", "--change-bound"), ("nan", "-1", "inf")),
    "--step": ("nan", "inf", "1e30", "-1"),
    "--num-passes": ("0", "-1"),
    **dict.fromkeys(("--trained-passes", "--rephrase-rows", "--frames-per-pass", "--num-guards"), ("-1", "1.5")),
}
"""Flag that evaluation and training, or evaluation alone, take -> values that nothing can be edited with."""
WRONG_IN_TRAINING = {
    **dict.fromkeys(("--c-edit", "--c-loc", "--c-text", "--c-norm", "--c-earlier"), ("-1", "nan", "inf")),
    **dict.fromkeys(("--lr", "--rate-lr", "--share-edited"), ("-1", "nan", "inf", "1e300")),
    **dict.fromkeys(("--max-norm", "--minutes"), ("-1", "0", "nan", "inf")),
    **dict.fromkeys(("--boost", "--first-step"), ("-1", "0", "nan")),
    **dict.fromkeys(("--edits-per-step", "--stream-steps", "--num-calibration"), ("0", "-1")),
    **dict.fromkeys(("--num-views", "--num-earlier", "--num-text", "--cache-bytes", "--disk-bytes"), ("-1", "x")),
    "--max-text-kl": ("-1", "nan"),
    **dict.fromkeys(("--seed", "--limit", "--steps"), ("99999999999999999999999",)),
    **dict.fromkeys(("--threads", "--rank"), ("0", "100000")),
}
"""Flag that training takes alone -> values that nothing can be trained with."""


@pytest.mark.parametrize("flag", [*WRONG, *WRONG_IN_TRAINING])
def test_a_number_out_of_its_range_is_refused_by_its_flag_and_what_was_expected(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, parser in ((EVALUATE, evaluation_parser()), (TRAIN, training_parser())):
        if (words is EVALUATE and flag in WRONG_IN_TRAINING) or (words is TRAIN and flag == "--change-bound"):
            continue
        for value in {**WRONG, **WRONG_IN_TRAINING}[flag]:
            with pytest.raises(SystemExit):
                parser.parse_args([*words, flag, value])
            said = " ".join(capsys.readouterr().err.split())
            assert re.search(rf"argument {flag}\S*: expected a [a-z ]*number .*, got '{value}'$", said), said


def test_every_number_of_an_editor_and_of_an_objective_has_a_range() -> None:
    constants = [field for kind in (EditorSettings, *OBJECTIVES.values()) for field in fields(kind)]
    numbers = {field.name for field in constants if type(field.default) in (int, float)}
    assert numbers == {*RANGES, *OBJECTIVE_RANGES, "seed"}
    within = {**RANGES, **OBJECTIVE_RANGES, "seed": SEED}
    for kind in (EditorSettings, *OBJECTIVES.values()):
        usual = kind()
        require_within(
            usual, {name: within[name] for name in asdict(usual).keys() & within.keys()}, "one that is usual"
        )


PUBLISHED = ["--task", "causal", "--solver", "mend"]
ONE_ROW = ["--task", "causal", "--frames-per-pass", "0"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([*PUBLISHED, "--subject-param", "b"], "constants of the solver mend, got --subject-param"),
        ([*PUBLISHED, "--num-guards", "0"], "constants of the solver mend, got --num-guards"),
        ([*PUBLISHED, "--prior-strength", "5"], "constants of the solver mend, got --prior-strength"),
        ([*PUBLISHED, "--prior-text", "p.txt"], "constants of the solver mend, got --prior-text"),
        ([*PUBLISHED, "--prepared", "new.gz"], "--prepared for an editor with frames only, got one without"),
        ([*ONE_ROW, "--prepared", "new.gz"], "--prepared for an editor with frames only, got one without"),
        (
            ["--task", "causal", "--inner-param", "a", "--subject-param", "b"],
            "--subject-param among the weights to edit, a; got 'b'",
        ),
        (["--task", "foo", "--stream-steps", "2"], "task causal, seq2seq, classifier, got 'foo'"),
    ],
)
def test_an_option_that_would_be_of_no_effect_is_refused(words: list[str], complaint: str) -> None:
    with pytest.raises(Misconfigured, match=complaint):
        parsed([*TRAIN, *words])


def test_weights_with_rows_of_subjects_that_are_named_stay_and_have_to_be_edited() -> None:
    model: Any = SimpleNamespace(inner_param_names=("a", "b"))
    for inner in ((), ("a", "b")):
        found = resolved(EditorSettings(inner_params=inner, subject_params=("b",)), model)
        assert (found.inner_params, found.subject_params) == (("a", "b"), ("b",))
        with pytest.raises(Misconfigured, match="--subject-param among the weights to edit, a, b; got 'c'"):
            resolved(EditorSettings(inner_params=inner, subject_params=("b", "c")), model)


def test_a_new_relation_that_no_edit_has_is_refused_before_the_base_is_loaded(tmp_path: Path) -> None:
    line = {"prompt": "A is", "target_new": "b", "subject": "A", "rephrases": ["so A is"], "relation": "known"}
    (tmp_path / "edits.jsonl").write_text(json.dumps(line))
    data = ["--data", str(tmp_path / "edits.jsonl"), "--out", "run", "--model", "nowhere", "--task", "causal"]
    given = parsed([*data, "--new-relation", "known", "--new-relation", "other"])
    with pytest.raises(Misconfigured, match="--new-relation to name the relation of an edit, got 'other'"):
        set_up(given, {}, print)
