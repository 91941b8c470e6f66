"""An index of the subjects that heads hold edits of: names with an edit of their own are no guards of others.

Names are compared without case, as `lower` has it.
"""

from __future__ import annotations

from migrations.script import run_script

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

INDEX = """
CREATE INDEX ix_edit_requests_held_subject ON edit_requests (lineage_id, lower(subject)) WHERE status = 'snapshotted';
"""


def upgrade() -> None:
    """Add the index."""
    run_script(INDEX)


def downgrade() -> None:
    """Take the index away."""
    run_script("DROP INDEX ix_edit_requests_held_subject")
