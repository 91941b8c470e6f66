"""What tests of the HTTP API and the pages share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.web_rig import WebRig


@pytest.fixture
def web(postgres_url: str, tmp_path: Path, pools_close: None) -> WebRig:
    """The HTTP API on the database of this test; what it produces is remembered and not sent."""
    return WebRig(postgres_url, tmp_path)
