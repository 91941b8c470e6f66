"""Which editor serves which solver, by the words of today and by the older ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from editors.evaluation.arguments import parser, settings_given
from editors.evaluation.methods import Method, _serves, methods_of
from editors.methods.mend_sum import MendSumEditor
from editors.models.families import EditableModel
from editors.weights.loading import load_base
from pipeline.domain.errors import Misconfigured
from pipeline.domain.rank_api import EditorSettings
from tests.support.tiny_editors import tiny_editor
from tests.support.tiny_models import save_tiny_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base")
    save_tiny_llama(path)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> EditableModel:
    return load_base(folder)


@pytest.mark.parametrize("flag", ["--stop-probability", "--rest"])
def test_the_probability_to_stop_at_has_two_flags(flag: str) -> None:
    assert settings_given(parser().parse_args(["--data", "x", "--model", "y", "--edits", "1", flag, "0.7"])) == {
        "stop_probability": 0.7
    }


@pytest.mark.parametrize(
    ("trained_for", "serves"),
    [
        ("mend", {"mend", "sum"}),
        ("sum", {"mend", "sum"}),
        ("recursive", {"recursive", "least_squares", "row_sum", "sum"}),
    ],
)
def test_an_editor_serves_the_solvers_it_can_and_the_older_word_means_what_the_editor_is_for(
    trained_for: str, serves: set[str], folder: Path
) -> None:
    trained = tiny_editor(folder, solver=trained_for)
    solvers = {"recursive", "least_squares", "row_sum", "mend", "sum", "ft"}
    assert {solver for solver in solvers if _serves(trained, solver)} == serves


def test_mend_as_published_needs_an_editor(folder: Path, model: EditableModel) -> None:
    given = parser().parse_args(["--data", "x", "--model", "y", "--edits", "1"])
    trained = tiny_editor(folder, solver="mend")
    settings = EditorSettings(solver="mend", inner_params=model.inner_param_names)
    assert isinstance(Method(settings=settings, trained=trained, given=given).on(model)[1], MendSumEditor)


@pytest.mark.parametrize(
    ("solvers", "task", "complaint"),
    [
        ("recursive,mend", "causal", "a trained editor for the solver mend, got none"),
        *(
            (f"recursive,{name}", task, f"a causal base for the method {name}, got {task}")
            for name in ("gated", "context", "bm25")
            for task in ("seq2seq", "classifier")
        ),
    ],
)
def test_a_method_that_cannot_run_is_refused_before_another_is_measured(
    solvers: str, task: str, complaint: str
) -> None:
    words = ["--data", "x", "--model", "y", "--edits", "1", "--solver", solvers, "--task", task]
    with pytest.raises(Misconfigured, match=complaint):
        methods_of(parser().parse_args(words))
