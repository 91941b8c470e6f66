"""The demo's last line tells the truth, and its exit status says whether the figures add up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.domain.contract.wire import parse_message
from pipeline.domain.errors import InvalidMessage, Misconfigured
from pipeline.entrypoints.demo import run as demo
from pipeline.entrypoints.demo.accounting import Accounts, Stopwatch
from pipeline.entrypoints.demo.stream import stream

BALANCED = Accounts(
    produced=82,
    accepted=65,
    duplicates=6,
    dead_letters=11,
    superseded=3,
    applied=60,
    rejected=1,
    snapshots=5,
    champion=5,
    edit_success=1.0,
    locality=0.94,
    generalization_other_context=0.5,
    num_generalization_other_context=20,
    chat=0.75,
    num_chat=24,
    reverted=1,
    audit_ok=True,
    seconds=80.0,
    seconds_by_phase={"starting": 10.0, "editing": 70.0},
)


def test_balanced_accounts_have_nothing_to_complain_about() -> None:
    assert BALANCED.imbalance() is None


@pytest.mark.parametrize(
    "name", ["produced", "accepted", "duplicates", "dead_letters", "superseded", "applied", "rejected", "reverted"]
)
def test_one_flipped_number_is_noticed(name: str) -> None:
    assert replace(BALANCED, **{name: getattr(BALANCED, name) + 1}).imbalance() is not None


def test_a_broken_audit_chain_is_noticed() -> None:
    assert replace(BALANCED, audit_ok=False).imbalance() is not None


@pytest.mark.parametrize(("accounts", "status"), [(BALANCED, 0), (replace(BALANCED, applied=59), 1)])
def test_the_exit_status_follows_from_the_figures(
    accounts: Accounts, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "_story", lambda _folder, _watch, _num: accounts)
    assert demo.run_demo(tmp_path / "demo", keep=False) == status
    last = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert last == accounts.as_json()


def test_a_folder_that_no_demo_made_is_never_emptied(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(Misconfigured, match="empty folder"):
        demo.run_demo(tmp_path, keep=False)
    assert (tmp_path / "precious").exists()


def test_the_stream_holds_what_the_demo_promises() -> None:
    messages = stream("demo")
    good, bad = [], []
    for message in messages:
        try:
            good.append(parse_message(message.value))
        except InvalidMessage as error:
            bad.append(str(error))
    ids = [request.request_id for request in good if request.lineage == "demo"]
    assert len(set(ids)) >= 24
    assert len(ids) - len(set(ids)) >= 5, "duplicates"
    assert len(bad) >= 5, "malformed messages"
    contested = [request for request in good if request.subject == "Meridian Observatory"]
    assert len({request.conflict_key for request in contested}) == 1
    assert len(contested) == 2
    assert len([request for request in good if request.is_chat]) >= 2, "corrections that came only as a chat"


def test_a_stopwatch_adds_up_the_laps_of_a_phase_in_the_order_they_were_reached() -> None:
    watch = Stopwatch()
    for phase in ("starting", "editing", "approving", "editing"):
        watch.lap(phase)
    assert list(watch.by_phase) == ["starting", "editing", "approving"]
    assert sum(watch.by_phase.values()) <= watch.seconds + 0.02, "each is rounded to hundredths"
