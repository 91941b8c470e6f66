"""The facts that were folded into a base, as probes of a suite in a file beside its weights.

They are no edits of any lineage on that base: no ledger holds them, and no retention asks for them. So the suite of
such a lineage does, and what edits do to them is seen by its gates.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from editors.data.atomic_files import write_atomically
from editors.data.datasets import facts_of, read_suite
from pipeline.domain.batches import stratified_sample
from pipeline.domain.edits import Edit, Probe
from pipeline.domain.formats.canonical import canonical_json
from pipeline.domain.rank_api import SuiteProbe

FACTS = "facts.jsonl"
"""File in the folder of a base that facts were folded into: a suite of them, oldest first."""
MOST_PROBES = 128
"""Folded facts that a lineage's suite asks for, from all ages alike; each is asked of every candidate."""


def folded_facts(base: Path) -> list[SuiteProbe]:
    """Return the facts that were folded into a base; none where its folder names none.

    Raises:
        Misconfigured: if the file cannot be read.
    """
    return read_suite(base / FACTS) if (base / FACTS).is_file() else []


def write_folded(folder: Path, base: Path, edits: Sequence[Edit]) -> None:
    """Write down what the base in a folder has in it: what another base had, and what is folded into that.

    Facts that came only as a chat are left out: a probe is a stem.

    Args:
        folder: of the new base.
        base: folder of the base that the edits are folded into, of whose facts those are kept that no edit is about.
        edits: what is folded, oldest first.

    Raises:
        Misconfigured: if what the base had cannot be read.
    """
    told = [(edit.request.is_chat, _probe_of(edit)) for edit in edits]
    corrected = set[str]().union(*(facts_of(probe) for _, probe in told))
    kept = [probe for probe in folded_facts(base) if not facts_of(probe) & corrected]
    lines = [_line(probe) for probe in (*kept, *(probe for is_chat, probe in told if not is_chat))]
    write_atomically(folder / FACTS, "".join(lines).encode())


def folded_probes(base: Path) -> tuple[SuiteProbe, ...]:
    """Return the folded facts that the suite of a lineage on a base asks for beside its own probes."""
    return stratified_sample(folded_facts(base), seed=FACTS, size=MOST_PROBES)


def _probe_of(edit: Edit) -> SuiteProbe:
    request = edit.request
    probe = Probe(prompt=request.prompt, target=request.target_new)
    return SuiteProbe(probe=probe, subject=request.subject, relation=request.relation)


def _line(probe: SuiteProbe) -> str:
    said = {"prompt": probe.probe.prompt, "target": probe.probe.target}
    return canonical_json(said | {"subject": probe.subject, "relation": probe.relation}) + "\n"
