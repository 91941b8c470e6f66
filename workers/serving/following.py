"""A lineage as it is served: what its alias points to, loaded beside what is live, tried, and then swapped in.

A version is fetched, checked and put together while the one before goes on answering. It goes live between two
requests, and only if it answers: one that is damaged or gives no numbers is refused, and the one before stays. The
database is asked at each look whether what is live is still approved, so that a rollback holds while MLflow is away.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta

import torch

from pipeline.adapters.mlflow.versions import FollowedVersion, MlflowVersions
from pipeline.adapters.sql.sealed import SqlSealedVersions
from pipeline.domain.errors import CorrigendaError, EditorFailed, IntegrityBroken, Unavailable, one_line
from workers.serving.bases import Bases
from workers.serving.generation_thread import AnswerableSnapshot, GenerationThread
from workers.serving.version_files import SnapshotFiles, VersionFiles

log = logging.getLogger(__name__)
FIRST_WAIT, LONGEST_WAIT = timedelta(seconds=1), timedelta(minutes=5)
"""A version that was refused is tried again, after waits that double from the first to the second."""
TOUCHED_EVERY = timedelta(hours=1)
"""How often the files of what is loaded are noted as being in use."""
UNUSABLE = (CorrigendaError, OSError, ValueError, KeyError, RuntimeError)
"""What a version raises that cannot be loaded: torch and JSON have errors of their own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedSnapshot:
    """A model version that answers, or is kept to answer again at once."""

    version: FollowedVersion
    """The version, as the registry has it."""
    package_digest: str
    """Digest of its files."""
    files: SnapshotFiles
    """What it was put together from."""
    answerable: AnswerableSnapshot
    """Its weights, in memory and ready to answer."""
    since: float = field(default_factory=time.time)
    """When it went live, in seconds since 1970."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Refused:
    version: FollowedVersion
    fault: str
    wait: timedelta
    until: float


class Follower:
    """Keeps what is served of one lineage the same as what its alias points to.

    Args:
        lineage: name of the lineage.
        alias: the alias that is followed.
        versions: the registry.
        sealed: the database's word on the digests of versions; None to take the word of their tags.
        files: where files are kept on this machine.
        bases: the bases that are loaded.
        thread: the thread that runs models.
    """

    def __init__(
        self,
        lineage: str,
        *,
        alias: str,
        versions: MlflowVersions,
        sealed: SqlSealedVersions | None,
        files: VersionFiles,
        bases: Bases,
        thread: GenerationThread,
    ) -> None:
        self.lineage = lineage
        self.serving: ServedSnapshot | None = None
        """What answers now; replaced as a whole, so that whoever reads it once has one snapshot."""
        self.previous: ServedSnapshot | None = None
        """What answered before, in memory for an instant way back."""
        self.fault: str | None = None
        """Why what is served is not, or may not be, what the alias points to; None if all is well."""
        self.wanted: str | None = None
        """The version that the alias pointed to when the registry was last read."""
        self.num_swaps = 0
        """How often another version went live."""
        self._alias, self._versions, self._sealed = alias, versions, sealed
        self._files, self._bases, self._thread = files, bases, thread
        self._read_at: float | None = None
        self._touched_at = time.monotonic()
        self._behind_since: float | None = None
        self._refused: _Refused | None = None

    def poll(self) -> None:
        """Look at the alias once, and follow it. Never raises: what goes wrong is said in `fault`."""
        self._leave_what_was_withdrawn()
        if time.monotonic() - self._touched_at >= TOUCHED_EVERY.total_seconds():
            self._touch_files()
        try:
            live = self._versions.live(self.lineage, self._alias)
        except CorrigendaError as error:
            self.fault = one_line(error)
            self._serve_what_was()
            return
        self._read_at = time.monotonic()
        self.wanted = live.version if live else None
        if live is None:
            self.fault = f"expected the alias {self._alias!r} on a version of {self.lineage!r}, got none yet"
            return
        self._note_behind(live)
        if self._is_served(live):
            self.fault = self._refused = None
        elif self._refused is None or self._refused.version != live or time.monotonic() >= self._refused.until:
            self._follow(live)
        else:
            self.fault = self._refused.fault

    def seconds_behind(self) -> float:
        """Return for how long the alias has pointed to another version than the one that is served."""
        return 0.0 if self._behind_since is None else time.monotonic() - self._behind_since

    def seconds_since_read(self) -> float | None:
        """Return how long ago the registry was read; None if it never was."""
        return None if self._read_at is None else time.monotonic() - self._read_at

    def _is_served(self, live: FollowedVersion) -> bool:
        return self.serving is not None and self.serving.version == live

    def _note_behind(self, live: FollowedVersion) -> None:
        if self._is_served(live):
            self._behind_since = None
        elif self._behind_since is None:
            self._behind_since = time.monotonic()

    def _follow(self, live: FollowedVersion) -> None:
        try:
            # In memory it is still what was checked when it was loaded.
            kept = self.previous if self.previous is not None and self.previous.version == live else None
            expected = self._expected_digest(live)
            self._swap(self._loaded(live, expected) if kept is None or kept.package_digest != expected else kept)
        except UNUSABLE as error:
            self._refuse(live, error)
            return
        self._files.remember(live, expected)
        self._files.prune()
        self.fault = self._refused = self._behind_since = None

    def _refuse(self, live: FollowedVersion, error: Exception) -> None:
        self.fault = f"version {live.version} is refused: {one_line(error)}"
        before = self._refused
        wait = FIRST_WAIT if before is None or before.version != live else min(before.wait * 2, LONGEST_WAIT)
        until = time.monotonic() + wait.total_seconds()
        self._refused = _Refused(version=live, fault=self.fault, wait=wait, until=until)

    def _expected_digest(self, live: FollowedVersion) -> str:
        if self._sealed is None:
            expected = live.tagged_digest
        else:
            found = self._sealed.sealed(self.lineage, live.version)
            if found is None:
                raise IntegrityBroken(
                    f"expected a version that Corrigenda registered, got {live.version}, unknown to it"
                )
            if not found.is_approved:
                raise IntegrityBroken(f"expected an approved snapshot, got {found.seq}, which is not")
            expected = found.package_digest or ""
        if not expected:
            raise IntegrityBroken(
                "expected a digest of the version's files, got none: `corrigenda register-again` makes one with it"
            )
        return expected

    def _loaded(self, live: FollowedVersion, package_digest: str) -> ServedSnapshot:
        """Put a version together beside the one that is live, and see that it answers."""
        files = self._files.of(live, package_digest)
        base = self._bases.get(files.base, files.inner_params)
        edited = base.edited(
            digest=files.digest,
            inner_param_names=files.inner_params,
            accumulator=files.accumulator,
            deltas=files.deltas,
        )
        answerable = AnswerableSnapshot(base=base, edited=edited)
        self._thread.between_steps(lambda: warm_up(answerable))
        return ServedSnapshot(version=live, package_digest=package_digest, files=files, answerable=answerable)

    def _swap(self, served: ServedSnapshot) -> None:
        before, self.serving = self.serving, served
        self.previous = before
        self.num_swaps += 1
        log.info(
            "%s: snapshot %s is served, version %s in MLflow", self.lineage, served.files.seq, served.version.version
        )
        self._touch_files()

    def _touch_files(self) -> None:
        """Note that the files of what is loaded are in use."""
        self._files.touch(one.files for one in (self.serving, self.previous) if one is not None)
        self._touched_at = time.monotonic()

    def _leave_what_was_withdrawn(self) -> None:
        """Go back to the version before, or to none, if what is served is not approved any more."""
        served, before = self.serving, self.previous
        if served is None or self._may_live(served):
            return
        log.warning("%s: version %s is not approved any more", self.lineage, served.version.version)
        if before is None or not self._may_live(before):
            self.serving, self.previous = None, served
            return
        self._swap(before)
        self._files.remember(before.version, before.package_digest)

    def _may_live(self, served: ServedSnapshot) -> bool:
        """Ask the database whether what is loaded is approved still; while nobody can be asked, it is."""
        try:
            return self._sealed is None or self._sealed.is_approved(served.files.snapshot_id)
        except CorrigendaError:
            return True

    def _serve_what_was(self) -> None:
        """Begin with what was served last, where the registry has been away since the start."""
        last = self._files.remembered(self.lineage) if self.serving is None else None
        if last is None:
            return
        version, expected = last
        try:
            with suppress(Unavailable):
                expected = self._expected_digest(version)
            self._swap(self._loaded(version, expected))
        except UNUSABLE as error:
            self.fault = f"{self.fault}; version {version.version}, served last, is refused: {one_line(error)}"


def warm_up(snapshot: AnswerableSnapshot) -> None:
    """Run one forward with a snapshot's weights.

    Raises:
        EditorFailed: if what comes out is no number.
    """
    model = snapshot.base.model
    snapshot.base.use(snapshot.edited)
    with torch.no_grad():
        logits = model.decoding([model.encode_raw("The") or (0,)]).begin()
    if not bool(torch.isfinite(logits).all()):
        raise EditorFailed("expected finite logits of a first forward, got NaN or infinity")


def require_live(follower: Follower) -> ServedSnapshot:
    """Return what a lineage is served with.

    Raises:
        Unavailable: if nothing is loaded yet.
    """
    if follower.serving is None:
        reason = follower.fault or "it is being loaded"
        raise Unavailable(f"expected a snapshot of {follower.lineage!r} to be loaded, got none: {reason}")
    return follower.serving
