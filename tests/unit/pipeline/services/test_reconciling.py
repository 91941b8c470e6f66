"""What the reconciler makes of what people do in the registry, with everything around it in memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest

from pipeline.domain.errors import IntegrityBroken, Unavailable, UnknownRecord
from pipeline.domain.lifecycle import SnapshotStatus
from pipeline.domain.lineages import Lineage
from pipeline.domain.review.approvals import Approval, Channel, Decision, Outcome, Standing, refusal
from pipeline.domain.review.policies import ApprovalPolicy, named
from pipeline.domain.snapshots import Snapshot
from pipeline.services.ports import HistoryStore, LineageStore, ReviewStore, SnapshotStore
from pipeline.services.registry.candidate_versions import LOOK_EVERY, CandidateVersions
from pipeline.services.registry.champion_alias import ChampionAlias
from pipeline.services.registry.mirroring import RegistryMirror
from pipeline.services.registry.reconciling import RegistryReconciler
from pipeline.services.registry.registry_ports import ChampionMirror, Displaced, MirrorStore, RegistryEntry
from pipeline.services.review import ReviewService
from tests.support.fake_registry import FakeRegistry
from tests.support.registry_entries import entry, lineage

NAME = "demo"


@dataclass
class Books:
    """One lineage's database, as far as decisions and mirrors need it."""

    lineage_: Lineage
    entries: list[RegistryEntry]
    statuses: dict[str, SnapshotStatus] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    decisions: list[Approval] = field(default_factory=list)
    notes: list[dict[str, Any]] = field(default_factory=list)
    is_owed: bool = False
    packages: dict[str, str] = field(default_factory=dict)
    written: tuple[str | None, ...] | None = None
    displaced: Displaced | None = None
    owed: list[str] = field(default_factory=list)
    automatic: list[Outcome | None] = field(default_factory=list)

    def lineages(self) -> tuple[Lineage, ...]:
        return (self.lineage_,)

    def lineage(self, name: str) -> Lineage:
        assert name == NAME
        return self.lineage_

    def snapshot(self, name: str, ref: str) -> Snapshot:
        assert name == NAME
        for made in self.entries:
            snapshot_id = made.snapshot.snapshot_id
            if ref in (snapshot_id, str(made.snapshot.seq)):
                return self._as_it_stands(made.snapshot)
        raise UnknownRecord(ref)

    def entry(self, snapshot_id: str) -> RegistryEntry:
        made = next(made for made in self.entries if made.snapshot.snapshot_id == snapshot_id)
        return replace(made, snapshot=self._as_it_stands(made.snapshot))

    def seal(self, snapshot_id: str, package_digest: str) -> None:
        assert snapshot_id not in self.versions
        self.packages[snapshot_id] = package_digest

    def registered(self, snapshot_id: str, *, version: str) -> None:
        self.versions.setdefault(snapshot_id, version)

    def unregistered(self, snapshot_id: str, *, version: str, actor: str, reason: str) -> bool:
        if self.versions.get(snapshot_id) != version:
            return False
        del self.versions[snapshot_id], self.packages[snapshot_id]
        self.owed.append(snapshot_id)
        self.is_owed = True
        self.note(NAME, action="champion:missing", subject=snapshot_id, actor=actor, payload={"reason": reason})
        return True

    def champion_mirror(self, name: str) -> ChampionMirror:
        champion = self.lineage_.champion_id or ""
        return ChampionMirror(
            version=self.versions.get(champion),
            snapshot_id=champion or None,
            package_digest=self.packages.get(champion),
            is_owed=self.is_owed,
            written=self.written,
            putting_back=self.displaced,
        )

    def pointing(self, name: str, version: str | None) -> None:
        self.written = (*self.written, version) if self.written else None

    def pointed(self, name: str, version: str | None) -> None:
        self.written = (version,)

    def putting_back(self, name: str, displaced: Displaced) -> None:
        self.displaced = displaced

    def put_back(self, name: str, displaced: Displaced, *, actor: str) -> None:
        assert displaced == self.displaced
        self.written, self.displaced = (displaced.back,), None
        payload = {"found_version": displaced.found, "restored_version": displaced.back}
        subject = self.lineage_.champion_id or "base"
        self.note(NAME, action="champion:restored", subject=subject, actor=actor, payload=payload)

    def decide(self, approval: Approval) -> Outcome:
        made = self.entry(approval.snapshot_id)
        self.decisions.append(approval)
        if approval.decision is Decision.approved and self.lineage_.champion_id == approval.snapshot_id:
            return Outcome(is_accepted=True, reason="")
        reason = refusal(approval, self._standing(made))
        if reason is None and approval.decision is Decision.approved:
            self.lineage_ = replace(self.lineage_, champion_id=approval.snapshot_id, champion_seq=made.snapshot.seq)
            self.is_owed = True
        return Outcome(is_accepted=reason is None, reason=reason or "")

    def approve_automatically(self, name: str) -> Outcome | None:
        return self.automatic.pop(0)

    def note(self, name: str, *, action: str, subject: str, actor: str, payload: Mapping[str, Any]) -> None:
        self.notes.append({"action": action, "subject": subject, "actor": actor, **payload})

    def edit(self, name: str, ref: str) -> Mapping[str, Any]:
        return {"edit_id": f"edit-{ref}", "request_id": ref}

    def request_revert(self, name: str, edit_ids: Sequence[str], *, actor: str, reason: str) -> tuple[str, ...]:
        self.notes.append({"reverted": tuple(edit_ids), "actor": actor, "reason": reason})
        return ("removal-1",)

    def _as_it_stands(self, snapshot: Snapshot) -> Snapshot:
        snapshot_id = snapshot.snapshot_id
        version, package = self.versions.get(snapshot_id), self.packages.get(snapshot_id)
        status = self.statuses.get(snapshot_id, snapshot.status)
        return replace(snapshot, registry_version=version, package_digest=package, status=status)

    def _standing(self, made: RegistryEntry) -> Standing:
        return Standing(
            digest=made.snapshot.digest,
            status=self.statuses.get(made.snapshot.snapshot_id, SnapshotStatus.candidate),
            seq=made.snapshot.seq,
            gate_passed=True,
            policy_digest="p",
            lineage_policy_digest="p",
            champion_id=self.lineage_.champion_id,
            champion_seq=self.lineage_.champion_seq,
            is_under_approved=False,
            policy=self.lineage_.settings.approval_policy,
        )


@dataclass
class World:
    """Everything around the reconciler."""

    books: Books
    registry: FakeRegistry
    mirror: RegistryMirror
    alias: ChampionAlias
    review: ReviewService
    reconciler: RegistryReconciler

    def snapshot_id(self, seq: int) -> str:
        return self.books.entries[seq - 1].snapshot.snapshot_id

    def mirror_champion(self) -> None:
        self.alias.point(NAME)
        self.books.is_owed = False

    def make_champion(self, seq: int) -> None:
        self.books.lineage_ = replace(self.books.lineage_, champion_id=self.snapshot_id(seq), champion_seq=seq)
        self.books.is_owed = True
        self.mirror_champion()


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A lineage with two registered candidates."""
    of = lineage(NAME)
    books = Books(lineage_=of, entries=[entry(of, tmp_path, seq=1), entry(of, tmp_path, seq=2)])
    registry = FakeRegistry()
    snapshots, mirror = cast(SnapshotStore, books), cast(MirrorStore, books)
    lineages, notes = cast(LineageStore, books), cast(ReviewStore, books)
    review = ReviewService(lineages=lineages, snapshots=snapshots, review=notes, history=cast(HistoryStore, books))
    alias = ChampionAlias(mirror=mirror, registry=registry)
    now = itertools.count(step=LOOK_EVERY)
    made = World(
        books=books,
        registry=registry,
        mirror=RegistryMirror(mirror=mirror, registry=registry),
        alias=alias,
        review=review,
        reconciler=RegistryReconciler(
            lineages=lineages,
            snapshots=snapshots,
            registry=registry,
            champion=alias,
            candidates=CandidateVersions(
                snapshots=snapshots, mirror=mirror, registry=registry, clock=lambda: next(now)
            ),
            review=review,
            notes=notes,
        ),
    )
    for each in books.entries:
        made.mirror.register(each.snapshot.snapshot_id)
    return made


def test_nothing_asked_is_nothing_done(world: World) -> None:
    assert world.reconciler.run_once() == 0
    assert world.books.decisions == [] == world.books.notes


def test_an_alias_approves_and_only_the_mirror_moves_the_champion(world: World) -> None:
    world.registry.set_alias(NAME, "approved", "1")
    assert world.reconciler.run_once() == 1
    (approval,) = world.books.decisions
    assert (approval.snapshot_id, approval.actor, approval.is_claimed) == (
        world.snapshot_id(1),
        "mlflow:unknown (claimed)",
        True,
    )
    assert (approval.channel, approval.champion_seen) == (Channel.registry, None)
    assert world.registry.tags(NAME, "1")["approval.outcome"] == "approved"
    assert "champion" not in world.registry.aliases(NAME)
    world.mirror_champion()
    assert world.registry.aliases(NAME) == {"champion": "1"}
    assert world.reconciler.run_once() == 0


def test_a_tag_rejects_with_a_claimed_name_and_its_reason(world: World) -> None:
    world.registry.set_tag(NAME, "2", "approval", "rejected")
    world.registry.set_tag(NAME, "2", "approval.actor", "anna\n\x00 of QA")
    world.registry.set_tag(NAME, "2", "approval.reason", "wrong source")
    assert world.reconciler.run_once() == 1
    (approval,) = world.books.decisions
    assert (approval.decision, approval.actor, approval.is_claimed) == (
        Decision.rejected,
        "mlflow:anna of QA (claimed)",
        True,
    )
    assert approval.reason == "wrong source"
    assert world.registry.tags(NAME, "2")["approval.outcome"] == "rejected"


def test_who_asked_is_known_where_the_server_says_so_and_goes_before_what_is_claimed(world: World) -> None:
    world.registry.set_alias(NAME, "approved", "1")
    world.registry.set_tag(NAME, "1", "approval.actor", "ceo")
    world.registry.senders[(NAME, "1")] = "ada"
    assert world.reconciler.run_once() == 1
    (approval,) = world.books.decisions
    assert (approval.actor, approval.is_claimed) == ("mlflow-user:ada", False)
    assert world.registry.tags(NAME, "1")["approval.asked_by"] == "ada"


def test_an_alias_without_a_reason_approves_unless_the_policy_asks_for_one(world: World) -> None:
    world.registry.set_alias(NAME, "approved", "1")
    assert world.reconciler.run_once() == 1
    assert [(one.reason, one.is_claimed) for one in world.books.decisions] == [("", True)], "the default takes it so"
    settings = world.books.lineage_.settings
    asks_why = replace(settings, approval_policy=ApprovalPolicy(requires_reason=True))
    world.books.lineage_ = replace(world.books.lineage_, settings=asks_why)
    world.registry.set_alias(NAME, "approved", "2")
    assert world.reconciler.run_once() == 1
    refused = world.registry.tags(NAME, "2")["approval.outcome"]
    assert refused.startswith("refused: this lineage asks why: give a reason (`--reason`, or the tag approval.reason")
    assert world.books.lineage_.champion_id == world.snapshot_id(1)
    world.registry.set_tag(NAME, "2", "approval.reason", "read every answer")
    world.registry.set_alias(NAME, "approved", "2")
    assert world.reconciler.run_once() == 1
    assert world.registry.tags(NAME, "2")["approval.outcome"] == "approved"


def test_a_version_whose_digest_tag_was_changed_is_refused(world: World) -> None:
    world.registry.set_tag(NAME, "1", "corrigenda.digest", "f" * 64)
    world.registry.set_alias(NAME, "approved", "1")
    world.reconciler.run_once()
    assert "refused: the digest seen (ffffffffffff)" in world.registry.tags(NAME, "1")["approval.outcome"]
    assert world.books.lineage_.champion_id is None
    assert world.registry.requests(NAME) == ()


def test_a_version_without_a_digest_is_refused(world: World) -> None:
    world.registry.set_tag(NAME, "1", "corrigenda.digest", "")
    world.registry.set_alias(NAME, "approved", "1")
    world.reconciler.run_once()
    assert world.registry.tags(NAME, "1")["approval.outcome"].startswith("refused: the digest seen ()")


def test_approving_behind_the_champion_is_refused_with_a_reason(world: World) -> None:
    world.make_champion(2)
    world.registry.set_alias(NAME, "approved", "1")
    world.reconciler.run_once()
    assert "behind the champion" in world.registry.tags(NAME, "1")["approval.outcome"]
    assert world.registry.champion(NAME) == "2"


@pytest.mark.parametrize("tags", [{}, {"corrigenda.snapshot_id": "1"}, {"corrigenda.snapshot_id": "no-such-id"}])
def test_a_version_that_is_not_ours_is_refused_and_audited(world: World, tags: dict[str, str]) -> None:
    version = world.registry.add_version(NAME, tags)
    world.registry.set_alias(NAME, "approved", version)
    assert world.reconciler.run_once() == 1
    assert world.books.decisions == []
    assert world.registry.tags(NAME, version)["approval.outcome"].startswith("refused: this version does not carry")
    assert world.books.notes[0]["action"] == "approval:refused"


def test_a_copy_of_a_version_is_refused_and_names_the_original(world: World) -> None:
    version = world.registry.add_version(NAME, world.registry.tags(NAME, "1"))
    world.registry.set_tag(NAME, version, "approval", "approved")
    world.reconciler.run_once()
    assert world.registry.tags(NAME, version)["approval.outcome"] == (
        "refused: this version is a copy of version 1; ask there"
    )


def test_a_misspelt_decision_is_answered_rather_than_ignored(world: World) -> None:
    world.registry.set_tag(NAME, "1", "approval", "yes please")
    world.reconciler.run_once()
    assert world.registry.tags(NAME, "1")["approval.outcome"].startswith("refused: expected approved or rejected")


def test_a_request_waits_until_its_version_is_recorded(world: World) -> None:
    del world.books.versions[world.snapshot_id(1)]
    world.registry.set_alias(NAME, "approved", "1")
    assert world.reconciler.run_once() == 0
    world.mirror.register(world.snapshot_id(1))
    assert world.reconciler.run_once() == 1
    assert world.books.lineage_.champion_id == world.snapshot_id(1)


def test_a_request_whose_answer_was_lost_is_answered_the_next_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(*_args: object, **_kwargs: object) -> None:
        raise Unavailable("gone")

    world.registry.set_alias(NAME, "approved", "1")
    with monkeypatch.context() as patch:
        patch.setattr(world.registry, "answer", lose)
        with pytest.raises(Unavailable):
            world.reconciler.run_once()
    world.reconciler.run_once()
    assert world.registry.tags(NAME, "1")["approval.outcome"] == "approved"


def test_a_champion_moved_by_hand_is_put_back_audited_and_explained(world: World) -> None:
    world.make_champion(1)
    world.registry.set_alias(NAME, "champion", "2")
    assert world.reconciler.run_once() == 1
    assert world.registry.champion(NAME) == "1"
    assert world.books.notes == [
        {
            "action": "champion:restored",
            "subject": world.snapshot_id(1),
            "actor": "reconciler",
            "found_version": "2",
            "restored_version": "1",
        }
    ]
    assert "approval=approved" in world.registry.tags(NAME, "2")["corrigenda.note"]
    assert world.reconciler.run_once() == 0


def test_a_champion_deleted_by_hand_is_put_back(world: World) -> None:
    world.make_champion(1)
    world.registry.point_champion(NAME, None)
    world.reconciler.run_once()
    assert world.registry.champion(NAME) == "1"


def test_a_champion_set_by_hand_over_the_base_is_taken_off(world: World) -> None:
    world.registry.set_alias(NAME, "champion", "2")
    world.reconciler.run_once()
    assert world.registry.champion(NAME) is None


def test_every_move_by_hand_is_put_back_and_audited_while_a_champion_is_owed(world: World) -> None:
    world.make_champion(1)
    world.books.is_owed = True
    for _ in range(3):
        world.registry.set_alias(NAME, "champion", "2")
        assert world.reconciler.run_once() == 1
        assert world.registry.champion(NAME) == "1"
    assert [note["action"] for note in world.books.notes] == ["champion:restored"] * 3


def test_while_the_new_champion_has_no_version_a_move_by_hand_goes_back_to_the_old_one(world: World) -> None:
    world.make_champion(1)
    del world.books.versions[world.snapshot_id(2)]
    world.books.lineage_ = replace(world.books.lineage_, champion_id=world.snapshot_id(2), champion_seq=2)
    world.books.is_owed = True
    assert world.reconciler.run_once() == 0
    world.registry.set_alias(NAME, "champion", "2")
    assert world.reconciler.run_once() == 1
    assert world.registry.champion(NAME) == "1"
    assert world.books.notes[0]["restored_version"] == "1"


def test_a_move_by_hand_that_the_mirror_meets_first_is_audited_too(world: World) -> None:
    world.make_champion(1)
    world.registry.point_champion(NAME, None)
    world.books.is_owed = True
    world.mirror_champion()
    assert world.registry.champion(NAME) == "1"
    assert [note["action"] for note in world.books.notes] == ["champion:restored"]


def test_what_corrigenda_wrote_before_is_no_move_by_hand(world: World) -> None:
    world.make_champion(1)
    world.books.lineage_ = replace(world.books.lineage_, champion_id=world.snapshot_id(2), champion_seq=2)
    world.books.is_owed = True
    assert world.reconciler.run_once() == 0
    world.mirror_champion()
    assert (world.registry.champion(NAME), world.books.notes) == ("2", [])


def test_a_late_write_of_a_slow_relay_is_put_right_without_a_line(world: World) -> None:
    world.make_champion(1)
    world.books.pointing(NAME, "2")
    world.registry.set_alias(NAME, "champion", "2")
    assert world.reconciler.run_once() == 0
    assert (world.registry.champion(NAME), world.books.notes) == ("1", [])


def test_a_move_that_somebody_died_over_is_audited_once_after_it_is_put_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.make_champion(1)
    world.registry.set_alias(NAME, "champion", "2")
    with monkeypatch.context() as patch:
        patch.setattr(world.registry, "point_champion", _die)
        with pytest.raises(Unavailable):
            world.reconciler.run_once()
    assert world.books.notes == [], "no line before the act it tells of"
    assert world.reconciler.run_once() == 1
    assert world.registry.champion(NAME) == "1"
    assert [note["found_version"] for note in world.books.notes] == ["2"]
    assert world.reconciler.run_once() == 0


def test_a_move_that_was_put_back_by_somebody_who_died_before_the_line_is_audited(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.make_champion(1)
    world.registry.set_alias(NAME, "champion", "2")
    with monkeypatch.context() as patch:
        patch.setattr(world.books, "put_back", _die)
        with pytest.raises(Unavailable):
            world.reconciler.run_once()
    assert world.reconciler.run_once() == 1
    assert [note["found_version"] for note in world.books.notes] == ["2"]


def _die(*_args: object, **_kwargs: object) -> None:
    raise Unavailable("gone")


def _delete_version(world: World) -> None:
    world.registry.delete_version(NAME, "1")


def _delete_model(world: World) -> None:
    world.registry.delete_model(NAME)


def _take_off_the_tag(world: World) -> None:
    world.registry.set_tag(NAME, "1", "corrigenda.snapshot_id", "")


def _change_the_digest(world: World) -> None:
    world.registry.set_tag(NAME, "1", "corrigenda.package_digest", "f" * 64)


def _give_the_number_to_another_snapshot(world: World) -> None:
    tags = world.registry.tags(NAME, "2")
    world.registry.delete_model(NAME)
    world.registry.add_version(NAME, tags)


@pytest.mark.parametrize(
    "spoil",
    [
        _delete_version,
        _delete_model,
        _take_off_the_tag,
        _change_the_digest,
        _give_the_number_to_another_snapshot,
    ],
)
def test_a_champion_whose_version_cannot_be_used_is_missing_once_and_registered_again(
    world: World, spoil: Callable[[World], None]
) -> None:
    world.make_champion(1)
    spoil(world)
    assert world.reconciler.run_once() == 1
    for _ in range(3):
        assert world.reconciler.run_once() == 0
    (line,) = world.books.notes
    assert (line["action"], line["subject"]) == ("champion:missing", world.snapshot_id(1))
    assert "version 1 of demo" in line["reason"]
    assert world.books.owed == [world.snapshot_id(1)]
    version = world.mirror.register(world.snapshot_id(1))
    world.mirror_champion()
    assert world.registry.champion(NAME) == version
    assert world.reconciler.run_once() == 0
    assert world.books.notes == [line]


def test_a_candidate_whose_version_was_deleted_is_registered_again_when_it_becomes_the_champion(world: World) -> None:
    world.registry.delete_version(NAME, "1")
    with pytest.raises(Unavailable, match="not registered yet"):
        world.make_champion(1)
    assert world.books.owed == [world.snapshot_id(1)]
    world.mirror.register(world.snapshot_id(1))
    world.mirror_champion()
    assert world.registry.champion(NAME) == world.books.versions[world.snapshot_id(1)]


def test_files_that_somebody_changed_are_not_approved(world: World) -> None:
    world.registry.changed.add((NAME, "1"))
    world.registry.set_alias(NAME, "approved", "1")
    assert world.reconciler.run_once() == 1
    assert "refused: expected the files of the model version" in world.registry.tags(NAME, "1")["approval.outcome"]
    assert world.books.decisions == []
    assert world.books.lineage_.champion_id is None


def test_a_champion_that_moves_between_the_two_looks_is_left_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.make_champion(1)
    look = world.registry.champion

    def approve_meanwhile(name: str) -> str | None:
        monkeypatch.setattr(world.registry, "champion", look)
        world.make_champion(2)
        return look(name)

    monkeypatch.setattr(world.registry, "champion", approve_meanwhile)
    assert world.reconciler.run_once() == 0
    assert world.registry.aliases(NAME)["champion"] == "2"
    assert world.books.notes == []


def test_a_champion_without_a_version_stays_owed(world: World) -> None:
    del world.books.versions[world.snapshot_id(1)]
    with pytest.raises(Unavailable):
        world.make_champion(1)
    assert world.reconciler.run_once() == 0


def test_a_broken_lineage_does_not_keep_the_others_waiting(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    other = lineage("broken")
    monkeypatch.setattr(world.books, "lineages", lambda: (other, world.books.lineage_))
    ask = world.registry.requests

    def requests(name: str) -> Any:
        if name == "broken":
            raise IntegrityBroken("a digest differs")
        return ask(name)

    monkeypatch.setattr(world.registry, "requests", requests)
    world.registry.set_alias(NAME, "approved", "1")
    with pytest.raises(IntegrityBroken):
        world.reconciler.run_once()
    assert world.registry.tags(NAME, "1")["approval.outcome"] == "approved"


def test_an_approver_who_saw_another_champion_is_refused(world: World) -> None:
    world.make_champion(1)
    outcome = world.review.decide(
        NAME, "2", Decision.approved, actor="cli:anna", channel=Channel.cli, expected_champion=None
    )
    assert not outcome.is_accepted
    assert "champion has moved" in outcome.reason


def test_the_shown_part_of_a_digest_is_enough_and_a_wrong_one_is_refused(world: World) -> None:
    digest = world.books.entries[0].snapshot.digest
    wrong = world.review.decide(
        NAME, "1", Decision.approved, actor="cli:anna", channel=Channel.cli, expected_digest=digest[:11]
    )
    right = world.review.decide(
        NAME, "1", Decision.approved, actor="cli:anna", channel=Channel.cli, expected_digest=digest[:12]
    )
    assert (wrong.is_accepted, right.is_accepted) == (False, True)


def test_reverting_takes_request_ids_and_each_edit_once(world: World) -> None:
    assert world.review.revert(NAME, ["a", "b", "a"], actor="cli:anna", reason="retracted") == ("removal-1",)
    assert world.books.notes[-1]["reverted"] == ("edit-a", "edit-b")


def automatic(world: World, *outcomes: Outcome | None) -> None:
    """Let the lineage's head go live without a person, where the database says so."""
    books = world.books
    settings = replace(books.lineage_.settings, approval_policy=named("low_risk"))
    books.lineage_ = replace(books.lineage_, settings=settings, head_id=world.snapshot_id(2), head_seq=2)
    books.automatic = list(outcomes)


def test_what_a_policy_lets_go_live_is_not_waited_for(world: World) -> None:
    automatic(world, Outcome(is_accepted=True, reason=""))
    assert world.reconciler.run_once() == 1


def test_why_a_person_has_to_decide_is_said_once_on_the_version(world: World) -> None:
    automatic(world, Outcome(is_accepted=False, reason="9 edits would go live"))
    assert [world.reconciler.run_once() for _ in range(3)] == [0, 0, 0]
    assert world.registry.tags(NAME, "2")["corrigenda.note"] == "a person has to decide: 9 edits would go live"
    # What changes is looked at again.
    world.books.automatic = [None]
    world.books.lineage_ = replace(world.books.lineage_, head_id=world.snapshot_id(1))
    assert world.reconciler.run_once() == 0
    assert world.books.automatic == []


def test_a_held_lineage_is_looked_at_again_once_a_person_lifts_the_hold(world: World) -> None:
    automatic(world, None, Outcome(is_accepted=True, reason=""))
    assert world.reconciler.run_once() == 0  # the hold came between two looks
    resumed = world.books.lineage_
    world.books.lineage_ = replace(resumed, hold="rolled back to 1: no reason given")
    assert [world.reconciler.run_once() for _ in range(2)] == [0, 0]
    world.books.lineage_ = resumed
    assert world.reconciler.run_once() == 1


def test_a_head_is_looked_at_again_when_the_gate_policy_changes(world: World) -> None:
    automatic(world, Outcome(is_accepted=False, reason="it does not pass"), Outcome(is_accepted=True, reason=""))
    assert [world.reconciler.run_once() for _ in range(2)] == [0, 0]
    settings = world.books.lineage_.settings
    looser = replace(settings, policy=replace(settings.policy, locality_drop_max=0.5))
    world.books.lineage_ = replace(world.books.lineage_, settings=looser)
    assert world.reconciler.run_once() == 1


def test_nothing_goes_live_by_itself_before_it_has_a_page_or_where_people_decide(world: World) -> None:
    assert world.reconciler.run_once() == 0
    automatic(world)
    world.books.versions.clear()
    assert world.reconciler.run_once() == 0


def test_the_first_of_two_approvals_is_told_on_the_version(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    noted = Outcome(is_accepted=True, reason="", num_approvals=1, num_needed=2)
    monkeypatch.setattr(world.books, "decide", lambda approval: noted)
    world.registry.set_alias(NAME, "approved", "1")
    assert world.reconciler.run_once() == 1
    told = world.registry.tags(NAME, "1")["approval.outcome"]
    assert told == "1 of 2 approvals; one more person has to approve it"
    assert world.registry.champion(NAME) is None


def test_a_candidate_whose_version_was_deleted_is_registered_again(world: World) -> None:
    world.books.lineage_ = replace(world.books.lineage_, head_id=world.snapshot_id(2), head_seq=2)
    world.registry.delete_version(NAME, "1")
    assert [world.reconciler.run_once() for _ in range(2)] == [0, 1], "one candidate a look, the newest first"
    assert world.books.owed == [world.snapshot_id(1)]
    world.mirror.register(world.snapshot_id(1))
    assert world.books.versions == {world.snapshot_id(1): "3", world.snapshot_id(2): "2"}
    assert [world.reconciler.run_once() for _ in range(4)] == [0, 0, 0, 0]


def test_what_may_not_go_live_any_more_is_not_registered_again(world: World) -> None:
    world.books.lineage_ = replace(world.books.lineage_, head_id=world.snapshot_id(2), head_seq=2)
    world.books.statuses[world.snapshot_id(2)] = SnapshotStatus.rejected
    world.registry.delete_version(NAME, "2")
    assert [world.reconciler.run_once() for _ in range(3)] == [0, 0, 0]
