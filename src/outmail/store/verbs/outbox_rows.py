"""Rows of ``outmail_outbox`` as a store reads them: their columns, how many are read at a time, and the verb
that moves rows of a table in the store's own database.

Promises: whoever can write rows can write anything, and SQLite's columns accept any type; so texts, id and
envelope are read as bytes, at most `MOST` of each. `take` deletes and returns rows in the transaction that
stores their messages, so a row is either in the table or in the queue.
Does not: understand what a row asks for, or open another database (`outmail.transactional` does both).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from outmail.store import Verb
from outmail.store.verbs.rows import LISTED

#: Rows, and bytes of content, that are moved in one batch.
BATCH = 200
BATCH_BYTES = 16 * 1024 * 1024
#: How many bytes of the content and of the envelope of a row are read. A longer row is no mail.
MOST = 256 * 1024 * 1024


@dataclass(slots=True)
class Row:
    """One row of ``outmail_outbox``, unchecked. ``id``: the first bytes of that column. ``envelope``: should
    be JSON. ``size``: the bytes of content and envelope, even if not all were read.
    """

    n: int
    id: str
    content: bytes
    envelope: bytes
    size: int


def row_of(n: int, id: Any, kind: str, content: Any, envelope: Any, size: int, encoding: str) -> Row:
    """A row from the values of `COLUMNS`. ``kind``: the type of the content; ``encoding``: the database's
    encoding of text.
    """
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
#: The same two for PostgreSQL.
PG_BYTES = "octet_length(content) + octet_length(envelope)"
PG_COLUMNS = (
    f"n, left(id, 100), 'blob', substr(content, 1, {MOST}), left(envelope, {MOST}), {PG_BYTES}, 'UTF-8'"
)

#: `postgres.dialect` replaces this pair by the next one, which skips rows that another engine is taking.
TAKE = f"SELECT n, {BYTES} FROM outmail_outbox WHERE store IS NULL OR store = ? ORDER BY n LIMIT ?"
TAKEN = f"DELETE FROM outmail_outbox WHERE n {LISTED} RETURNING {COLUMNS}"
PG_TAKE = TAKE.replace(BYTES, PG_BYTES) + " FOR UPDATE SKIP LOCKED"
PG_TAKEN = TAKEN.replace(COLUMNS, PG_COLUMNS)


def take(claimant: str) -> Verb[list[Row]]:
    """Rows of a table in the store's own database are deleted and returned, oldest first, as a part of the
    store's transaction. They are locked until the commit, so a number is enough to delete one.
    """
    fit = within((yield TAKE, (claimant, BATCH)))
    rows = (yield TAKEN, (json.dumps(fit),)) if fit else []
    return [row_of(*row) for row in sorted(rows, key=lambda row: row[0])]


def within(sizes: Sequence[tuple[int, int]]) -> list[int]:
    """(number, bytes) → the numbers of the first rows that fit into a batch; at least one."""
    taken: list[int] = []
    room = BATCH_BYTES
    for n, size in sizes:
        room -= size
        if room < 0 and taken:
            break
        taken.append(n)
    return taken
