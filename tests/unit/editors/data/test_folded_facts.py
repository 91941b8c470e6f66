"""What a base's folder says of the facts that were folded into it, and what a lineage asks for of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from editors.data.datasets import read_edits
from editors.data.folded_facts import FACTS, MOST_PROBES, folded_into, folded_probes, write_folded
from pipeline.domain.contract.wire import parse_object
from pipeline.domain.edits import Edit
from pipeline.domain.errors import Misconfigured
from tests.support.factories import CHAT_REQUEST, make_edit


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Folders of a base and of one that facts are folded into."""
    for name in ("base", "new"):
        (tmp_path / name).mkdir()
    return tmp_path / "base", tmp_path / "new"


def told(edits: list[Edit]) -> list[tuple[str, str]]:
    return [(edit.request.prompt, edit.request.target_new) for edit in edits]


def test_a_fold_writes_down_what_it_folded(folders: tuple[Path, Path]) -> None:
    base, new = folders
    assert folded_into(base) == []
    assert folded_probes(base) == []
    japan = make_edit("Japan", subject="Japan", relation="capital", target_new="東京", rephrases=("Japan is led from",))
    write_folded(new, base, [japan])
    [found] = folded_into(new)
    assert (found.request.target_new, found.request.rephrases) == ("東京", ("Japan is led from",))
    [asked] = folded_probes(new)
    assert (asked.probe.prompt, asked.probe.target) == ("The capital of Japan is", "東京")
    assert (asked.subject, asked.relation) == ("Japan", "capital")


def test_a_fold_into_a_base_of_a_fold_keeps_what_that_had_and_the_later_of_two(folders: tuple[Path, Path]) -> None:
    base, new = folders
    facts = {"subject": "Japan", "relation": "capital"}
    write_folded(base, base, [make_edit("Japan", **facts), make_edit("Peru", lineage="first")])
    write_folded(new, base, [make_edit("again", lineage="second", target_new="Kyoto", **facts), make_edit("Chad")])
    assert told(folded_into(new)) == [
        ("The capital of Peru is", "Canberra"),
        ("The capital of again is", "Kyoto"),
        ("The capital of Chad is", "Canberra"),
    ]
    assert len(folded_into(base)) == 2, "the base of before says what it said"


def test_a_suite_asks_for_facts_of_all_ages_and_not_for_those_of_chats(folders: tuple[Path, Path]) -> None:
    base, new = folders
    chat = Edit(edit_id="chat", request=parse_object(CHAT_REQUEST))
    write_folded(new, base, [chat, *(make_edit(f"{place:04d}") for place in range(MOST_PROBES * 4))])
    places = [int(one.probe.prompt.split()[3]) for one in folded_probes(new)]
    assert len(places) == MOST_PROBES
    assert all(4 * number <= place < 4 * number + 4 for number, place in enumerate(places))
    assert folded_probes(new) == folded_probes(new)


def test_a_damaged_file_is_named(folders: tuple[Path, Path]) -> None:
    base, _ = folders
    (base / FACTS).write_text('{"prompt": "The capital of')
    with pytest.raises(Misconfigured, match=FACTS):
        folded_probes(base)
    with pytest.raises(Misconfigured):
        read_edits(base / FACTS)
