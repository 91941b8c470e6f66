"""Many rows in one statement, however many there are.

copy_rows(connection, dead_letters, [{"dead_letter_id": …, "value": …}, …])
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import psycopg
from psycopg import sql
from sqlalchemy import Connection, Table
from sqlalchemy.dialects.postgresql import JSONB


def copy_rows(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows by COPY; an INSERT of each row costs the server and us several times as much.

    Args:
        connection: in a transaction.
        table: where they go.
        rows: all with the same columns; values of JSON columns are plain values.

    Raises:
        psycopg.Error: as an INSERT would.
    """
    if not rows:
        return
    names = list(rows[0])
    columns = sql.SQL(", ").join(map(sql.Identifier, names))
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(table.name), columns)
    written = [_as_json if isinstance(table.c[name].type, JSONB) else _as_it_is for name in names]
    driver = cast(psycopg.Connection[Any], connection.connection.driver_connection)
    with driver.cursor() as cursor, cursor.copy(statement) as copy:
        for row in rows:
            copy.write_row([write(row[name]) for write, name in zip(written, names, strict=True)])


def _as_json(value: Any) -> str:
    return "[]" if value == [] else json.dumps(value)  # most lists of most rows are empty


def _as_it_is(value: Any) -> Any:
    return value
