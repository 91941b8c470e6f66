"""Fixtures of the contract tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.store_rig import StoreRig


@pytest.fixture
def rig(postgres_url: str, tmp_path: Path) -> Iterator[StoreRig]:
    """Every store on a fresh database, with one lineage."""
    rig = StoreRig(url=postgres_url, folder=tmp_path)
    rig.new_lineage()
    yield rig
    rig.close()
