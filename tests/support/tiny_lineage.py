"""A lineage on a tiny model: everything that a group of ranks loads, made in a second."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from editors.measure.reference import build_reference
from editors.models.digest import base_digest
from editors.solve.prior import measure_prior
from editors.weights.loading import load_base
from pipeline.domain.edits import Edit, Probe
from pipeline.domain.formats.canonical import sha256_file
from pipeline.domain.rank_api import (
    BaseSpec,
    Candidate,
    EditorSettings,
    FileRef,
    KeptFiles,
    LedgerPlan,
    LedgerRows,
    LoadPlan,
    SuiteProbe,
)
from pipeline.domain.snapshots import chained_digest
from tests.support.factories import make_edit
from tests.support.tiny_families import ARCHITECTURES, tiny_module
from tests.support.tiny_models import save_tiny_llama, tiny_tokenizer

TEXT = "the president of France was born in Lyon . the capital of Spain is Madrid . the river of Rome is in Italy ."
PAIRS = (("Japan", "Kyoto"), ("France", "Lyon"), ("Italy", "Milan"), ("Germany", "Bonn"), ("Spain", "Paris"))


def make_tiny_lineage(folder: Path, name: str = "llama", *, chat_template: str = "") -> LoadPlan:
    """The plan of a lineage without a snapshot on an architecture, its files in `folder`; a Llama may hold chats."""
    base, task = folder / "base", ARCHITECTURES[name].task
    if name == "llama":
        save_tiny_llama(base, mlp=24)
        if chat_template:
            tokenizer = tiny_tokenizer()
            tokenizer.chat_template = chat_template
            tokenizer.save_pretrained(base)
    else:
        module, tokenizer = tiny_module(name)
        module.save_pretrained(base)
        tokenizer.save_pretrained(base)
    model = load_base(base, task=task)
    suite = [
        SuiteProbe(
            probe=Probe(prompt=f"the language spoken in {country} is", target=None if task == "causal" else target),
            subject=country,
            relation="language",
        )
        for country, target in zip([country for country, _ in PAIRS], _targets(task), strict=True)
    ]
    measure_prior(model, TEXT.split(" . ")).save(folder / "prior.safetensors")
    build_reference(model, suite, TEXT).save(folder / "baseline.json")
    digest = base_digest(base)
    return LoadPlan(
        base=BaseSpec(ref=str(base), digest=digest, task=task),
        lineage="tiny",
        editor=EditorSettings(
            inner_params=model.inner_param_names,
            prior_strength=1.0,
            ridge=1e-3,
            damping=0.02,
            step=0.5,
            stop_probability=0.6,
            num_passes=10,
            frames_per_pass=0,
            num_guards=0,
            rephrase_rows=0,
        ),
        snapshot_id=None,
        digest=digest,
        accumulator=None,
        deltas=(),
        ledger=LedgerPlan(
            rows=(), prior=file_ref(folder / "prior.safetensors"), reference=file_ref(folder / "baseline.json")
        ),
    )


def file_ref(path: Path) -> FileRef:
    """A file as it is now."""
    return FileRef(path=str(path), digest=sha256_file(path))


def edits(count: int = 2, *, start: int = 0, task: str = "causal") -> tuple[Edit, ...]:
    """Corrections of capitals."""
    named = list(zip([country for country, _ in PAIRS], _targets(task), strict=True))
    return tuple(
        make_edit(country, prompt=f"the capital of {country} is", target_new=city, subject=country, relation="capital")
        for country, city in named[start : start + count]
    )


def _targets(task: str) -> tuple[str, ...]:
    return ("true", "false", "unknown", "true", "false") if task == "classifier" else tuple(city for _, city in PAIRS)


def candidate(candidate_id: str, added: tuple[Edit, ...], *, removed_ids: tuple[str, ...] = ()) -> Candidate:
    """A candidate of the next snapshot, whatever that is made on."""
    return Candidate(
        candidate_id=candidate_id,
        snapshot_id="next",
        added=added,
        removed_ids=removed_ids,
        retained=(),
    )


def plan_after(plan: LoadPlan, kept: KeptFiles, snapshot_id: str, added: tuple[Edit, ...]) -> LoadPlan:
    """The plan of the snapshot that a kept candidate became."""
    deltas = (*plan.deltas, kept.delta)
    rows = LedgerRows(file=kept.rows, edit_ids=tuple(edit.edit_id for edit in added))
    digest = chained_digest(plan.digest, kept.delta.digest)
    assert plan.ledger is not None
    ledger = replace(plan.ledger, rows=(*plan.ledger.rows, rows))
    return replace(plan, snapshot_id=snapshot_id, digest=digest, deltas=deltas, ledger=ledger)
