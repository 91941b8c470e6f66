"""`corrigenda lineage fold` on a real database and a tiny base: the facts become part of a base of their own."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from sqlalchemy import text
from typer.testing import CliRunner, Result

from editors.data.folded_facts import folded_facts
from editors.measure.reference import Reference
from editors.methods.folding import Folding
from editors.models.digest import base_digest
from editors.solve.rows import EditRows, consecutive
from editors.weights.loading import load_base
from pipeline.adapters.logins import Login
from pipeline.adapters.sql.database.engine import transaction
from pipeline.domain.edits import Edit
from pipeline.domain.formats.refusals import INTERRUPTED
from pipeline.domain.review.approvals import Decision
from pipeline.domain.snapshots import Artifact
from pipeline.entrypoints.cli import folding
from pipeline.entrypoints.cli.app import app
from pipeline.entrypoints.console import ExitCode
from tests.support.factories import make_request
from tests.support.ledger_parts import prior_lines
from tests.support.programs_here import in_this_process
from tests.support.scored import score_pairs
from tests.support.store_rig import LINEAGE, StoreRig
from tests.support.tiny_models import TEXT, save_tiny_llama

Command = Callable[..., Result]
FACTS = (("Japan", "Milan"), ("Italy", "Kyoto"))
LENIENT = (
    *("locality_drop_max=1", "locality_kl_max=1000", "edit_locality_kl_max=1000", "perplexity_rise_max=1000"),
    *("change_norm_max=1000", "locality_floor=0", "perplexity_ceiling=1000", "free_success_min=0"),
)


@pytest.fixture
def corrigenda(postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pools_close: None) -> Command:
    for name in [name for name in os.environ if name.startswith("CORRIGENDA_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CORRIGENDA_DATABASE_URL", postgres_url)
    monkeypatch.setenv("CORRIGENDA_DATABASE_ROLE", "corrigenda_console")
    monkeypatch.setenv("CORRIGENDA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CORRIGENDA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CORRIGENDA_ARTIFACT_ROOT", str(tmp_path / "artifacts"))
    monkeypatch.setattr(folding, "run_module", in_this_process)
    # A tiny base has the rows of no edit to begin with, and learns in larger steps.
    monkeypatch.setattr("editors.folding.__main__.Folding", partial(Folding, learning_rate=0.02, stop_at=0.9))
    monkeypatch.setattr("pipeline.entrypoints.preparation.run_module", in_this_process)
    return lambda *words: CliRunner().invoke(app, list(words))


@pytest.fixture
def rig(postgres_url: str, tmp_path: Path) -> Iterator[StoreRig]:
    made = StoreRig(url=postgres_url, folder=tmp_path)
    yield made
    made.close()


def approved_facts(rig: StoreRig) -> str:
    """Bring the facts in and approve them; returns the champion's id."""
    rig.submit(
        *(
            make_request(
                subject, prompt=f"the capital of {subject} is", subject=subject, relation="capital", target_new=value
            )
            for subject, value in FACTS
        )
    )
    lease = rig.acquire()
    batch = rig.claim(lease)
    assert batch is not None
    rows = rig.folder / "rows.safetensors"
    rows_of_each(rig, batch.edits).save(rows)
    snapshot = rig.snapshots.commit(lease, replace(rig.new_snapshot(batch=batch), rows=rig.artifacts.put(rows)))
    rig.decide(snapshot, Decision.approved)
    return snapshot.snapshot_id


def rows_of_each(rig: StoreRig, edits: Sequence[Edit]) -> EditRows:
    """Ledger rows of some edits, one for each inner parameter, which ask for next to nothing."""
    model, draw = load_base(Path(rig.lineage().settings.base.ref)), torch.Generator().manual_seed(0)
    names = rig.lineage().settings.editor.inner_params
    inner = [param for param in model.inner if param.name in names]
    assert len(inner) == len(names) > 0
    return EditRows(
        keys={param.name: torch.randn(len(edits), param.in_features, generator=draw) for param in inner},
        targets={param.name: torch.full((len(edits), param.out_features), 1e-3) for param in inner},
        ranges={param.name: consecutive([(edit.edit_id, 1) for edit in edits]) for param in inner},
    )


def made_lineage(corrigenda: Command, folder: Path) -> list[str]:
    """Make a lineage on a tiny base; returns the options that it was made with."""
    save_tiny_llama(folder / "model", hidden=32, mlp=32)
    given = []
    contents = {"text": TEXT, "prior-text": "\n".join(prior_lines()), "suite": '{"prompt": "Berlin is a city in"}'}
    for option, content in contents.items():
        (folder / option).write_text(content)
        given += [f"--{option}", str(folder / option)]
    made = corrigenda("lineage", "create", LINEAGE, "--model", str(folder / "model"), *given)
    assert made.exit_code == 0, made.stderr
    return given


def told_digest(rig: StoreRig) -> str:
    """Digest of the provenance, as the new lineage's chain has it."""
    [line] = [event for event in rig.audit.events("folded") if event.action == "lineage:folded"]
    return str(json.loads(line.payload)["provenance_digest"])


def test_a_fold_is_held_to_the_gates_and_begins_a_lineage_that_says_where_its_base_comes_from(
    corrigenda: Command, rig: StoreRig, tmp_path: Path
) -> None:
    given = made_lineage(corrigenda, tmp_path)
    words = ("lineage", "fold", LINEAGE, "folded", *given, "--out", str(tmp_path / "base"))
    none = corrigenda(*words)
    assert none.exit_code == ExitCode.usage
    assert "live facts to fold" in none.stderr

    champion = approved_facts(rig)
    refused = corrigenda(*words)
    assert refused.exit_code == ExitCode.failed, refused.stderr
    assert "does not pass its gates" in refused.stderr
    assert "learning the facts, round 1, step 1 of at most 1\n" in refused.stderr
    assert "measuring what was edited\n" in refused.stderr
    assert [one["settings"]["name"] for one in json.loads(corrigenda("lineage", "list", "--json").stdout)] == [LINEAGE]
    trained = (tmp_path / "base" / "model.safetensors").stat().st_mtime_ns

    assert corrigenda("lineage", "policy", "set", LINEAGE, *LENIENT, "--reason", "a tiny base").exit_code == 0
    done = corrigenda(*words)
    assert done.exit_code == 0, done.stderr
    assert "lineage folded: base" in done.stdout
    assert (tmp_path / "base" / "model.safetensors").stat().st_mtime_ns == trained, "it was trained once"
    found = json.loads(corrigenda("lineage", "list", "--json").stdout)
    [new] = [one for one in found if one["settings"]["name"] == "folded"]
    assert (new["head_seq"], new["settings"]["base"]["digest"]) == (0, base_digest(tmp_path / "base"))

    origin = json.loads((tmp_path / "base" / folding.PROVENANCE).read_text())
    assert (origin["lineage"], origin["snapshot_id"]) == (LINEAGE, champion)
    assert origin["pristine_base_digest"] == base_digest(tmp_path / "model")
    assert [(one["subject"], one["approved_by"]) for one in origin["edits"]] == [
        (subject, "cli:reviewer (claimed)") for subject, _ in FACTS
    ]
    for chain in (LINEAGE, "folded"):
        [line] = [event for event in rig.audit.events(chain) if event.action == "lineage:folded"]
        told = json.loads(line.payload)
        assert (told["new_lineage"], told["num_edits"], told["snapshot_id"]) == ("folded", len(FACTS), champion)

    assert [fact.probe.target for fact in folded_facts(tmp_path / "base")] == [value for _, value in FACTS]
    reference = rig.artifacts.path(Artifact(**new["settings"]["reference"]))
    suite = [(one.probe.subject, one.probe.relation) for one in Reference.load(reference).suite]
    assert suite == [(None, None), ("Japan", "capital"), ("Italy", "capital")], "what was folded is watched"
    model = load_base(tmp_path / "base")
    scores = score_pairs(model, [(f"the capital of {subject} is", value) for subject, value in FACTS])
    assert all(score.is_hit for score in scores)
    taken = corrigenda(*words)
    assert "expected a free name" in taken.stderr

    for command in ("revert", "show"):
        base_fact = corrigenda(command, "Japan", "-l", "folded")
        assert base_fact.exit_code == ExitCode.usage
        assert "folded into the base" in " ".join(base_fact.stderr.split())
        told = " ".join(base_fact.stderr.split())
        assert f"lineage fold {LINEAGE} NEW --without Japan" in told
        assert "from snapshot 1, approved by cli:reviewer (claimed) at" in told
    with transaction(rig.engines[Login.auditor]) as connection:
        query = text("SELECT * FROM folded_facts WHERE lineage = 'folded' ORDER BY request_id")
        rows = connection.execute(query).mappings().all()
    assert [(row["request_id"], row["folded_from"], row["from_seq"]) for row in rows] == [
        ("Italy", LINEAGE, 1),
        ("Japan", LINEAGE, 1),
    ]
    assert {row["approved_by"] for row in rows} == {"cli:reviewer (claimed)"}
    assert {row["provenance_digest"] for row in rows} == {told_digest(rig)}
    assert "folded" not in corrigenda("show", "never sent", "-l", "folded").stderr.replace("'folded'", "")


def test_a_fold_once_more_leaves_a_fact_out(corrigenda: Command, rig: StoreRig, tmp_path: Path) -> None:
    given = made_lineage(corrigenda, tmp_path)
    approved_facts(rig)
    words = ("lineage", "fold", LINEAGE, "again", *given, "--out", str(tmp_path / "base"), "--rounds", "1")
    strange = corrigenda(*words, "--without", "Spain")
    assert strange.exit_code == ExitCode.usage
    assert "live facts of 'facts' to leave out" in " ".join(strange.stderr.split()).replace(LINEAGE, "facts")
    assert "which has none" in corrigenda(*words, "--without", "Japan", "--without", "Italy").stderr
    learnt = corrigenda(*words, "--without", "Japan")
    assert learnt.exit_code == ExitCode.failed, "one round is not enough for the gates"
    measured = json.loads((tmp_path / "base" / "fold.json").read_text())["measurements"]
    assert [score["edit_id"] for score in measured["edits"]] == [rig.edit_id("Italy")]


def test_ctrl_c_says_at_once_what_follows_and_leaves_nothing_half_made(
    corrigenda: Command, rig: StoreRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = made_lineage(corrigenda, tmp_path)
    approved_facts(rig)

    def interrupted(asked: object, folder: Path) -> None:
        (folder / "model.safetensors").touch()
        raise KeyboardInterrupt

    def told_as_well(*words: str, tell: Callable[[str], None]) -> str:
        with suppress(KeyboardInterrupt):
            in_this_process(*words, tell=tell)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("Ctrl-C ends the command")

    monkeypatch.setattr("editors.folding.__main__._made", interrupted)
    monkeypatch.setattr(folding, "run_module", told_as_well)
    stopped = corrigenda("lineage", "fold", LINEAGE, "folded", *given, "--out", str(tmp_path / "folds" / "base"))
    assert stopped.exit_code == INTERRUPTED
    assert stopped.stderr.splitlines()[-1] == "stopping: nothing was made; the same command begins again"
    assert list((tmp_path / "folds").iterdir()) == []
