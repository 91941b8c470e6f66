"""What the holder of a lease is doing, and since when: a sign of life for whoever waits.

It is told as the work goes on, and is no history: the next piece of work writes over it.
"""

from __future__ import annotations

from migrations.script import run_script

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns. Whoever may write leases may write them, and whoever reads leases sees them."""
    run_script("ALTER TABLE leases ADD COLUMN doing jsonb, ADD COLUMN doing_since timestamptz")


def downgrade() -> None:
    """Take the columns away."""
    run_script("ALTER TABLE leases DROP COLUMN doing, DROP COLUMN doing_since")
