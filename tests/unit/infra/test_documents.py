"""What the documents name is there: links and their headings, files, commands with their options, settings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from editors.evaluation.arguments import parser as evaluation_parser
from editors.training.arguments import parser as training_parser
from pipeline.config import Settings
from pipeline.entrypoints.cli.app import app

ROOT = Path(__file__).parents[3]
NAMES = (
    "README",
    "APPROVING",
    "AUDITING",
    "CONTRIBUTING",
    "CORRECTIONS",
    "OPERATING",
    "SERVING",
    "TRAINING",
    "BENCHMARKS",
    "DECISIONS",
)
DOCUMENTS = {f"{name}.md": (ROOT / f"{name}.md").read_text(encoding="utf-8") for name in NAMES}

LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)")
FILE = re.compile(r"`((?:pipeline|editors|workers|tests|infra|migrations)/[\w./-]+)`")
SETTING = re.compile(r"\b(CORRIGENDA_[A-Z_]+[A-Z])\b")
IN_A_BLOCK = re.compile(r"^(?:\$ )?(corrigenda .*?)$", re.MULTILINE)
IN_A_LINE = re.compile(r"`(corrigenda [^`]+)`")
PARSERS = {"evaluate": evaluation_parser, "train": training_parser}
PROGRAMS = {
    "serve": ["workers/serving/__main__.py"],
    "lineage plan": ["workers/memory/plan.py", "editors/methods/options.py"],
}
"""Commands whose options are declared by a program of their own: its parser, or the files that make it."""


def heading_links(text: str) -> set[str]:
    """Return what links of a forge call the headings of a document."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(text: str) -> Iterator[str]:
    for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL):
        joined = block.replace("\\\n", " ")
        yield from (found.partition("   ")[0].partition(" #")[0] for found in IN_A_BLOCK.findall(joined))
    yield from IN_A_LINE.findall(re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def declared(words: list[str]) -> tuple[str, set[str]] | None:
    """Return the command that the words name, with its options; nothing if there is no such command."""
    found: Any = typer.main.get_command(app)
    name: list[str] = []
    while hasattr(found, "list_commands"):
        context = typer.Context(found)
        if not words or words[0] not in found.list_commands(context):
            return ("", {"--help", *(o for p in found.params for o in p.opts)}) if not name or not words else None
        name.append(words.pop(0))
        found = found.get_command(context, name[-1])
    options = {option for parameter in found.params for option in (*parameter.opts, *parameter.secondary_opts)}
    return " ".join(name), options | options_of_program(" ".join(name)) | {"--help"}


def options_of_program(command: str) -> set[str]:
    if command in PARSERS:
        return set(re.findall(r"--[\w-]+", PARSERS[command]().format_help()))
    if command in PROGRAMS:
        files = "".join((ROOT / file).read_text(encoding="utf-8") for file in PROGRAMS[command])
        return set(re.findall(r'"(--?[\w-]+)"', files))
    return set()


def complaint(line: str) -> str:
    words = re.sub(r"\"[^\"]*\"|'[^']*'", "X", line).split()[1:]
    found = declared(words)
    if found is None or (not found[0] and words and not words[0].startswith("-")):
        return f"no such command: {line}"
    wrong = [
        word for word in words if re.match(r"--?[a-z]", word) and word.partition("=")[0].rstrip(",;:.") not in found[1]
    ]
    return f"no option {', '.join(wrong)}: {line}" if wrong else ""


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_leads_to_a_file_and_a_heading_of_it(name: str) -> None:
    lost = []
    for file, heading in LINK.findall(DOCUMENTS[name]):
        target = ROOT / (file or name)
        if not target.exists() or (heading and heading not in heading_links(target.read_text(encoding="utf-8"))):
            lost.append(f"{file}#{heading}")
    assert lost == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_file_that_is_named_is_there(name: str) -> None:
    assert [file for file in FILE.findall(DOCUMENTS[name]) if not (ROOT / file).exists()] == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_command_and_its_options_are_there(name: str) -> None:
    assert [said for line in commands(DOCUMENTS[name]) if (said := complaint(line))] == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_setting_that_is_named_is_one(name: str) -> None:
    settings = {f"CORRIGENDA_{field.upper()}" for field in Settings.model_fields}
    assert sorted(set(SETTING.findall(DOCUMENTS[name])) - settings) == []


def test_a_command_or_an_option_that_is_not_there_is_found() -> None:
    assert complaint("corrigenda submit --wait -l facts") == ""
    assert complaint("corrigenda submit --weight") == "no option --weight: corrigenda submit --weight"
    assert complaint("corrigenda lineage fly") == "no such command: corrigenda lineage fly"
    assert complaint("corrigenda fly") == "no such command: corrigenda fly"
