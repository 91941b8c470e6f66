"""Names that a lineage may have: MLflow itself says which of them it takes."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mlflow.store.artifact.utils.models import _parse_model_uri
from mlflow.utils.search_utils import SearchModelVersionUtils
from mlflow.utils.validation import _validate_experiment_name, _validate_logged_model_name, _validate_model_name

from pipeline.adapters.mlflow.tags import logged_name, quoted
from pipeline.domain.contract.wire import parse_object
from pipeline.domain.errors import InvalidInput
from pipeline.domain.lineages import check_name
from tests.support.factories import WIRE_REQUEST


@pytest.mark.parametrize(
    "name",
    [
        'it\'s "it"'.replace(" ", "-"),
        "'\"",
        "a/b",
        "a:b",
        "a?b",
        "a\\b",
        "\\",
        "a b",
        "a\tb",
        "a\u00a0b",
        "a\u3000b",
        "a\nb",
        "a\x00b",
        "a\x7fb",
        "a\x85b",
        "a\u200bb",
        "a\u202eb",
        "a\u2028b",
        "\ufeffa",
        "a\ud800",
        "e\u0301",
        "",
        " ",
        ".",
        "..",
        "..a",
        "system",
        "a" * 101,
    ],
)
def test_a_name_that_could_not_be_registered_or_told_from_another_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="name"):
        check_name(name)


@pytest.mark.parametrize(
    "name", ["facts", "smollm2-1.7b", "O'Brien", 'the-"best"', "Zo\u00eb", "\u6771\u4eac", "a" * 100]
)
def test_usual_names_are_taken(name: str) -> None:
    check_name(name)


@given(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
    | st.text(st.sampled_from("a'\"./%?@#`\\;~"), min_size=1)
)
@example("a.b")
@example("a'b")
@example('a"b')
def test_what_is_taken_mlflow_keeps_finds_and_reads_again(name: str) -> None:
    try:
        check_name(name)
    except InvalidInput:
        return
    for validate in (_validate_model_name, _validate_experiment_name):
        validate(name)
    _validate_logged_model_name(logged_name(f"{name}-0001"))
    wanted = SearchModelVersionUtils.parse_search_filter(f"name = {quoted(name)} and tags.`a` = 'b'")
    assert [part["value"] for part in wanted] == [name, "b"]
    assert _parse_model_uri(f"models:/{name}@champion").name == name
    assert _parse_model_uri(f"models:/{name}/1").name == name
    assert unicodedata.normalize("NFC", name) == name
    assert parse_object(WIRE_REQUEST | {"lineage": name}).lineage == name
