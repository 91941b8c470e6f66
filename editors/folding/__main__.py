"""Learn edits into a copy of a base and measure it by a lineage's gates: `python -m editors.folding FILE`.

FILE is JSON, as `Asked` has it. Prints what was measured, as JSON. The folder of the new base appears whole or not at
all; asked again for the same, the program answers with what it measured then.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from editors.data.atomic_files import partial_of, write_atomically
from editors.data.datasets import prior_lines
from editors.data.folded_facts import write_folded
from editors.measure.reference import Reference
from editors.measure.scorer import Scorer
from editors.methods.base import EditJob
from editors.methods.folding import FoldEditor, Folding
from editors.methods.guards import Guards
from editors.models.digest import base_digest, require_base
from editors.solve.ledger import Ledger
from editors.weights.deltas import PlainWeights
from editors.weights.loading import load_base
from pipeline.domain.edits import Edit
from pipeline.domain.errors import CorrigendaError, InvalidInput, one_line
from pipeline.domain.formats.canonical import canonical_json, sha256_json
from pipeline.domain.formats.progress import progress_line
from pipeline.domain.rank_api import LoadPlan, Step, tell, told_to

TOLD_STEPS = 20
"""Of so many steps one is told."""
ALL_REPHRASES = 1000
"""More rephrases than an edit may have: in a fold none of them is kept back but the first, which is the probe."""
FOLDED = "fold.json"
"""File in the folder of the new base: what was folded into it and what was measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What is to be folded into what."""

    plan: LoadPlan
    """The snapshot whose edits are folded, with the rows of these alone, from which the training begins; its base, its
    constants, its prior and its reference are used."""
    edits: tuple[Edit, ...]
    """The facts, oldest first."""
    out: str
    """Folder of the new base."""
    texts: tuple[str, ...]
    """Files with lines that have to stay, as the prior takes them."""
    device: str
    """Where to train."""
    settings: dict[str, Any]
    """Fields of `Folding` that are not as usual."""

    @property
    def digest(self) -> str:
        """SHA-256 of all that the new base follows from."""
        ledger = self.plan.ledger
        assert ledger is not None, "expected a plan to edit by"
        return sha256_json(
            {
                "base": self.plan.base.digest,
                "edits": [edit.request.payload_digest for edit in self.edits],
                "rows": [[rows.file.digest, *rows.edit_ids] for rows in ledger.rows],
                "files": [ledger.prior.digest, ledger.reference.digest],
                "editor": asdict(self.plan.editor),
                "prior_strength": ledger.prior_strength,
                "settings": self.settings,
                "lines": self.lines,
            }
        )

    @property
    def lines(self) -> list[str]:
        """The lines of all texts."""
        return [line for path in self.texts for line in prior_lines(Path(path))]


def fold(asked: Asked) -> dict[str, Any]:
    """Make the new base, or find it made; return its digest and what was measured of it.

    Raises:
        InvalidInput: if the folder holds something else.
        CorrigendaError: if the base, a file or an edit cannot be used.
    """
    out, made_of = Path(asked.out), asked.digest
    if (out / FOLDED).is_file():
        found: dict[str, Any] = json.loads((out / FOLDED).read_text(encoding="utf-8"))
        if found["made_of"] == made_of:
            return found
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InvalidInput(f"expected a new or empty folder for the new base, got {out}")
    partial = partial_of(out)
    shutil.rmtree(partial, ignore_errors=True)  # what a crash left of an earlier try
    partial.mkdir(parents=True)
    try:
        with told_to(_say):
            measured = _made(asked, partial)
        found = {"made_of": made_of, "digest": base_digest(partial), "measurements": measured}
        write_atomically(partial / FOLDED, canonical_json(found).encode())
        if out.exists():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # of a fold that was stopped or failed
    return found


def _made(asked: Asked, folder: Path) -> dict[str, Any]:
    """Learn the edits, measure them beside the base as the gates do, and write the model."""
    plan, ledger_plan = asked.plan, asked.plan.ledger
    assert ledger_plan is not None, "expected a plan to edit by"
    require_base(plan.base, base_digest(Path(plan.base.ref)))
    write_folded(folder, Path(plan.base.ref), asked.edits)  # before hours of training: it may be refused
    model = load_base(Path(plan.base.ref), plan.editor.inner_params, task=plan.base.task, device=asked.device)
    weights = PlainWeights(model.module, model.inner)
    strength = ledger_plan.prior_strength or plan.editor.prior_strength
    ledger = Ledger.from_files(ledger_plan.prior, ledger_plan.rows, strength=strength, ridge=plan.editor.ridge)
    reference = Reference.load(Path(ledger_plan.reference.path), ledger_plan.reference.digest)
    scorer = Scorer(model, weights, reference, rephrase_rows=plan.editor.rephrase_rows)
    tell("asking the base for the facts")
    scorer.observe_parent(asked.edits, ())
    use = replace(plan.editor, rephrase_rows=ALL_REPHRASES)
    guards = Guards(model, use, kept=reference.texts).of(asked.edits)
    job = EditJob(model=model, weights=weights, ledger=ledger, added=asked.edits, guards=guards)
    result = FoldEditor(Folding(**asked.settings), asked.lines, use).edit(job)
    weights.apply(result.delta)
    measured = scorer.measure(added=asked.edits, retained=(), gone_keys=(), delta=result.delta)
    module: Any = model.module
    module.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return asdict(measured) | {"num_rounds": result.num_passes}


def _say(step: Step) -> None:
    """Write how far it is: of steps that are many, the first and then now and then one."""
    if not step.of or step.done % TOLD_STEPS == 1:
        print(progress_line(step.sentence()), file=sys.stderr, flush=True)


def main(file: str) -> int:
    """Print what a file asks for; return 1 after one sentence on standard error if it cannot be had."""
    try:
        asked = TypeAdapter(Asked).validate_json(Path(file).read_text(encoding="utf-8"))
        found = fold(asked)
    except CorrigendaError as error:
        print(one_line(error), file=sys.stderr)
        return 1
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
