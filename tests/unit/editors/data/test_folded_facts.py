"""What a base's folder says of the facts that were folded into it, and what a lineage asks for of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from editors.data.folded_facts import FACTS, MOST_PROBES, folded_facts, folded_probes, write_folded
from pipeline.domain.contract.wire import parse_object
from pipeline.domain.edits import Edit, Probe
from pipeline.domain.errors import Misconfigured
from pipeline.domain.rank_api import SuiteProbe
from tests.support.factories import CHAT_REQUEST, make_edit

JAPAN = {"subject": "Japan", "relation": "capital"}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Folders of a base and of one that facts are folded into."""
    for name in ("base", "new"):
        (tmp_path / name).mkdir()
    return tmp_path / "base", tmp_path / "new"


def told(probes: list[SuiteProbe]) -> list[tuple[str, str | None]]:
    return [(one.probe.prompt, one.probe.target) for one in probes]


def test_a_fold_writes_down_what_it_folds(folders: tuple[Path, Path]) -> None:
    base, new = folders
    assert folded_probes(base) == ()
    write_folded(new, base, [make_edit("Japan", target_new="東京 🗼", **JAPAN), make_edit("Peru")])
    assert folded_probes(new) == (
        SuiteProbe(probe=Probe(prompt="The capital of Japan is", target="東京 🗼"), **JAPAN),
        SuiteProbe(probe=Probe(prompt="The capital of Peru is", target="Canberra"), subject=None, relation=None),
    )


def test_a_fold_into_a_base_of_a_fold_keeps_what_no_later_edit_is_about(folders: tuple[Path, Path]) -> None:
    base, new = folders
    chat = Edit(edit_id="chat", request=parse_object(CHAT_REQUEST | {"subject": "Chad", "relation": "capital"}))
    known = [make_edit("Japan", **JAPAN), make_edit("Peru"), make_edit("Chad", subject="Chad", relation="capital")]
    write_folded(base, base, [*known, make_edit("Mali", lineage="first")])
    write_folded(
        new, base, [make_edit("again", target_new="Kyoto", **JAPAN), make_edit("peru", target_new="Lima"), chat]
    )
    assert told(folded_facts(new)) == [
        ("The capital of Mali is", "Canberra"),
        ("The capital of again is", "Kyoto"),
        ("The capital of peru is", "Lima"),
    ]
    assert len(folded_facts(base)) == 4, "the base of before says what it said"


def test_a_suite_asks_for_facts_of_all_ages(folders: tuple[Path, Path]) -> None:
    base, new = folders
    write_folded(new, base, [make_edit(f"{place:04d}") for place in range(MOST_PROBES * 4)])
    places = [int(one.probe.prompt.split()[3]) for one in folded_probes(new)]
    assert len(places) == MOST_PROBES
    assert all(4 * number <= place < 4 * number + 4 for number, place in enumerate(places))


def test_a_damaged_file_is_named(folders: tuple[Path, Path]) -> None:
    base, new = folders
    (base / FACTS).write_text('{"prompt": "The capital of')
    with pytest.raises(Misconfigured, match=FACTS):
        write_folded(new, base, [make_edit()])
