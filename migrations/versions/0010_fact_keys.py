"""Keys of facts tell apart what readers do: `2⁵` is not `25`, and `Maßen` are not `Massen`.

Each key is made again from the correction that it belongs to. Texts in ASCII have the key that they had, so only the
others are read, a page at a time, whatever the table holds. Corrections that were dropped as duplicates, or that made
way for another fact's, stay as they are; they can be sent again under a new id.

Going down is refused where edits that are active beside each other would get one key.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime

from alembic import op
from sqlalchemy import text

from pipeline.domain.edits import EditRequest
from pipeline.domain.errors import Misconfigured
from pipeline.domain.language.spelling import normalised
from pipeline.domain.prompts import ChatTurn

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

PAGE = 1000
"""Corrections that are read and written together, which bounds the memory."""

READ = text(
    """
    SELECT e.edit_id::text AS edit_id, l.name, e.prompt, e.subject, e.relation, e.messages, e.conflict_key
    FROM edit_requests e JOIN lineages l USING (lineage_id)
    WHERE e.edit_id > CAST(:after AS uuid)
      AND octet_length(concat(l.name, e.prompt, e.subject, e.relation, e.messages::text))
          > char_length(concat(l.name, e.prompt, e.subject, e.relation, e.messages::text))
    ORDER BY e.edit_id LIMIT :page
    """
)
WRITE = text(
    """
    UPDATE edit_requests e SET conflict_key = changed.key
    FROM unnest(CAST(:edit_ids AS uuid[]), CAST(:keys AS text[])) AS changed (edit_id, key)
    WHERE e.edit_id = changed.edit_id
    """
)
SHARED = text(
    "SELECT conflict_key FROM edit_requests WHERE status = 'snapshotted' GROUP BY 1 HAVING count(*) > 1 LIMIT 1"
)
FIRST = "00000000-0000-0000-0000-000000000000"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def upgrade() -> None:
    """Make the keys again under the rule of `pipeline.domain.language.spelling`."""
    _make_again(normalised)


def downgrade() -> None:
    """Make the keys as they were, if no two active edits get the same."""
    _make_again(folded_before)
    shared = op.get_bind().scalar(SHARED)
    if shared is not None:
        raise Misconfigured(
            "expected active edits whose facts version 0009 tells apart, got several under the key " + shared[:200]
        )


def folded_before(said: str) -> str:
    """Return a text as keys were made of it before this revision: NFKC, casefolded, blanks folded."""
    folded = unicodedata.normalize("NFKC", said).casefold()
    return re.sub(r"\s+", " ", folded).strip()


def _make_again(folded: Callable[[str], str]) -> None:
    # Nobody records or claims a correction meanwhile; readers go on.
    op.execute("LOCK TABLE edit_requests IN SHARE ROW EXCLUSIVE MODE")
    connection, after = op.get_bind(), FIRST
    while page := connection.execute(READ, {"after": after, "page": PAGE}).all():
        keys = {row.edit_id: _request(*row[1:6]).fact_key(folded) for row in page}
        changed = [row.edit_id for row in page if keys[row.edit_id] != row.conflict_key]
        if changed:
            connection.execute(WRITE, {"edit_ids": changed, "keys": [keys[edit_id] for edit_id in changed]})
        after = page[-1].edit_id


def _request(
    lineage: str, prompt: str, subject: str | None, relation: str | None, messages: list[dict[str, str]]
) -> EditRequest:
    """Return a correction with what its key is made of."""
    return EditRequest(
        request_id="",
        lineage=lineage,
        prompt=prompt,
        target_new="",
        subject=subject,
        relation=relation,
        messages=tuple(ChatTurn(**turn) for turn in messages),  # type: ignore[arg-type]
        occurred_at=EPOCH,
    )
