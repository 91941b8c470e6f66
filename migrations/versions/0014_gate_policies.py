"""Commands may change a lineage's gate policy, which until now stayed as it was made."""

from __future__ import annotations

from migrations.script import run_script

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Let the console's login write the policy; a reviewer's does not, who decides by it."""
    run_script("GRANT UPDATE (policy) ON lineages TO corrigenda_console")


def downgrade() -> None:
    """Take that right away."""
    run_script("REVOKE UPDATE (policy) ON lineages FROM corrigenda_console")
