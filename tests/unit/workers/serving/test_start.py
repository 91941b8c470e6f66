"""What `corrigenda serve` says at its start, and of what goes wrong while it serves."""

from __future__ import annotations

import argparse
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pipeline.domain.errors import Unavailable
from workers.serving.__main__ import told_at_start
from workers.serving.following import Follower
from workers.serving.lineages import ServedLineages

URL = "http://127.0.0.1:8100"


def options(**changes: Any) -> argparse.Namespace:
    """The options of the command, as they are if nothing is said."""
    return argparse.Namespace(**({"lineage": None, "alias": "champion", "poll": 2.0, "token_file": None} | changes))


def told(found: argparse.Namespace, *names: str) -> list[str]:
    """What is said where the database names these lineages."""
    return list(told_at_start(found, cast("Any", SimpleNamespace(lineages=lambda: names)), URL))


def test_the_start_says_which_models_there_are_for_whom_and_where_faults_are_told() -> None:
    models, who, health, _ = told(options(), "facts", "news")
    assert models == "models   each lineage with an approved snapshot: facts, news; looked at every 2 s"
    assert who == "for      this machine, without a token"
    assert f"{URL}/readyz" in health
    assert "none yet" in told(options())[0]


def test_lineages_and_tokens_that_were_named_are_told() -> None:
    models, who, *_ = told(options(lineage=["facts"], token_file=Path("tokens"), poll=0.5), "facts", "news")
    assert (models, who) == ("models   facts; looked at every 0.5 s", "for      whoever has a token of tokens")


def test_a_database_that_is_away_is_told_and_keeps_nothing_from_starting() -> None:
    def away() -> tuple[str, ...]:
        raise Unavailable("the database does not answer")

    models, *_ = told_at_start(options(), cast("Any", SimpleNamespace(lineages=away)), URL)
    assert "not known now: the database does not answer" in models


def test_what_is_wrong_is_written_down_once_for_as_long_as_it_stays_so(caplog: pytest.LogCaptureFixture) -> None:
    follower = SimpleNamespace(lineage="facts", fault=None, poll=lambda: None)
    served = ServedLineages(lambda: ["facts"], lambda name: cast("Follower", follower), interval=timedelta(hours=1))
    for fault in ("got none yet", "got none yet", None, "got none yet", "is refused"):
        follower.fault = fault
        served.look()
    assert [record.message for record in caplog.records] == [
        "facts: got none yet", "facts: got none yet", "facts: is refused"
    ]  # fmt: skip
