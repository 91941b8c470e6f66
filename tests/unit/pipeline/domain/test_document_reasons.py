"""What is wrong with a document is told in our words, whatever rule of pydantic's it breaks."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, SecretStr, ValidationError

from pipeline.domain.contract.reasons import expected_of, reasons_of

TIME = "a time of RFC 3339 with an offset, such as 2026-06-01T12:00:00Z"


class Colour(StrEnum):
    """A choice."""

    red = "red"
    blue = "blue"


class Document(BaseModel):
    """A field of every kind that documents of ours have."""

    model_config = ConfigDict(extra="forbid")
    text: Annotated[str, Field(min_length=1, max_length=5, pattern="^[a-z]+$")] = "a"
    whole: Annotated[int, Field(ge=1, lt=10)] = 1
    share: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1.0
    flag: bool = True
    names: Annotated[list[str], Field(min_length=1, max_length=2)] = ["a"]
    nothing: Annotated[list[Any], Field(max_length=0)] | None = None
    only_null: None = None
    role: Literal["user", "system"] = "user"
    colour: Colour = Colour.red
    when: AwareDatetime = datetime.fromisoformat("2026-06-01T12:00:00Z")
    wait: timedelta = timedelta()
    name: UUID | None = None
    inner: dict[str, int] = {}


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"text": 3}, "text: expected a string, got a number"),
        ({"text": ""}, "text: expected at least 1 character, got 0"),
        ({"text": "abcdef"}, "text: expected at most 5 characters, got 6"),
        ({"text": "A"}, "text: expected text that matches ^[a-z]+$, got 'A'"),
        ({"whole": "many"}, "whole: expected a whole number, got 'many'"),
        ({"whole": 1.5}, "whole: expected a whole number, got 1.5"),
        ({"whole": None}, "whole: expected a whole number, got null"),
        ({"whole": 0}, "whole: expected at least 1, got 0"),
        ({"whole": 10}, "whole: expected less than 10, got 10"),
        ({"whole": "9" * 5000}, f"whole: expected a whole number, got '{'9' * 40}'…"),
        ({"share": "half"}, "share: expected a number, got 'half'"),
        ({"share": []}, "share: expected a number, got a list"),
        ({"share": 0}, "share: expected more than 0, got 0"),
        ({"share": 1.5}, "share: expected at most 1, got 1.5"),
        ({"share": float("nan")}, "share: expected a finite number, got nan"),
        ({"flag": "perhaps"}, "flag: expected true or false, got 'perhaps'"),
        ({"flag": {}}, "flag: expected true or false, got an object"),
        ({"names": "a"}, "names: expected a list, got a string"),
        ({"names": []}, "names: expected a list of at least 1, got 0"),
        ({"names": ["a", "b", "c"]}, "names: expected a list of at most 2, got 3"),
        ({"names": ["a", 2]}, "names.1: expected a string, got a number"),
        ({"nothing": [1]}, "nothing: expected null or an empty list, got 1"),
        ({"only_null": "x"}, "only_null: expected null, or no such field, got 'x'"),
        ({"role": "tool"}, "role: expected 'user' or 'system', got 'tool'"),
        ({"role": {"is": "user"}}, "role: expected 'user' or 'system', got an object"),
        ({"colour": "green"}, "colour: expected 'red' or 'blue', got 'green'"),
        ({"when": "2026-06-01T12:00:00"}, f"when: expected {TIME}, got '2026-06-01T12:00:00'"),
        ({"when": "soon"}, f"when: expected {TIME}, got 'soon'"),
        ({"wait": "soon"}, "wait: expected a number of seconds, got 'soon'"),
        ({"name": "x"}, "name: expected a UUID, got 'x'"),
        ({"inner": "x"}, "inner: expected an object, got a string"),
        ({"other": 1}, "other: there is no such field"),
        ({"txt": "a"}, "txt: there is no such field (did you mean text?)"),
        ([], "expected an object, got a list"),
        (
            {"whole": 0, "share": 0, "flag": 2, "role": 3, "names": []},
            "whole: expected at least 1, got 0; share: expected more than 0, got 0;"
            " flag: expected true or false, got 2; and 2 more",
        ),
    ],
)  # fmt: skip
def test_a_wrong_value_is_told_with_what_was_expected(document: Any, said: str) -> None:
    with pytest.raises(ValidationError) as error:
        Document.model_validate(document)
    assert reasons_of(error.value, Document.model_fields) == said


def test_what_is_no_json_and_what_is_left_out_are_told_alike() -> None:
    class Needed(BaseModel):
        model: str

    with pytest.raises(ValidationError) as error:
        Needed.model_validate_json(b"{'model'}")
    assert reasons_of(error.value).startswith("expected JSON, got text that does not parse: key must be")
    with pytest.raises(ValidationError) as error:
        Needed.model_validate_json(b"{}")
    assert reasons_of(error.value) == "model: expected a value, got none"


def test_what_was_expected_shows_nothing_of_the_value() -> None:
    class Secret(BaseModel):
        password: SecretStr = Field(max_length=3)
        port: int

    with pytest.raises(ValidationError) as error:
        Secret.model_validate({"password": "hunter2", "port": "hunter2"})
    said = [expected_of(detail) for detail in error.value.errors()]
    assert said[1] == "expected a whole number"
    assert "hunter2" not in str(said)
