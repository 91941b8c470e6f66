"""Folders that tests name."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The repository; programs that tests start run here, so that they import this checkout."""
