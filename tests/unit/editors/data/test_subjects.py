"""The list of subjects that ships, and what it must not hold: a guard of what probes ask would make them dishonest."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from editors.data.subjects import OTHER_SUBJECTS, SUBJECTS, subject_names
from pipeline.domain.language.spelling import normalised
from tests.support.paths import ROOT

FACTS = [ROOT / "infra" / "local" / "facts" / f"{name}.jsonl" for name in ("corrections", "suite", "unedited")]
OTHER_NAMES = {
    "Burma": "Myanmar",
    "Ceylon": "Sri Lanka",
    "Zaire": "Democratic Republic of the Congo",
    "Rhodesia": "Zimbabwe",
    "Dahomey": "Benin",
    "Siam": "Thailand",
    "British Honduras": "Belize",
    "Persia": "Iran",
    "Holland": "Netherlands",
    "Czechia": "Czech Republic",
    "Swaziland": "Eswatini",
    "Abyssinia": "Ethiopia",
    "Upper Volta": "Burkina Faso",
    "UK": "United Kingdom",
    "Great Britain": "United Kingdom",
    "USA": "United States",
    "US": "United States",
    "America": "United States",
    "USSR": "Soviet Union",
    "Ottoman Turkey": "Ottoman Empire",
    "Bombay": "Mumbai",
    "Madras": "Chennai",
    "Calcutta": "Kolkata",
    "Peking": "Beijing",
    "Constantinople": "Istanbul",
    "Byzantium": "Istanbul",
    "Saigon": "Ho Chi Minh City",
    "Leningrad": "Saint Petersburg",
    "Stalingrad": "Volgograd",
    "Danzig": "Gdańsk",
    "Königsberg": "Kaliningrad",
    "Edo": "Tokyo",
    "Christiania": "Oslo",
    "New Amsterdam": "New York City",
    "Wimbledon of 2008": "Wimbledon Championships of 2008",
    "Facebook, Inc.": "Facebook",
    "Fe": "Iron",
    "Pb": "Lead",
    "Hg": "Mercury",
    "King's Cross": "King's Cross station",
}
"""Names that are another name of something: whoever corrects it under one name must not be asked to leave the other."""
REAL_DEV = ROOT.parent / "shared" / "data" / "real_dev.jsonl"


def texts(value: Any) -> Iterator[str]:
    """Every string of a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from texts(part)


def named_in(path: Path) -> list[str]:
    """Names of the list that stand in a file, as whole words."""
    lines = path.read_text(encoding="utf-8").splitlines()
    everything = "\n".join(normalised(text) for line in lines for text in texts(json.loads(line)))
    return [name for name in subject_names() if re.search(rf"(?<!\w){re.escape(normalised(name))}(?!\w)", everything)]


def test_every_kind_has_several_names_and_no_name_is_there_twice() -> None:
    kinds = json.loads(SUBJECTS.read_text(encoding="utf-8"))
    assert len(kinds) > 50
    assert all(len(names) >= 5 for names in kinds.values()), {kind: len(names) for kind, names in kinds.items()}
    folded = [normalised(name) for name in subject_names()]
    assert len(folded) == len(set(folded))
    assert all(name == name.strip() and name for name in subject_names())


def test_nothing_is_listed_under_an_old_or_another_name_of_its() -> None:
    listed = {*subject_names(), *subject_names(OTHER_SUBJECTS)}
    assert listed & OTHER_NAMES.keys() == set()
    assert len(listed) == len(subject_names()) + len(subject_names(OTHER_SUBJECTS))


@pytest.mark.parametrize("path", FACTS, ids=lambda path: path.stem)
def test_no_name_of_the_list_stands_in_the_demos_facts(path: Path) -> None:
    assert named_in(path) == []


def test_no_name_of_the_list_stands_in_the_real_corrections_that_settings_are_chosen_on() -> None:
    if not REAL_DEV.exists():
        pytest.skip(f"{REAL_DEV} is not in this checkout: it is data for development, not part of the project")
    assert named_in(REAL_DEV) == []
