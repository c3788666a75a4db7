"""SQL and row helpers that several verb modules share.

Promises: statements that SQLite and PostgreSQL both understand, except for the few marks that
`postgres.dialect` translates. Does not: change the queue.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from outmail.store import Verb

#: Content longer than this is stored in pieces.
LONG = 1024 * 1024
PIECE = 256 * 1024
#: Recipients of one delivery, and so the most transactions that one can take.
MAX_BATCH = 100
#: The condition that a column is one of many numbers; the numbers are one parameter (`json_list`).
#: `postgres.dialect` replaces it.
LISTED = "IN (SELECT value FROM json_each(?))"

#: The beginning of the id of a message that was removed while its number must be kept. No real id contains a
#: dot.
GONE = "gone."

BODY = "INSERT INTO body (seq, content) VALUES (?,?)"

EVENT = (
    "INSERT INTO event (at, event, message, n, state, uncertain, reason, attempts, attempt) VALUES "
    "(?,?,?,?,?,?,?,?,?)"
)

#: Of a recipient that takes another route, or of a next hop: then ``message`` is `HOPS`, and ``n`` NULL.
ROUTE_EVENT = EVENT.replace("attempt)", "attempt, route)").replace("?)", "?,?)")
HOPS = -1

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
