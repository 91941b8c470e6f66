"""Edits that are made again, in a later snapshot, beside another edit about their subject.

Such an edit stays in the sets that it is in. Its ledger rows are others from then on, and come after those of before.
"""

from __future__ import annotations

from migrations.script import run_script

revision = "0030"
down_revision = "0029"
branch_labels = None
depends_on = None

TABLES = """
ALTER TABLE edit_rows ADD COLUMN remade_seq integer;
GRANT UPDATE (place, remade_seq) ON edit_rows TO corrigenda_editor;
DROP INDEX ix_edit_requests_held_subject;
CREATE INDEX ix_edit_requests_held_subject
    ON edit_requests (lineage_id, lower(subject), received_at) WHERE status = 'snapshotted';
"""

BACK = """
DROP INDEX ix_edit_requests_held_subject;
CREATE INDEX ix_edit_requests_held_subject
    ON edit_requests (lineage_id, lower(subject)) WHERE status = 'snapshotted';
REVOKE UPDATE (place) ON edit_rows FROM corrigenda_editor;
ALTER TABLE edit_rows DROP COLUMN remade_seq;
"""


def upgrade() -> None:
    """Let a worker say where an edit's rows are once it is made again, and find the newest edits about a subject."""
    run_script(TABLES)


def downgrade() -> None:
    """Take the column and the right away; rows that were made again stay where they are."""
    run_script(BACK)
