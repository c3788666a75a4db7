"""Rows of ``outmail_outbox`` as a store reads them: what columns a row has, how much is taken at a time, and
the verb that takes rows of a table in the store's own database.

Promises: whoever may write rows may write anything, and SQLite's columns take anything: text, id and envelope
are read as bytes, at most `MOST` of each. `take` deletes and returns rows in the transaction that stores
their messages, so a row is in the table or in the queue, never in both or in neither.
Does not: understand what a row asks for, or open another database (`outmail.transactional` does both).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from outmail.store import Verb
from outmail.store.verbs.rows import LISTED

#: Rows, and bytes of content, taken over at a time.
BATCH = 200
BATCH_BYTES = 16 * 1024 * 1024
#: Bytes of content, and of an envelope, that are read of one row. A longer one is no mail.
MOST = 256 * 1024 * 1024


@dataclass(slots=True)
class Row:
    """One row of ``outmail_outbox``. Nothing of it is checked: ``id`` is the beginning of what stands there,
    ``envelope`` is meant to be JSON. ``size`` counts content and envelope, read or not.
    """

    n: int
    id: str
    content: bytes
    envelope: bytes
    size: int


def row_of(n: int, id: Any, kind: str, content: Any, envelope: Any, size: int, encoding: str) -> Row:
    """What `COLUMNS` gave. ``kind``: of the content; ``encoding``: of the database's texts."""
    return Row(
        n,
        _utf8(id, encoding).decode("utf-8", "replace"),
        _utf8(content, encoding if kind == "text" else ""),
        _utf8(envelope, encoding),
        size,
    )


def _utf8(value: Any, encoding: str) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8", "replace")
    if encoding in ("", "UTF-8"):
        return bytes(value or b"")
    return bytes(value or b"").decode(encoding, "replace").encode("utf-8", "replace")


BYTES = (
    "CASE typeof(content) WHEN 'blob' THEN length(content) ELSE coalesce(length(CAST(content AS BLOB)), "
    "0) END + coalesce(length(CAST(envelope AS BLOB)), 0)"
)
COLUMNS = (
    "n, substr(CAST(id AS BLOB), 1, 100), typeof(content),"
    f" CASE WHEN typeof(content) = 'blob' AND length(content) <= {MOST} THEN content ELSE "
    f"substr(CAST(content AS BLOB), 1, {MOST}) END,"
    f" substr(CAST(envelope AS BLOB), 1, {MOST}), {BYTES}, (SELECT encoding FROM pragma_encoding)"
)
#: The same two on PostgreSQL.
PG_BYTES = "octet_length(content) + octet_length(envelope)"
PG_COLUMNS = (
    f"n, left(id, 100), 'blob', substr(content, 1, {MOST}), left(envelope, {MOST}), {PG_BYTES}, 'UTF-8'"
)

#: `postgres.dialect` runs the second pair instead, which skips rows that another engine is taking.
TAKE = f"SELECT n, {BYTES} FROM outmail_outbox WHERE store IS NULL OR store = ? ORDER BY n LIMIT ?"
TAKEN = f"DELETE FROM outmail_outbox WHERE n {LISTED} RETURNING {COLUMNS}"
PG_TAKE = TAKE.replace(BYTES, PG_BYTES) + " FOR UPDATE SKIP LOCKED"
PG_TAKEN = TAKEN.replace(COLUMNS, PG_COLUMNS)


def take(claimant: str) -> Verb[list[Row]]:
    """Part of a store's own transaction: rows of a table beside it are deleted and returned, oldest first.
    They are locked from the look to the commit, so a number is enough.
    """
    fit = within((yield TAKE, (claimant, BATCH)))
    rows = (yield TAKEN, (json.dumps(fit),)) if fit else []
    return [row_of(*row) for row in sorted(rows, key=lambda row: row[0])]


def within(sizes: Sequence[tuple[int, int]]) -> list[int]:
    """(number, bytes) → the numbers of the first ones that fit a batch; at least one."""
    taken: list[int] = []
    room = BATCH_BYTES
    for n, size in sizes:
        room -= size
        if room < 0 and taken:
            break
        taken.append(n)
    return taken
