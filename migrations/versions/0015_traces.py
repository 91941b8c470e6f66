"""Where a trace goes on: the W3C traceparent of each request and of each snapshot, for those that have one."""

from __future__ import annotations

from migrations.script import run_script

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

COLUMNS = """
ALTER TABLE edit_requests ADD COLUMN traceparent text;
ALTER TABLE snapshots ADD COLUMN traceparent text;
"""


def upgrade() -> None:
    """Add the columns. Logins that insert these rows fill them; nobody changes them later."""
    run_script(COLUMNS)


def downgrade() -> None:
    """Take the columns away: traces end where they were going on."""
    run_script("ALTER TABLE snapshots DROP COLUMN traceparent; ALTER TABLE edit_requests DROP COLUMN traceparent;")
