"""Pruning on a real database: what the rows name is kept, what is owed is kept, and only old things go."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from pipeline.adapters.schema import downgrade
from pipeline.adapters.sql.database.tables import metadata
from pipeline.adapters.sql.pruning import NAMES_NO_ARTIFACT, SqlPruneStore
from pipeline.domain.audit import SYSTEM_CHAIN
from pipeline.domain.contract.messages import Message, ParsedMessage, Poll
from pipeline.domain.errors import CorrigendaError, Misconfigured
from pipeline.services.pruning import Pruned, Pruner
from tests.support.store_rig import StoreRig

MONTH = timedelta(days=30)


def prune(rig: StoreRig, *, is_dry_run: bool = False) -> Pruned:
    pruner = Pruner(store=SqlPruneStore(rig.engine), files=rig.artifacts)
    return pruner.prune(MONTH, actor="cli:tester", is_dry_run=is_dry_run)


def grow_old(rig: StoreRig) -> None:
    """As if everything had happened a year ago."""
    rig.query("UPDATE outbox SET done_at = done_at - interval '1 year'")
    rig.query("UPDATE dead_letters SET created_at = created_at - interval '1 year'")
    for path in (rig.folder / "artifacts" / "sha256").glob("*/*"):
        os.utime(path, (0, 0))


def refuse(rig: StoreRig, value: bytes | None) -> str:
    """Record a message that is none; returns the id of its dead letter."""
    claim = rig.intake.take_partition(rig.partition)
    message = Message(
        partition=rig.partition, offset=claim.next_offset, key=b"k", value=value, headers=(("trace", b"1"),)
    )
    one = ParsedMessage(message=message, request=None, refusal="expected JSON, got none")
    rig.intake.record([Poll(claim=claim, messages=(one,), next_offset=claim.next_offset + 1)])
    return rig.intake.dead_letters(limit=1)[0].dead_letter_id


def test_every_artifact_of_every_row_is_kept_and_a_candidate_that_was_never_committed_goes(rig: StoreRig) -> None:
    lease = rig.acquire()
    rig.correct("a", fact="France", target="Nice")
    made = [rig.commit_batch(lease, with_accumulator=True)]
    rig.correct("b", fact="France", target="Lyon", minute=1)
    made.append(rig.commit_batch(lease))
    orphan = rig.file("delta")
    grow_old(rig)

    found = prune(rig)

    assert found.num_artifacts == 1
    assert not (rig.folder / "artifacts" / orphan.uri).exists()
    for snapshot in made:
        plan = rig.snapshots.load_plan("facts", snapshot_id=snapshot.snapshot_id)
        rig.snapshots.ledger_plan("facts", snapshot_id=snapshot.snapshot_id)
        assert plan.digest == snapshot.digest
    assert len(list((rig.folder / "artifacts" / "sha256").glob("*/*"))) == 2 + 3 + 2  # the base's, and the snapshots'


def test_done_side_effects_and_bytes_of_letters_go_and_their_rows_and_reasons_stay(rig: StoreRig) -> None:
    letter_id = refuse(rig, b"{bad")
    rig.query("UPDATE outbox SET done_at = clock_timestamp()")
    grow_old(rig)
    rig.correct("young")

    found = prune(rig)

    assert (found.num_outbox, found.num_dead_letters) == (1, 1)
    letter = rig.intake.dead_letter(letter_id)
    assert (letter.key, letter.value, letter.error) == (b"k", None, "expected JSON, got none")
    assert letter.pruned_at is not None
    assert rig.query("SELECT headers FROM dead_letters") == [{"headers": []}]
    assert len(rig.debts("doorbell")) == 1
    assert (prune(rig).num_outbox, prune(rig).num_dead_letters) == (0, 0)


def test_a_letter_that_is_still_to_be_announced_keeps_its_bytes_and_a_tombstone_has_none_to_lose(
    rig: StoreRig,
) -> None:
    owed = refuse(rig, b"{bad")
    grow_old(rig)
    assert prune(rig).num_dead_letters == 0
    assert rig.intake.dead_letter(owed).value == b"{bad"


def test_one_audit_line_says_who_took_how_much_and_a_dry_run_leaves_none(rig: StoreRig) -> None:
    refuse(rig, b"{bad")
    rig.query("UPDATE outbox SET done_at = clock_timestamp()")
    orphan = rig.file("delta")
    grow_old(rig)
    before = rig.contents()
    counted = prune(rig, is_dry_run=True)
    assert rig.contents() == before
    assert (rig.folder / "artifacts" / orphan.uri).exists()

    done = prune(rig)

    assert (done.num_outbox, done.num_dead_letters, done.num_artifacts) == (1, 1, 1)
    assert (counted.num_outbox, counted.num_dead_letters, counted.num_artifacts) == (1, 1, 1)
    lines = [event for event in rig.audit.events(SYSTEM_CHAIN) if event.action == "artifacts:pruned"]
    assert [(line.actor, line.subject) for line in lines] == [("cli:tester", "artifacts")]
    assert f'"num_artifacts":1,"num_bytes":{orphan.num_bytes},"num_dead_letters":1,"num_outbox":1' in lines[0].payload
    assert rig.audit.verify(SYSTEM_CHAIN) is None


def test_a_batch_that_is_committed_while_pruning_keeps_its_files(rig: StoreRig) -> None:
    lease = rig.acquire()
    rig.correct("a")
    batch = rig.claim(lease)
    assert batch is not None
    new = rig.new_snapshot(batch=batch)
    grow_old(rig)

    class Committing(SqlPruneStore):
        """Another process commits right after the files were listed."""

        def artifact_uris(self) -> frozenset[str]:
            rig.snapshots.commit(lease, new)
            return super().artifact_uris()

    found = Pruner(store=Committing(rig.engine), files=rig.artifacts).prune(MONTH, actor="cli:tester")

    assert found.num_artifacts == 0
    assert rig.artifacts.path(new.delta).exists()
    assert rig.artifacts.path(new.rows).exists()


def test_the_database_itself_refuses_to_prune_what_is_young(rig: StoreRig) -> None:
    refuse(rig, b"{bad")
    store = SqlPruneStore(rig.engine)
    with pytest.raises(CorrigendaError):
        store.prune(store.now() - timedelta(minutes=59), actor="cli:tester", artifacts={}, is_dry_run=False)
    assert rig.intake.dead_letters()[0].value == b"{bad"


def test_an_auditor_may_not_prune(rig: StoreRig) -> None:
    with psycopg.connect(rig.url) as connection:
        connection.execute("SET ROLE corrigenda_auditor")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT prune_before(clock_timestamp() - interval '1 year')")


def test_a_temporary_table_of_the_caller_takes_no_part_in_a_prune(rig: StoreRig) -> None:
    with psycopg.connect(rig.url) as connection:
        connection.execute("SET ROLE corrigenda_app")
        connection.execute("CREATE TEMP TABLE outbox (dedup_key text, done_at timestamptz)")
        connection.execute("INSERT INTO outbox VALUES ('x', '2001-01-01Z')")
        connection.execute("GRANT ALL ON outbox TO PUBLIC")
        connection.execute("SELECT prune_before(clock_timestamp() - interval '1 year')")
        assert connection.execute("SELECT count(*) FROM pg_temp.outbox").fetchone() == (1,)


def test_only_columns_that_exist_are_left_out_of_the_search(rig: StoreRig) -> None:
    known = {f"{table.name}.{column.name}" for table in metadata.sorted_tables for column in table.columns}
    assert known >= NAMES_NO_ARTIFACT


def test_a_schema_whose_letters_were_pruned_does_not_go_down(postgres_url: str, tmp_path: Path) -> None:
    rig = StoreRig(url=postgres_url, folder=tmp_path)
    rig.new_lineage()
    refuse(rig, b"{bad")
    rig.query("UPDATE outbox SET done_at = clock_timestamp()")
    grow_old(rig)
    prune(rig)
    rig.close()
    with pytest.raises(Misconfigured, match="pruned"):
        downgrade(postgres_url, "0004")
