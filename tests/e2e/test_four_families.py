"""A lineage of every family on one stack: corrections from the topic through a trained transform to MLflow and back."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from editors.mend.checkpoint import TrainedEditor
from editors.methods.base import EditJob
from editors.methods.select import editor_for
from editors.solve.ledger import Ledger
from editors.solve.rows import EditRows, load_batches
from editors.weights.deltas import PlainWeights
from editors.weights.loading import load_base
from infra.local import LocalStack
from pipeline.bootstrap import Stores, publisher, review_service, stores
from pipeline.config import Settings
from pipeline.domain.edits import Edit
from pipeline.domain.gates import GatePolicy
from pipeline.domain.lifecycle import EditStatus
from pipeline.domain.rank_api import LoadPlan
from pipeline.entrypoints.local_settings import mlflow_login
from pipeline.entrypoints.preparation import Prepared, make_lineage, prepare_base
from pipeline.entrypoints.processes import start_control_worker, start_edit_worker, start_intake, start_stack
from tests.support.paths import ROOT
from tests.support.programs_here import in_this_process
from tests.support.taught import FACTS, PUPILS, questions, save_lines
from tests.support.taught_editors import UNSEEN, changes
from tests.support.waiting import eventually, patience

pytestmark = pytest.mark.slow

READER = ROOT / "infra" / "local" / "ask_model.py"
STAYING = tuple(fact for fact in FACTS if fact not in UNSEEN)
FAMILIES = ("llama", "t5", "bart", "bert")
BATCH_SIZE = 10
POLICY = GatePolicy(
    locality_drop_max=0.4,
    locality_kl_max=3.0,
    edit_locality_kl_max=3.0,
    generalization_min=0.0,
    chat_success_min=0.0,
    other_subjects_taken_max=None,  # the taught models know none of the names
    other_subjects_kl_max=None,
    retention_drop_max=0.4,
    perplexity_rise_max=10.0,
    accuracy_drop_max=0.4,
    change_norm_max=20.0,
    locality_floor=0.3,
    perplexity_ceiling=100.0,
    accuracy_floor=0.3,
)
"""That a model of a hundred thousand weights can meet: each of its facts lies next to every other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rig:
    """One stack with a lineage of each family, named for it."""

    kept: Stores
    """What is read back."""
    settings: Settings
    """Where things are."""
    editors: dict[str, Path]
    """Family -> folder of its trained editor."""
    folder: Path
    """A folder outside the checkout."""

    def until(self, is_so: Callable[[], bool], what: str) -> None:
        """Wait for something, bounded."""
        eventually(is_so, f"{what}; see {self.settings.home}/logs", seconds=300)

    def until_registered(self, seqs: dict[str, int]) -> None:
        """Wait until nothing waits, and the head is above a seq and has a model version."""
        for kind, seq in seqs.items():
            self.until(lambda kind=kind, seq=seq: self._is_registered(kind, seq), f"a new head of {kind}")

    def approve_in_registry(self) -> None:
        """Ask for every head with MLflow's own client, as a person would, and wait until it is the champion."""
        from mlflow import MlflowClient

        client = MlflowClient(self.settings.mlflow_uri)
        for kind in self.editors:
            version = self.kept.snapshots.snapshot(kind, "head").registry_version
            client.set_registered_model_alias(kind, "approved", version)
        for kind in self.editors:
            self.until(lambda kind=kind: self._is_live(kind), f"the champion of {kind}")

    def version_of(self, kind: str) -> Any:
        """The model version of the head."""
        from mlflow import MlflowClient

        version = self.kept.snapshots.snapshot(kind, "head").registry_version
        return MlflowClient(self.settings.mlflow_uri).get_model_version(kind, version)

    def package(self, kind: str) -> str | None:
        """What the database says of the files of the live model."""
        return self.kept.mirror.champion_mirror(kind).package_digest

    def ask_champions(self, prompts: dict[str, list[str]]) -> dict[str, list[str]]:
        """What the live model of each family says, loaded with MLflow alone outside the checkout."""
        lines = "\n".join(
            json.dumps({"champion": kind, "package_digest": self.package(kind), "stems": asked, "chats": []})
            for kind, asked in prompts.items()
        )
        command = [sys.executable, str(READER), self.settings.mlflow_uri]
        done = subprocess.run(
            command, input=lines, cwd=self.folder, capture_output=True, text=True, timeout=patience(300), check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        said = [json.loads(line)["stems"] for line in done.stdout.strip().splitlines()]
        return dict(zip(prompts, said, strict=True))

    def _is_registered(self, kind: str, seq: int) -> bool:
        found = self.kept.lineages.lineage(kind)
        counts = self.kept.lineages.counts(kind)
        waiting = counts.get(EditStatus.received, 0) + counts.get(EditStatus.claimed, 0)
        settled = sum(counts.values()) == len(UNSEEN) and not waiting and found.head_seq > seq
        return settled and self.kept.snapshots.snapshot(kind, "head").registry_version is not None

    def _is_live(self, kind: str) -> bool:
        found = self.kept.lineages.lineage(kind)
        return found.champion_id == found.head_id and not self.kept.mirror.champion_mirror(kind).is_owed


@pytest.fixture
def rig(
    tmp_path: Path,
    taught: Callable[[str], Path],
    taught_editor: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    pools_close: None,
) -> Iterator[Rig]:
    """The stack with four lineages, each on the editor that was trained for it."""
    monkeypatch.setenv("CORRIGENDA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("pipeline.entrypoints.preparation.run_module", in_this_process)
    editors = {kind: _copied(taught_editor(kind), tmp_path / f"editor-of-{kind}") for kind in FAMILIES}
    prepared = {kind: _prepared(kind, taught(kind), editors[kind], tmp_path / kind) for kind in FAMILIES}
    stack, settings = start_stack(tmp_path / "stack")
    for name, value in mlflow_login(settings).items():
        monkeypatch.setenv(name, value)
    try:
        kept = stores(settings)
        for kind, found in prepared.items():
            make_lineage(kept, kind, found, batch_size=BATCH_SIZE, policy=POLICY)
            start_edit_worker(stack, settings, found.base)
        start_intake(stack, settings)
        start_control_worker(stack, settings)
        yield Rig(kept=kept, settings=settings, editors=editors, folder=tmp_path)
    finally:
        LocalStack(settings.home).stop()


def test_every_family_takes_corrections_through_its_trained_transform_to_approval_and_revert(rig: Rig) -> None:
    with publisher(rig.settings) as send:
        for kind in FAMILIES:
            for edit in _corrections(kind):
                value = json.dumps(edit.request.as_json() | {"lineage": kind}).encode()
                send.publish(rig.settings.requests_topic, key=kind, value=value)
    rig.until_registered(dict.fromkeys(FAMILIES, 0))
    for kind in FAMILIES:
        _check_named(rig, kind)
        _check_asked_by_the_transform(rig, kind)

    rig.approve_in_registry()
    said = rig.ask_champions({kind: _prompts(kind) for kind in FAMILIES})
    for kind in FAMILIES:
        active = _active(rig, kind)
        assert len(active) >= 0.8 * len(UNSEEN), f"{kind}: {rig.kept.lineages.counts(kind)}"
        _check_answers(kind, said[kind], edited=active, reverted=set())

    gone = {kind: _person_that_holds(kind, said[kind], _active(rig, kind)) for kind in FAMILIES}
    seqs = {kind: rig.kept.lineages.lineage(kind).head_seq for kind in FAMILIES}
    for kind, request_ids in gone.items():
        review_service(rig.settings).revert(kind, sorted(request_ids), actor="cli:test", reason="withdrawn")
    rig.until_registered(seqs)
    rig.approve_in_registry()
    said = rig.ask_champions({kind: _prompts(kind) for kind in FAMILIES})
    for kind in FAMILIES:
        assert not gone[kind] & _active(rig, kind)
        _check_answers(kind, said[kind], edited=_active(rig, kind), reverted=gone[kind])


def _check_named(rig: Rig, kind: str) -> None:
    """The editor and its digest are in the lineage, the gate report and the registry."""
    name, digest = f"editor-of-{kind}", TrainedEditor.load(rig.editors[kind]).digest
    assert rig.kept.lineages.lineage(kind).settings.editor.transform == digest
    report = rig.kept.snapshots.report(rig.kept.snapshots.snapshot(kind, "head").gate_report_id)
    assert report["editor"] == {"solver": "recursive", "transform": name, "digest": digest}
    version = rig.version_of(kind)
    assert (version.tags["corrigenda.editor"], version.tags["corrigenda.editor_digest"]) == (name, digest)
    assert digest in version.description


def _check_asked_by_the_transform(rig: Rig, kind: str) -> None:
    """The first snapshot's ledger rows are those that the trained transform asks for, not those of the gradient."""
    first_id = rig.kept.snapshots.snapshot(kind, "1").snapshot_id
    ledger = rig.kept.snapshots.ledger_plan(kind, snapshot_id=first_id)
    plan = replace(rig.kept.snapshots.load_plan(kind, snapshot_id=first_id), ledger=ledger)
    [stored] = load_batches(Path(ledger.rows[0].file.path))
    edits = {edit.edit_id: edit for edit in _edits_at(rig, kind, first_id)}
    batch = [edits[edit_id] for edit_id, _, _ in stored.ranges[plan.editor.subject_params[0]]]
    trained, untrained = _rows(plan, batch, rig.editors[kind]), _rows(plan, batch, None)
    for name in plan.editor.subject_params:
        by_hand = _distance(stored.targets_of(name), trained.targets_of(name))
        assert by_hand < 0.05, (kind, name)
        assert _distance(stored.targets_of(name), untrained.targets_of(name)) > max(4 * by_hand, 0.01), (kind, name)


def _rows(plan: LoadPlan, batch: Sequence[Edit], editor: Path | None) -> EditRows:
    """What an editor leaves for a batch on the base."""
    model = load_base(Path(plan.base.ref), plan.editor.inner_params, task=plan.base.task)
    assert plan.ledger is not None
    ledger = Ledger.from_files(plan.ledger.prior, (), strength=plan.editor.prior_strength, ridge=plan.editor.ridge)
    if editor is None:
        asked = editor_for(replace(plan.editor, transform="gradient"))
    else:
        asked = editor_for(plan.editor, TrainedEditor.load(editor).transform)
    return asked.edit(
        EditJob(model=model, weights=PlainWeights(model.module, model.inner), ledger=ledger, added=batch)
    ).rows


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative, Frobenius."""
    return float((found - expected).norm() / expected.norm())


def _prepared(kind: str, base: Path, editor: Path, folder: Path) -> Prepared:
    """The task is found from the base's config."""
    lines = save_lines(folder, stays=STAYING, task=PUPILS[kind].task)
    found = prepare_base(
        base, suite=lines["suite"], text=lines["text"], prior_text=[lines["prior_text"]], editor=str(editor)
    )
    assert found.base.task == PUPILS[kind].task
    return found


def _copied(editor: Path, to: Path) -> Path:
    shutil.copytree(editor, to)
    return to


def _corrections(kind: str) -> list[Edit]:
    return changes(UNSEEN, task=PUPILS[kind].task)


def _active(rig: Rig, kind: str) -> set[str]:
    """Request ids of the edits in the head."""
    head = rig.kept.lineages.lineage(kind).head_id
    return {edit.request.request_id for edit in _edits_at(rig, kind, head)}


def _edits_at(rig: Rig, kind: str, snapshot_id: str | None) -> tuple[Edit, ...]:
    rows = rig.kept.snapshots.ledger_plan(kind, snapshot_id=snapshot_id).rows
    return rig.kept.queue.edits(kind, [edit_id for run in rows for edit_id in run.edit_ids])


def _prompts(kind: str) -> list[str]:
    """Every correction's prompt, then a question for every fact that stays."""
    task = PUPILS[kind].task
    asked = [edit.request.prompt for edit in _corrections(kind)]
    return asked + [questions(fact, fact.value, task=task)[0][0] for fact in STAYING]


def _check_answers(kind: str, said: Sequence[str], *, edited: set[str], reverted: set[str]) -> None:
    corrections, task = _corrections(kind), PUPILS[kind].task
    holds = dict(zip((edit.request.request_id for edit in corrections), _held(kind, said), strict=True))
    assert sum(holds[request_id] for request_id in edited) >= 0.9 * len(edited), (kind, holds)
    assert not any(holds[request_id] for request_id in reverted), f"{kind}: of {reverted} something still holds"
    wanted = [questions(fact, fact.value, task=task)[0][1] for fact in STAYING]
    stays = [_says(text, value) for text, value in zip(said[len(corrections) :], wanted, strict=True)]
    assert sum(stays) >= 0.75 * len(stays), f"{kind}: {sum(stays)} of {len(stays)} facts stay"


def _held(kind: str, said: Sequence[str]) -> list[bool]:
    """Of each correction, whether the answer to its prompt is what it asks for."""
    return [_says(text, edit.request.target_new) for edit, text in zip(_corrections(kind), said, strict=False)]


def _person_that_holds(kind: str, said: Sequence[str], active: set[str]) -> set[str]:
    """Every request about the first person of whom all of them hold."""
    corrections = _corrections(kind)
    held = _held(kind, said)
    for person in dict.fromkeys(fact.subject for fact in UNSEEN):
        about = {
            edit.request.request_id: holds
            for edit, holds in zip(corrections, held, strict=True)
            if edit.request.subject == person
        }
        if all(about.values()) and set(about) <= active:
            return set(about)
    raise AssertionError(f"expected a person of whom every correction holds, got {kind}: {held}")


def _says(text: str, value: str) -> bool:
    return text.split()[:1] == [value]
