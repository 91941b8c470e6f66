"""An index of the relations of requests that ended without an active edit: gates ask about their subjects.

Relations are compared without case, as `lower` has it.
"""

from __future__ import annotations

from migrations.script import run_script

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

INDEX = """
CREATE INDEX ix_edit_requests_ended_relation ON edit_requests (lineage_id, lower(relation), received_at)
    WHERE subject IS NOT NULL AND status IN ('rejected', 'superseded', 'reverted', 'dead');
"""


def upgrade() -> None:
    """Add the index."""
    run_script(INDEX)


def downgrade() -> None:
    """Take the index away."""
    run_script("DROP INDEX ix_edit_requests_ended_relation")
