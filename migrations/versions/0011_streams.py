"""Side effects keep the order of their stream; what fails for good is given up until a person sends it again.

What is owed when this runs gets all its tries, and results that are owed get the stream of their edit.
"""

from __future__ import annotations

from alembic import op
from sqlalchemy import text

from migrations.script import run_script
from pipeline.domain.errors import Misconfigured

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

STREAMS = """
ALTER TABLE outbox ADD COLUMN stream text, ADD COLUMN claim uuid, ADD COLUMN given_up_at timestamptz;
UPDATE outbox SET attempts = 0, stream = CASE kind WHEN 'result' THEN 'result:' || (payload ->> 'edit_id') END
    WHERE done_at IS NULL;
DROP INDEX ix_outbox_due;
CREATE INDEX ix_outbox_due ON outbox (kind, outbox_id) WHERE done_at IS NULL AND given_up_at IS NULL;
CREATE INDEX ix_outbox_stream ON outbox (stream, outbox_id) WHERE stream IS NOT NULL;
CREATE INDEX ix_outbox_given_up ON outbox (given_up_at) WHERE given_up_at IS NOT NULL AND done_at IS NULL;
"""

BACK = """
DROP INDEX ix_outbox_given_up, ix_outbox_stream, ix_outbox_due;
CREATE INDEX ix_outbox_due ON outbox (next_attempt_at) WHERE done_at IS NULL;
ALTER TABLE outbox DROP COLUMN given_up_at, DROP COLUMN claim, DROP COLUMN stream;
"""


def upgrade() -> None:
    """Add the columns and the indexes."""
    run_script(STREAMS)


def downgrade() -> None:
    """Take them away, unless something was given up that would then be tried for ever."""
    given_up = "SELECT EXISTS (SELECT FROM outbox WHERE given_up_at IS NOT NULL AND done_at IS NULL)"
    if op.get_bind().scalar(text(given_up)):
        raise Misconfigured(
            "expected no side effect that was given up; send them again with `corrigenda outbox resend`"
        )
    run_script(BACK)
