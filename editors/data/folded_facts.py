"""The facts that were folded into a base, in a file beside its weights.

They are no edits of any lineage on that base: no ledger holds them, and no retention asks for them. So the suite of
such a lineage does, and what edits do to them is seen by its gates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from editors.data.atomic_files import write_atomically
from editors.data.datasets import LINEAGE, edit_lines, latest_of_each_fact, read_edits
from pipeline.domain.batches import stratified_sample
from pipeline.domain.edits import Edit, Probe
from pipeline.domain.rank_api import SuiteProbe

FACTS = "facts.jsonl"
"""File of edits in the folder of a base that they were folded into, oldest first."""
MOST_PROBES = 128
"""Folded facts that a suite asks for, from all ages alike; each is asked of every candidate."""


def folded_into(base: Path) -> list[Edit]:
    """Return the facts that were folded into a base; none where its folder names none.

    Raises:
        Misconfigured: if the file cannot be read.
    """
    return read_edits(base / FACTS) if (base / FACTS).is_file() else []


def write_folded(folder: Path, base: Path, edits: Sequence[Edit]) -> None:
    """Write down what the base in a folder has in it: what another base had, and what was folded into that.

    Args:
        folder: of the new base.
        base: folder of the base that the edits were folded into, of which a later edit of a fact is kept.
        edits: what was folded, oldest first.
    """
    every = [replace(edit, request=replace(edit.request, lineage=LINEAGE)) for edit in (*folded_into(base), *edits)]
    write_atomically(folder / FACTS, edit_lines(latest_of_each_fact(every)))


def folded_probes(base: Path) -> list[SuiteProbe]:
    """Return what a suite asks for beside its own probes: folded facts, but those that came only as a chat."""
    requests = [edit.request for edit in folded_into(base) if not edit.request.is_chat]
    return [
        SuiteProbe(
            probe=Probe(prompt=request.prompt, target=request.target_new),
            subject=request.subject,
            relation=request.relation,
        )
        for request in stratified_sample(requests, seed=FACTS, size=MOST_PROBES)
    ]
