"""SQL and row helpers that several of the verbs' modules share.

Promises: statements that SQLite and PostgreSQL both understand (`postgres.dialect` translates the few marks
that differ). Does not: change the queue by itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from outmail.store import Verb

#: Content longer than this is kept in pieces.
LONG = 1024 * 1024
PIECE = 256 * 1024
#: A condition on a column: one of many numbers, which are one parameter (`json_list`). PostgreSQL has another
#: form of it (`postgres.dialect`).
LISTED = "IN (SELECT value FROM json_each(?))"

#: Begins what stands for the id where a message is gone and its number is kept. No id has a dot.
GONE = "gone."

BODY = "INSERT INTO body (seq, content) VALUES (?,?)"

EVENT = (
    "INSERT INTO event (at, event, message, n, state, uncertain, reason, attempts, attempt) VALUES "
    "(?,?,?,?,?,?,?,?,?)"
)

BLANK = (
    "UPDATE message SET id = ?, sender = '', message_id = '', subject = '', size = 0, key = NULL, tag = "
    "NULL, dsn = NULL, upload = NULL WHERE seq = ?"
)


def event_rows(at: int, event: str, rows: Iterable[Any]) -> list[tuple[Any, ...]]:
    return [
        (at, event, message, n, state, uncertain, reason, attempts, None)
        for message, n, state, uncertain, reason, attempts in rows
    ]


def json_list(numbers: Iterable[int]) -> str:
    """As JSON."""
    return f"[{', '.join(map(str, numbers))}]"


def chunks(upload: str) -> Verb[bytes]:
    rows = yield "SELECT content FROM chunk WHERE upload = ? ORDER BY n", (upload,)
    return b"".join([row[0] for row in rows])
