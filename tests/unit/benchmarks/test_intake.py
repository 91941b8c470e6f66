"""What the benchmark of intake sends is what BENCHMARKS.md says of it."""

from __future__ import annotations

import pytest

from pipeline.domain.contract.wire import parse_message
from pipeline.domain.errors import InvalidMessage
from tests.benchmarks.intake import NUM_BYTES, poison, stream, valid
from tests.support.intake_parts import LINEAGE


def test_corrections_and_poison_have_the_same_size_and_no_two_are_of_one_fact() -> None:
    assert {len(message) for message in stream(200, 20)} == {NUM_BYTES}
    requests = [parse_message(valid(number)) for number in range(200)]
    assert len({request.conflict_key for request in requests}) == 200


def test_poison_is_refused_by_its_bytes_or_by_its_lineage() -> None:
    lineages = set()
    for number in range(4):
        try:
            lineages.add(parse_message(poison(number)).lineage)
        except InvalidMessage:
            continue
    assert lineages == {"nobody"}
    assert LINEAGE != "nobody"


@pytest.mark.parametrize(("num_valid", "num_poison"), [(200, 20), (7, 3), (5, 0), (0, 4)])
def test_the_stream_holds_as_many_of_each_as_it_is_asked_for(num_valid: int, num_poison: int) -> None:
    messages = list(stream(num_valid, num_poison))
    assert len(messages) == num_valid + num_poison
    assert len(set(messages) & {valid(number) for number in range(len(messages))}) == num_valid
