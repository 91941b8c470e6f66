"""Registers entries and remembers the digests of their files, as the database does."""

from __future__ import annotations

from dataclasses import replace

from pipeline.services.registry.registry_ports import Registry, RegistryEntry

_SEALS: dict[str, str] = {}


def registered(registry: Registry, made: RegistryEntry) -> str:
    """Register an entry with what was sealed for its snapshot before, if anything was; return the version."""
    snapshot_id = made.snapshot.snapshot_id

    def seal(package_digest: str) -> None:
        _SEALS[snapshot_id] = package_digest

    known = replace(made.snapshot, package_digest=_SEALS.get(snapshot_id))
    return registry.register(replace(made, snapshot=known), seal=seal)


def package_of(made: RegistryEntry) -> str:
    """Return the digest that was sealed last for the snapshot of an entry."""
    return _SEALS[made.snapshot.snapshot_id]
