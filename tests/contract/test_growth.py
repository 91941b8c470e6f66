"""What a batch costs depends on what it holds, not on how many edits the lineage has."""

from __future__ import annotations

import random
from pathlib import Path

import psycopg
import pytest

from pipeline.domain.batches import RETAINED, retention_draws
from tests.support.factories import make_edit, make_request
from tests.support.large_lineage import GUARD_NAMES, SUITE_KEYS, Counted, HoldingGroup, fill, one_batch, submit
from tests.support.store_rig import LINEAGE, StoreRig

BATCH = 8
FEW, MANY = 100, 10_000


@pytest.fixture
def planned_for_many(postgres_url: str) -> str:
    """A database whose small tables are read as large ones are: by index, where there is one."""
    with psycopg.connect(postgres_url, autocommit=True) as owner:
        name = postgres_url.rsplit("/", 1)[1].partition("?")[0]
        owner.execute(f'ALTER DATABASE "{name}" SET enable_seqscan = off'.encode())
    return postgres_url


def cost(url: str, folder: Path, num_edits: int) -> Counted:
    """What the second batch costs, once the first has warmed the server's caches of plans and catalogs."""
    rig = StoreRig(url=url, folder=folder)
    rig.new_lineage()
    fill(rig, num_edits, batch_size=10)
    # What waits for a decision is counted for the page of the next version, up to a bound: here nothing waits.
    for table, change in (
        ("snapshots", "status = 'approved'"),
        ("lineages", "champion_snapshot_id = head_snapshot_id"),
    ):
        rig.query(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        rig.query(f"UPDATE {table} SET {change}")
        rig.query(f"ALTER TABLE {table} ENABLE TRIGGER USER")
    group = HoldingGroup(folder)
    for stem in ("first", "second"):
        with Counted(rig) as counted:
            submit(rig, BATCH, stem=stem)
            assert one_batch(rig, group) == 1
    trial = group.candidates[-1]
    assert (len(trial.added), len(trial.removed_ids), len(trial.retained)) == (BATCH, 1, RETAINED)
    assert trial.gone_keys == SUITE_KEYS[:2]
    assert trial.edited_names == GUARD_NAMES[:1]
    rig.close()
    return counted


def test_a_batch_takes_as_many_statements_and_rows_at_ten_thousand_active_edits_as_at_a_hundred(
    planned_for_many: str, tmp_path: Path
) -> None:
    rig = StoreRig(url=planned_for_many, folder=tmp_path)
    few = cost(planned_for_many, tmp_path, FEW)
    rig.wipe()
    rig.close()
    many = cost(planned_for_many, tmp_path, MANY)
    assert many.statements == few.statements
    assert many.written == few.written
    # The strata of retention are wider: a draw may fall on an edit with another one below it, which is read as well.
    assert many.read.total() <= few.read.total() + RETAINED


def drawn_by_hand(places: list[int], num_places: int, *, seed: str) -> list[int]:
    """The sample as anybody can draw it from the places of active edits."""
    drawn = []
    for low, middle, high in retention_draws(num_places, seed=seed):
        above = [place for place in places if middle <= place <= high]
        below = [place for place in places if low <= place < middle]
        drawn += above[:1] or below[-1:]
    newest = [place for place in places if place not in drawn][::-1]
    return sorted(drawn + newest[: RETAINED - len(drawn)])


@pytest.mark.parametrize(("num_edits", "share_gone"), [(30, 0.2), (64, 0.0), (300, 0.5), (1000, 0.9)])
def test_the_retention_sample_is_one_that_anybody_can_draw_again(
    rig: StoreRig, num_edits: int, share_gone: float
) -> None:
    fill(rig, num_edits, batch_size=10)
    choice = random.Random(num_edits)  # noqa: S311
    gone = sorted(choice.sample(range(1, num_edits + 1), int(num_edits * share_gone)))
    rig.query("UPDATE edit_rows SET until_seq = 1000000 WHERE place = ANY (%s)", gone)
    query = "SELECT place, edit_id::text FROM edit_rows WHERE until_seq IS NULL ORDER BY place"
    active = {row["edit_id"]: row["place"] for row in rig.query(query)}
    removed = choice.sample(sorted(active), 5)
    places = [place for edit_id, place in active.items() if edit_id not in removed]
    for seed in ("one", "another"):
        sample = rig.queue.retention_sample(LINEAGE, seed=seed, removed_ids=removed)
        assert [active[edit.edit_id] for edit in sample] == drawn_by_hand(places, num_edits, seed=seed)
        assert len(sample) == min(RETAINED, len(places))
        assert rig.queue.retention_sample(LINEAGE, seed=seed, removed_ids=removed) == sample


def test_only_facts_that_the_head_holds_are_edited_on_purpose(rig: StoreRig) -> None:
    fill(rig, 10)
    assert rig.queue.active_keys(LINEAGE, SUITE_KEYS, removed_ids=()) == SUITE_KEYS[:2]
    [third] = rig.query("SELECT edit_id::text FROM edit_rows WHERE place = 3")
    assert rig.queue.active_keys(LINEAGE, SUITE_KEYS, removed_ids=[third["edit_id"]]) == SUITE_KEYS[1:2]
    assert rig.queue.active_keys(LINEAGE, (), removed_ids=()) == ()


def test_only_names_that_the_head_holds_edits_of_are_edited(rig: StoreRig) -> None:
    fill(rig, 10)
    assert rig.queue.edited_names(LINEAGE, ("thing 9", "nothing", "thing 3", "thing 11")) == ("thing 9", "thing 3")
    rig.query("UPDATE edit_requests SET status = 'reverted' WHERE subject = 'Thing 9'")
    assert rig.queue.edited_names(LINEAGE, ("thing 9", "thing 3")) == ("thing 3",)
    assert rig.queue.edited_names(LINEAGE, ()) == ()


def test_no_batch_copies_the_active_set(rig: StoreRig, tmp_path: Path) -> None:
    fill(rig, 1000)
    with Counted(rig) as counted:
        submit(rig, BATCH, stem="r")
        one_batch(rig, HoldingGroup(tmp_path))
    assert counted.written["edit_rows"] == BATCH + 1, "each edit that came in, and the one that left"
    assert counted.written.total() <= 20 * BATCH + 20


def test_subjects_of_a_relation_are_those_of_its_newest_ended_requests_without_an_active_edit(rig: StoreRig) -> None:
    for name, subject, relation in (("a", "Ajax", "Coach"), ("b", "Celtic", "coach"), ("c", "Porto", "stadium")):
        rig.submit(make_request(name, subject=subject, relation=relation))
    for name, subject in (("d", "Benfica"), ("e", "CELTIC")):
        rig.submit(make_request(name, subject=subject, relation="coach", prompt=f"{name} is"))
    rig.query("UPDATE edit_requests SET status = 'rejected' WHERE request_id IN ('a', 'b', 'c', 'd')")
    rig.query("UPDATE edit_requests SET status = 'snapshotted' WHERE request_id = 'e'")
    batch = [make_edit("x", relation="coach", subject="Lyon"), make_edit("y", relation="owner"), make_edit("z")]
    assert rig.queue.related_subjects(LINEAGE, batch) == {batch[0].edit_id: ("Benfica", "Ajax")}
    assert rig.queue.related_subjects(LINEAGE, batch[2:]) == {}
