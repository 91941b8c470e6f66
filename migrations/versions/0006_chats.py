"""Corrections as people ask: a question, the chat that went wrong, an answer as a sentence, the subject's other names.

Rows from before read as they were, and workers of the version before go on: what they do not write has a default. The
views show the new columns after their others.

Going down is refused while a request has any of them: the version before would edit something else than was asked.
"""

from __future__ import annotations

from importlib import import_module

from alembic import op
from sqlalchemy import text

from migrations.script import run_script
from pipeline.domain.errors import Misconfigured

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

views = import_module("migrations.versions.0003_views")
intervals = import_module("migrations.versions.0004_intervals")

COLUMNS = """
ALTER TABLE edit_requests
    ADD COLUMN question text,
    ADD COLUMN messages jsonb NOT NULL DEFAULT '[]',
    ADD COLUMN answer text,
    ADD COLUMN aliases jsonb NOT NULL DEFAULT '[]';
"""

BACK = """
ALTER TABLE edit_requests DROP COLUMN question, DROP COLUMN messages, DROP COLUMN answer, DROP COLUMN aliases;
"""

USED = """
SELECT EXISTS (
    SELECT FROM edit_requests
    WHERE question IS NOT NULL OR answer IS NOT NULL OR messages <> '[]' OR aliases <> '[]'
)
"""

ASKED = "e.question, e.messages, e.answer, e.aliases"
COMMENTS = """
COMMENT ON COLUMN edit_history.prompt IS 'The stem; of a correction that came only as a chat, the user''s last turn.';
COMMENT ON COLUMN edit_history.messages IS 'The chat that went wrong, oldest turn first: [{role, content}, ...].';
"""


def upgrade() -> None:
    """Add the columns, and show them in both views of edits."""
    run_script(COLUMNS)
    for view, last in ((_edit_history(), "held.is_in_head, held.is_live\n"), (_live_edits(), "c.registry_version\n")):
        run_script(_shown(view, last))
    run_script(COMMENTS)


def downgrade() -> None:
    """Take the columns away, if nothing is in them."""
    run_script("LOCK TABLE edit_requests IN ACCESS EXCLUSIVE MODE")
    if op.get_bind().scalar(text(USED)):
        raise Misconfigured(
            "expected no correction with a question, messages, an answer or aliases, which version 0005 cannot make; "
            "got some in edit_requests"
        )
    run_script("DROP VIEW edit_history, live_edits")
    run_script(BACK)
    for view in (_edit_history(), _live_edits()):
        run_script(view)
    run_script("GRANT SELECT ON edit_history, live_edits TO corrigenda_app, corrigenda_auditor")


def _edit_history() -> str:
    return str(intervals.changed(views.EDIT_HISTORY, intervals.EDIT_HISTORY))


def _live_edits() -> str:
    return str(intervals.changed(views.LIVE_EDITS, intervals.LIVE_EDITS))


def _shown(view: str, last: str) -> str:
    """Return the statement that puts the new columns after the last one of a view, which keeps its grants."""
    made = view.replace("CREATE VIEW", "CREATE OR REPLACE VIEW", 1)
    return str(intervals.changed(made, {f"{last}FROM": f"{last.rstrip()}, {ASKED}\nFROM"}))
