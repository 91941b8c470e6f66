"""What tests of the HTTP API and the pages share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.store_rig import StoreRig
from tests.support.web_rig import WebRig


@pytest.fixture
def web(postgres_url: str, tmp_path: Path, pools_close: None) -> WebRig:
    """The HTTP API on the database of this test; what it produces is remembered and not sent."""
    return WebRig(postgres_url, tmp_path)


@pytest.fixture
def rig(postgres_url: str, tmp_path: Path) -> Iterator[StoreRig]:
    """The stores of the same database, which has the lineage `facts`."""
    made = StoreRig(url=postgres_url, folder=tmp_path)
    made.new_lineage()
    yield made
    made.close()
