"""Active sets as intervals: an edit is active from one snapshot until another, and no snapshot copies its set.

A row of `edit_rows` is one activation of an edit. History has no forks, so a snapshot's active set is every edit whose
`int4range(since_seq, until_seq)` holds its seq. `place` counts the activations of a lineage without gaps: it is their
age, and what the retention sample is drawn from. The indexes are those that a batch needs to cost what it holds.

Going down gives every snapshot a copy of its set back, unless one has a digest that the version before cannot check.
"""

from __future__ import annotations

from importlib import import_module

from alembic import op
from sqlalchemy import text

from migrations.script import run_script
from pipeline.domain.errors import Misconfigured

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

before = import_module("migrations.versions.0003_views")

# A batch that is being committed comes first or fails; in the order of a commit's own locks.
LOCK = "LOCK TABLE leases, lineages, snapshots, edit_requests, edit_rows{more} IN ACCESS EXCLUSIVE MODE"

# A run of snapshots that hold an edit begins where its ledger rows were written, and is one interval.
COLLECT = """
SET LOCAL statement_timeout = 0;
CREATE TEMPORARY TABLE activations ON COMMIT DROP AS
WITH held AS (
    SELECT h.edit_id, s.lineage_id, s.seq, r.snapshot_id AS brought_by, r.rows,
           count(r.snapshot_id) OVER (PARTITION BY h.edit_id ORDER BY s.seq) AS ordinal
    FROM snapshot_edits h
    JOIN snapshots s USING (snapshot_id)
    LEFT JOIN edit_rows r ON r.edit_id = h.edit_id AND r.snapshot_id = h.snapshot_id
)
SELECT edit_id, lineage_id, ordinal, min(seq) AS since_seq, max(seq) AS last_seq, count(*) AS num_snapshots,
       (array_agg(brought_by) FILTER (WHERE brought_by IS NOT NULL))[1] AS snapshot_id,
       (array_agg(rows) FILTER (WHERE brought_by IS NOT NULL))[1] AS rows
FROM held GROUP BY edit_id, lineage_id, ordinal;
CREATE TEMPORARY TABLE sizes ON COMMIT DROP AS
SELECT snapshot_id, count(*) AS num_active FROM snapshot_edits GROUP BY snapshot_id;
"""

BROKEN = "SELECT count(*) FROM activations WHERE ordinal = 0 OR num_snapshots <> last_seq - since_seq + 1"

TABLES = """
DROP TABLE edit_rows, snapshot_edits;
CREATE TABLE edit_rows (
    lineage_id uuid NOT NULL,
    place integer NOT NULL,
    edit_id uuid NOT NULL,
    snapshot_id uuid NOT NULL,
    since_seq integer NOT NULL,
    until_seq integer,
    rows jsonb NOT NULL,
    CONSTRAINT pk_edit_rows PRIMARY KEY (lineage_id, place),
    CONSTRAINT uq_edit_rows_edit_id_since_seq UNIQUE (edit_id, since_seq),
    CONSTRAINT ck_edit_rows_some_time CHECK (until_seq > since_seq),
    CONSTRAINT fk_edit_rows_lineage_id FOREIGN KEY (lineage_id) REFERENCES lineages (lineage_id) ON DELETE RESTRICT,
    CONSTRAINT fk_edit_rows_edit_id FOREIGN KEY (edit_id) REFERENCES edit_requests (edit_id) ON DELETE RESTRICT,
    CONSTRAINT fk_edit_rows_snapshot_id FOREIGN KEY (snapshot_id) REFERENCES snapshots (snapshot_id) ON DELETE RESTRICT
);
ALTER TABLE lineages ADD COLUMN num_activations integer NOT NULL DEFAULT 0;
ALTER TABLE snapshots
    ADD COLUMN num_active integer NOT NULL DEFAULT 0,
    ADD COLUMN digest_form text NOT NULL DEFAULT 'list',
    ADD CONSTRAINT ck_snapshots_digest_form_known CHECK (digest_form IN ('list', 'chain'));
"""

FILL = """
INSERT INTO edit_rows (lineage_id, place, edit_id, snapshot_id, since_seq, until_seq, rows)
SELECT a.lineage_id,
       row_number() OVER (PARTITION BY a.lineage_id
                          ORDER BY a.since_seq, e.occurred_at, e.topic, e.partition, e."offset", e.edit_id),
       a.edit_id, a.snapshot_id, a.since_seq, CASE WHEN a.last_seq < l.seq THEN a.last_seq + 1 END, a.rows
FROM activations a JOIN edit_requests e USING (edit_id) JOIN lineages l ON l.lineage_id = a.lineage_id;
UPDATE lineages l SET num_activations = (SELECT count(*) FROM edit_rows r WHERE r.lineage_id = l.lineage_id);
UPDATE snapshots s SET num_active = z.num_active FROM sizes z WHERE z.snapshot_id = s.snapshot_id;
ALTER TABLE snapshots ALTER COLUMN digest_form SET DEFAULT 'chain', ALTER COLUMN num_active DROP DEFAULT;
"""

INDEXES = """
CREATE UNIQUE INDEX uq_edit_rows_active ON edit_rows (edit_id) WHERE until_seq IS NULL;
CREATE INDEX ix_edit_rows_active_places ON edit_rows (lineage_id, place) WHERE until_seq IS NULL;
CREATE INDEX ix_edit_rows_left ON edit_rows (lineage_id, until_seq) WHERE until_seq IS NOT NULL;
CREATE INDEX ix_edit_rows_snapshot_id ON edit_rows (snapshot_id);
DROP INDEX ix_edit_requests_conflict_key;
CREATE INDEX ix_edit_requests_waiting_key ON edit_requests USING hash (conflict_key) WHERE status = 'received';
CREATE INDEX ix_edit_requests_held_key ON edit_requests USING hash (conflict_key) WHERE status = 'snapshotted';
CREATE INDEX ix_edit_requests_claimed ON edit_requests (lineage_id) WHERE status = 'claimed';
CREATE INDEX ix_edit_requests_front
    ON edit_requests (lineage_id, occurred_at, topic, partition, "offset", edit_id) WHERE status = 'received';
CREATE INDEX ix_edit_requests_superseded_by ON edit_requests (superseded_by) WHERE superseded_by IS NOT NULL;
CREATE INDEX ix_edit_batches_open ON edit_batches (lineage_id) WHERE finished_at IS NULL;
"""

# An activation ends once; its ledger rows may move into another file.
GUARDS = """
CREATE TRIGGER keeps_history BEFORE DELETE OR TRUNCATE ON edit_rows
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
ALTER TABLE edit_rows ENABLE ALWAYS TRIGGER keeps_history;
CREATE TRIGGER ends_once BEFORE UPDATE ON edit_rows FOR EACH ROW
    WHEN (OLD.until_seq IS NOT NULL AND NEW.until_seq IS DISTINCT FROM OLD.until_seq)
    EXECUTE FUNCTION refuse_change();
GRANT SELECT, INSERT ON edit_rows TO corrigenda_app;
GRANT UPDATE (until_seq, rows) ON edit_rows TO corrigenda_app;
GRANT UPDATE (num_activations) ON lineages TO corrigenda_app;
"""

HOLDS_CHAMPION = """EXISTS (
            SELECT FROM edit_rows c JOIN snapshots x ON x.snapshot_id = l.champion_snapshot_id
            WHERE c.edit_id = e.edit_id AND int4range(c.since_seq, c.until_seq) @> x.seq
        )
"""

EDIT_HISTORY = {
    "EXISTS (SELECT FROM snapshot_edits h WHERE h.snapshot_id = l.head_snapshot_id AND h.edit_id = e.edit_id)": (
        "EXISTS (SELECT FROM edit_rows h WHERE h.edit_id = e.edit_id AND h.until_seq IS NULL)"
    ),
    "EXISTS (SELECT FROM snapshot_edits c WHERE c.snapshot_id = l.champion_snapshot_id AND c.edit_id = e.edit_id)\n": (
        HOLDS_CHAMPION
    ),
    "SELECT min(x.seq) AS first_seq, max(x.seq) AS last_seq\n"
    "    FROM snapshot_edits a JOIN snapshots x USING (snapshot_id) WHERE a.edit_id = e.edit_id": (
        "SELECT min(a.since_seq) AS first_seq, max(a.until_seq) AS left_seq\n"
        "    FROM edit_rows a WHERE a.edit_id = e.edit_id"
    ),
    "span.last_seq + 1 END": "span.left_seq END",
    "FROM approvals p JOIN snapshot_edits a ON a.snapshot_id = p.snapshot_id AND a.edit_id = e.edit_id": (
        "FROM edit_rows a JOIN approvals p ON p.lineage_id = a.lineage_id "
        "JOIN snapshots x ON x.snapshot_id = p.snapshot_id"
    ),
    "WHERE p.decision = 'approved' AND p.refusal IS NULL": (
        "WHERE a.edit_id = e.edit_id AND int4range(a.since_seq, a.until_seq) @> x.seq\n"
        "      AND p.decision = 'approved' AND p.refusal IS NULL"
    ),
}

LINEAGE_HISTORY = {
    "sets.num_active, sets": "s.num_active, sets",
    "count(now_held.edit_id) AS num_active,\n"
    "        count(*) FILTER (WHERE was_held.edit_id IS NULL) AS num_added,\n"
    "        count(*) FILTER (WHERE now_held.edit_id IS NULL) AS num_left\n"
    "    FROM (SELECT edit_id FROM snapshot_edits WHERE snapshot_id = s.snapshot_id) now_held\n"
    "    FULL JOIN (SELECT edit_id FROM snapshot_edits WHERE snapshot_id = s.parent_id) was_held USING (edit_id)": (
        "(SELECT count(*) FROM edit_rows r WHERE r.snapshot_id = s.snapshot_id) AS num_added,\n"
        "        (SELECT count(*) FROM edit_rows r WHERE r.lineage_id = s.lineage_id AND r.until_seq = s.seq)"
        " AS num_left"
    ),
}

LIVE_EDITS = {
    "JOIN snapshot_edits a ON a.snapshot_id = c.snapshot_id": (
        "JOIN edit_rows a ON a.lineage_id = l.lineage_id AND int4range(a.since_seq, a.until_seq) @> c.seq"
    ),
    "SELECT min(x.seq) AS since_seq FROM snapshot_edits y JOIN snapshots x USING (snapshot_id)\n"
    "    WHERE y.edit_id = e.edit_id": (
        "SELECT min(y.since_seq) AS since_seq FROM edit_rows y WHERE y.edit_id = e.edit_id"
    ),
}

CHAINED = "SELECT EXISTS (SELECT FROM snapshots WHERE digest_form = 'chain')"

BACK = """
CREATE TEMPORARY TABLE activations ON COMMIT DROP AS SELECT * FROM edit_rows;
CREATE TEMPORARY TABLE held ON COMMIT DROP AS
SELECT s.snapshot_id, r.edit_id FROM edit_rows r
JOIN snapshots s ON s.lineage_id = r.lineage_id AND int4range(r.since_seq, r.until_seq) @> s.seq;
DROP TABLE edit_rows;
CREATE TABLE edit_rows (
    edit_id uuid NOT NULL,
    snapshot_id uuid NOT NULL,
    rows jsonb NOT NULL,
    CONSTRAINT pk_edit_rows PRIMARY KEY (edit_id, snapshot_id),
    CONSTRAINT fk_edit_rows_edit_id FOREIGN KEY (edit_id) REFERENCES edit_requests (edit_id) ON DELETE RESTRICT,
    CONSTRAINT fk_edit_rows_snapshot_id FOREIGN KEY (snapshot_id) REFERENCES snapshots (snapshot_id) ON DELETE RESTRICT
);
CREATE TABLE snapshot_edits (
    snapshot_id uuid NOT NULL,
    edit_id uuid NOT NULL,
    CONSTRAINT pk_snapshot_edits PRIMARY KEY (snapshot_id, edit_id),
    CONSTRAINT fk_snapshot_edits_snapshot_id FOREIGN KEY (snapshot_id)
        REFERENCES snapshots (snapshot_id) ON DELETE RESTRICT,
    CONSTRAINT fk_snapshot_edits_edit_id FOREIGN KEY (edit_id) REFERENCES edit_requests (edit_id) ON DELETE RESTRICT
);
CREATE INDEX ix_snapshot_edits_edit_id ON snapshot_edits (edit_id);
INSERT INTO edit_rows SELECT edit_id, snapshot_id, rows FROM activations;
INSERT INTO snapshot_edits SELECT snapshot_id, edit_id FROM held;
ALTER TABLE lineages DROP COLUMN num_activations;
ALTER TABLE snapshots DROP COLUMN num_active, DROP COLUMN digest_form;
DROP INDEX ix_edit_requests_waiting_key, ix_edit_requests_held_key, ix_edit_requests_claimed, ix_edit_requests_front,
    ix_edit_requests_superseded_by, ix_edit_batches_open;
CREATE INDEX ix_edit_requests_conflict_key ON edit_requests USING hash (conflict_key);
CREATE TRIGGER keeps_history BEFORE DELETE OR TRUNCATE ON edit_rows
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER keeps_history BEFORE DELETE OR TRUNCATE ON snapshot_edits
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
ALTER TABLE edit_rows ENABLE ALWAYS TRIGGER keeps_history;
ALTER TABLE snapshot_edits ENABLE ALWAYS TRIGGER keeps_history;
GRANT SELECT, INSERT ON edit_rows, snapshot_edits TO corrigenda_app;
"""


def upgrade() -> None:
    """Turn the sets into intervals, and read the views from them."""
    run_script(LOCK.format(more=", snapshot_edits"))
    run_script(COLLECT)
    if broken := op.get_bind().scalar(text(BROKEN)):
        raise Misconfigured(f"expected ledger rows at the start of every activation, got {broken} edits without")
    before.downgrade()
    for statements in (TABLES, FILL, INDEXES, GUARDS):
        run_script(statements)
    run_script(changed(before.EDIT_HISTORY, EDIT_HISTORY))
    run_script(changed(before.LINEAGE_HISTORY, LINEAGE_HISTORY))
    run_script(changed(before.LIVE_EDITS, LIVE_EDITS))
    run_script(f"GRANT SELECT ON {', '.join(before.VIEWS)} TO corrigenda_app, corrigenda_auditor")


def downgrade() -> None:
    """Give every snapshot a copy of its set again."""
    run_script(LOCK.format(more=""))
    if op.get_bind().scalar(text(CHAINED)):
        raise Misconfigured("expected no snapshot whose digest version 0003 cannot check, got history that holds one")
    before.downgrade()
    run_script(BACK)
    before.upgrade()


def changed(view: str, changes: dict[str, str]) -> str:
    """A view of the revision before with some of its lines read from intervals."""
    for old, new in changes.items():
        if view.count(old) != 1:
            raise AssertionError(f"expected once in the view of 0003: {old}")
        view = view.replace(old, new)
    return view
