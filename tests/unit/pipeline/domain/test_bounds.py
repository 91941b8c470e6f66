"""A gate policy as people read and set it."""

from __future__ import annotations

from dataclasses import fields

import pytest

from pipeline.domain.bounds import BOUNDS, changed
from pipeline.domain.errors import InvalidInput
from pipeline.domain.gates import GatePolicy
from pipeline.domain.judging import judge
from tests.support.factories import make_measurements, make_score


def test_every_field_of_a_policy_is_told_in_order() -> None:
    assert [bound.key for bound in BOUNDS] == [field.name for field in fields(GatePolicy)]


def test_defaults_can_be_given_again() -> None:
    default = GatePolicy()
    assert changed(default, {bound.key: bound.shown(default) for bound in BOUNDS}) == default


def test_what_is_off_judges_nothing() -> None:
    keys = [bound.key for bound in BOUNDS if bound.may_be_off]
    off = changed(GatePolicy(), dict.fromkeys(keys, "off"))
    assert {bound.shown(off) for bound in BOUNDS if bound.key in keys} == {"off"}
    missed = make_score("a", same_context=(False,), other_context=(False,), chat_success=False)
    assert judge(off, make_measurements(missed)).passed


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("nope", "1", "a key of a gate policy, one of edit_success_min, "),
        ("edit_success_min", "1.1", "a number from 0 to 1; got '1.1'"),
        ("edit_success_min", "off", "a number from 0 to 1; got 'off'"),
        ("generalization_min", "half", "a number from 0 to 1, or off; got 'half'"),
        ("locality_kl_max", "-1", "a number of 0 or more; got '-1'"),
        ("locality_kl_max", "nan", "a number of 0 or more; got 'nan'"),
        ("change_norm_max", "inf", "a number of 0 or more; got 'inf'"),
        ("judged_wordings_min", "2.5", "a whole number of 1 or more; got '2.5'"),
        ("perplexity_ceiling", "0.9", "a number of 1 or more; got '0.9'"),
    ],
)
def test_what_a_bound_cannot_be_is_refused_with_what_it_can_be(key: str, value: str, expected: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        changed(GatePolicy(), {key: value})
    assert expected in str(refused.value)
