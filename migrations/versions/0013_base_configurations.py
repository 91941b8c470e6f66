"""Digests of a base's configurations, for lineages that were made when a base's digest left them out.

They are recorded when ranks load such a lineage next. The digests of its base and its snapshots stay as they are.
"""

from __future__ import annotations

from migrations.script import run_script

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

COLUMN = """
ALTER TABLE lineages ADD COLUMN base_config_digest text;
GRANT UPDATE (base_config_digest) ON lineages TO corrigenda_app, corrigenda_editor;
"""


def upgrade() -> None:
    """Add the column, and let edit workers fill it."""
    run_script(COLUMN)


def downgrade() -> None:
    """Take the column away: such lineages are again known by weights and tokenizer alone."""
    run_script("ALTER TABLE lineages DROP COLUMN base_config_digest")
