"""Commands about signed copies of audit chains."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.adapters.login_names import Login
from pipeline.bootstrap import anchor_source, stores
from pipeline.domain.audit import SYSTEM_CHAIN, Anchor, AuditEvent
from pipeline.domain.errors import IntegrityBroken, InvalidInput
from pipeline.entrypoints.cli.verifying import ChainArgument, MlflowOption
from pipeline.entrypoints.console import ExitCode, JsonOption, complain, print_json, say
from pipeline.entrypoints.local_settings import current_settings

if TYPE_CHECKING:
    from pipeline.adapters.audit_bundle import BundledChain
    from pipeline.adapters.sql.audit import SqlAuditStore
    from pipeline.services.registry.anchoring import AnchorSource

PAGE = 1000


def audit_bundle(
    file: Annotated[Path, typer.Argument(help="File to write.")],
    chain: ChainArgument = None,
    key: Annotated[
        Path | None, typer.Option("--key", help="Signing key; audit-signing.key in the home folder if left out.")
    ] = None,
    mlflow: MlflowOption = True,
) -> None:
    """Write chains, the anchors that MLflow has of them and what was found into one signed file.

    The key is made at first use. What is printed is its public half: give that to whoever checks, by another way than
    the file. Exit status 1 names the first line that is wrong; the bundle has every line all the same, and says so.

    Example: corrigenda audit bundle audit-2026-06.jsonl
    """
    from pipeline.adapters.audit_bundle import public_key_of, signing_key, write_bundle

    settings = current_settings(Login.auditor)
    audit = stores(settings).audit
    known = audit.chains()
    if chain and chain not in known:
        raise InvalidInput(f"expected a chain, one of {', '.join(known)}; got {chain}")
    signer = signing_key(key or settings.home / "audit-signing.key")
    source = anchor_source(settings) if mlflow else None
    chains = (_bundled(audit, name, source) for name in ([chain] if chain else known))
    part = file.with_name(f"{file.name}.part")
    with part.open("wb") as stream:
        broken = write_bundle(stream, chains, key=signer, made_at=datetime.now(UTC))
    part.replace(file)
    say(f"{file} is signed; its public key is {public_key_of(signer)}")
    for one in broken:
        complain(f"corrigenda: {one.chain}: broken at line {one.seq}: {one.reason}; every line is in the bundle")
    if broken:
        raise typer.Exit(ExitCode.failed)


def audit_verify_bundle(
    file: Annotated[Path, typer.Argument(help="A bundle.")],
    public_key: Annotated[str, typer.Option("--public-key", help="As `audit bundle` printed it.")],
    as_json: JsonOption = False,
) -> None:
    """Check a bundle's signature, every line and every anchor in it. It asks no database and no server.

    Exit status 1 says that the file is not what was signed, or names the first line that is wrong.

    Example: corrigenda audit verify-bundle audit-2026-06.jsonl --public-key 6f0c…
    """
    from pipeline.adapters.audit_bundle import check_bundle

    try:
        chains = check_bundle(file, public_key)
    except IntegrityBroken as error:
        complain(f"corrigenda: {error}")
        raise typer.Exit(ExitCode.failed) from None
    if as_json:
        print_json([asdict(one) for one in chains])
    for one in [] if as_json else chains:
        if one.first_break:
            complain(f"{one.chain}: broken at line {one.first_break.seq}: {one.first_break.reason}")
        else:
            say(f"{one.chain}: {one.lines} lines, every one follows the one before; {one.num_anchors} anchors agree")
    if any(one.first_break for one in chains):
        raise typer.Exit(ExitCode.failed)


def _bundled(audit: SqlAuditStore, chain: str, source: AnchorSource | None) -> BundledChain:
    from pipeline.adapters.audit_bundle import BundledChain

    seq, digest = audit.head(chain)
    return BundledChain(
        chain=chain,
        head=Anchor(seq=seq, hash=digest),
        events=_events(audit, chain, until=seq),
        anchors=_anchors(audit, chain, source) if source else (),
    )


def _events(audit: SqlAuditStore, chain: str, *, until: int) -> Iterator[AuditEvent]:
    after = 0
    while page := audit.events(chain, after_seq=after, limit=PAGE):
        for event in page:
            if event.seq > until:
                return
            yield event
        after = page[-1].seq


def _anchors(audit: SqlAuditStore, chain: str, source: AnchorSource) -> Iterator[tuple[str, Anchor]]:
    """Yield what model versions say of a chain; of the chain `system`, those of every lineage."""
    lineages = [name for name in audit.chains() if name != SYSTEM_CHAIN] if chain == SYSTEM_CHAIN else [chain]
    for lineage in lineages:
        for version in source.versions(lineage):
            anchor = version.system_anchor if chain == SYSTEM_CHAIN else version.lineage_anchor
            if anchor is not None:
                yield f"model version {version.version} of {lineage}", anchor
