"""How the seconds from an approval to its first answer are told."""

from tests.benchmarks.approving import figures


def test_seconds_are_told_in_intervals_of_the_poll_too() -> None:
    assert figures([1.0, 3.0, 1.5], interval=2.0) == {
        "swaps": 3,
        "poll_interval_seconds": 2.0,
        "seconds_to_served_p50": 1.5,
        "seconds_to_served_max": 3.0,
        "polls_to_served_p50": 0.75,
        "polls_to_served_max": 1.5,
    }
