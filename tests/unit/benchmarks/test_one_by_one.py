"""How the seconds that one person waits for are told."""

from tests.benchmarks.one_by_one import described


def test_the_first_is_told_apart_and_the_others_by_median_and_percentile() -> None:
    told = described([25.0, *map(float, range(1, 22))])
    assert told == "first 25.0 s; then median 11.0 s, 95 % 20.0 s, longest 21.0 s of 21"
    assert described([3.0]) == "3.0 s"
