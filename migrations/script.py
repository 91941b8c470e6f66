"""Runs SQL as it stands in a revision."""

from __future__ import annotations

from alembic import op


def run_script(sql: str) -> None:
    """Execute statements that are parted by semicolons; colons and percent signs mean themselves."""
    op.get_bind().exec_driver_sql(sql, execution_options={"no_parameters": True})
