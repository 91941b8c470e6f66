"""The command that checks audit chains: by themselves, and by the anchors in MLflow."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.adapters.login_names import Login
from pipeline.bootstrap import anchor_checker, anchor_notes, package_checker, stores
from pipeline.domain.audit import SYSTEM_CHAIN, AnchorReport, ChainBreak
from pipeline.domain.errors import CorrigendaError, InvalidInput
from pipeline.domain.formats.counting import counted
from pipeline.entrypoints.console import ExitCode, JsonOption, complain, exit_code, print_json, say, told
from pipeline.entrypoints.local_settings import current_settings
from pipeline.services.registry.anchoring import check_notes

if TYPE_CHECKING:
    from pipeline.config import Settings
    from pipeline.services.registry.package_checking import PackageCheck

ChainArgument = Annotated[str | None, typer.Argument(help="A lineage, or system; all chains if left out.")]
MlflowOption = Annotated[bool, typer.Option("--mlflow/--no-mlflow", help="Compare with anchors and files in MLflow.")]


def audit_verify(
    chain: ChainArgument = None,
    mlflow: MlflowOption = True,
    every_version: Annotated[
        bool, typer.Option("--every-version", help="Check the files of every model version, not of champion and head.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check every line of a chain, or of all, by itself and by the anchors in MLflow, and the files there.

    Exit status 1 names the first bad line: one that does not follow, or that an anchor contradicts; or a version whose
    files are not what was registered. 4 (3 where no MLflow is named) says that all lines follow, but that MLflow could
    not be asked: a chain that was rewritten from some line on looks so too.

    Example: corrigenda audit verify
    """
    settings = current_settings(Login.auditor)
    chains = stores(settings).audit.chains()
    if chain and chain not in chains:
        raise InvalidInput(f"expected a chain, one of {', '.join(chains)}; got {chain}")
    checked = [
        _checked(settings, name, with_mlflow=mlflow, every=every_version) for name in ([chain] if chain else chains)
    ]
    if as_json:
        print_json([one.as_json() for one in checked])
    reasons: set[str | None] = set()
    for one in [] if as_json else checked:
        (complain if one.first_break or one.unasked else say)(one.sentence(is_reason_told=one.reason in reasons))
        reasons.add(one.reason)
        for version in one.versions:
            _tell_version(version)
    if any(one.is_broken for one in checked):
        raise typer.Exit(ExitCode.failed)
    if unasked := next((one.unasked for one in checked if one.unasked), None):
        raise typer.Exit(exit_code(unasked))


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedChain:
    """What was found out about one chain."""

    chain: str
    """Name of the chain."""
    lines: int
    """How many lines its recorded head counts."""
    head: str
    """Hash of its recorded head."""
    own_break: ChainBreak | None
    """The first line that does not follow the one before, or lacks its hash."""
    anchors: AnchorReport | None
    """What the anchors say; None where they were not asked."""
    notes: AnchorReport | None
    """What the anchor file says; None where the settings name none."""
    versions: tuple[PackageCheck, ...]
    """What was found of the files of model versions."""
    unasked: CorrigendaError | None
    """Why MLflow could not be asked."""

    @property
    def first_break(self) -> ChainBreak | None:
        """The first line that is wrong, by itself or by an anchor."""
        by_anchors = [one.contradiction for one in (self.anchors, self.notes) if one]
        found = [one for one in (self.own_break, *by_anchors) if one]
        return min(found, key=lambda one: one.seq, default=None)

    @property
    def reason(self) -> str | None:
        """Why MLflow could not be asked, without what was to be read there; None if it was, or a line is broken."""
        if self.unasked is None or self.first_break:
            return None
        sentence = told(self.unasked)[0]
        return sentence.partition(": ")[2] or sentence

    @property
    def is_broken(self) -> bool:
        """Whether a line or a file is not what it was."""
        return self.first_break is not None or any(one.is_bound and one.fault is not None for one in self.versions)

    def as_json(self) -> dict[str, Any]:
        """Return it for `--json`; `anchors` is null where they were not compared."""
        return {
            "chain": self.chain,
            "lines": self.lines,
            "head": self.head,
            "break": asdict(self.first_break) if self.first_break else None,
            "anchors": asdict(self.anchors) if self.anchors else None,
            "anchor_file": asdict(self.notes) if self.notes else None,
            "versions": [asdict(one) for one in self.versions],
            "not_checked": f"anchors and files in MLflow: {told(self.unasked)[0]}" if self.unasked else None,
        }

    def sentence(self, *, is_reason_told: bool) -> str:
        """Return it for people, and say what was not checked.

        Args:
            is_reason_told: whether another chain's sentence says already why MLflow could not be asked.
        """
        if self.first_break:
            return f"{self.chain}: broken at line {self.first_break.seq}: {self.first_break.reason}"
        follows = f"{self.chain}: {counted(self.lines, 'line')}, every one follows the one before"
        if self.notes:
            follows += (
                f"; {self.notes.num_agreeing} anchors of the file agree, the newest of line {self.notes.newest_seq}"
            )
        if self.unasked:
            why = " either" if is_reason_told else f": {told(self.unasked)[0]}"
            return f"{follows}; anchors and files in MLflow were not checked{why}"
        if self.anchors is None:
            return f"{follows}; MLflow was not asked"
        if not self.anchors.num_agreeing:
            return f"{follows}; no anchor yet"
        agreeing = counted(self.anchors.num_agreeing, "anchor agrees", "anchors agree")
        return f"{follows}; {agreeing}, the newest of line {self.anchors.newest_seq}"


def _checked(settings: Settings, chain: str, *, with_mlflow: bool, every: bool) -> CheckedChain:
    audit = stores(settings).audit
    own_break = audit.verify(chain)
    file = anchor_notes(settings)
    notes = check_notes(audit, chain, file) if file else None
    anchors: AnchorReport | None = None
    versions: tuple[PackageCheck, ...] = ()
    unasked: CorrigendaError | None = None
    try:
        if with_mlflow:
            anchors = anchor_checker(settings).check(chain)
        if with_mlflow and chain != SYSTEM_CHAIN:
            versions = tuple(package_checker(settings).check(chain, every=every))
    except CorrigendaError as error:
        unasked = error
    seq, head = audit.head(chain)
    return CheckedChain(
        chain=chain,
        lines=seq,
        head=head,
        own_break=own_break,
        anchors=anchors,
        notes=notes,
        versions=versions,
        unasked=unasked,
    )


def _tell_version(version: PackageCheck) -> None:
    about = f"{version.lineage}: model version {version.version} of snapshot {version.seq}"
    if version.fault is None:
        say(f"{about}, every file is what was registered")
    else:
        (complain if version.is_bound else say)(f"{about}: {version.fault}")
