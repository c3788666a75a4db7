"""What PostgreSQL says differently: the statements of `outmail.store.verbs` translated.

How: `translated` puts our schema before our tables, numbers the parameters as psycopg wants them, and
exchanges the few statements that stand in `_OWN`. Names are qualified instead of a search path being set, so
that nothing depends on a session (PgBouncer).
Does not: connect, run anything, or know verbs of PostgreSQL's own (`verbs`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from outmail.store.verbs import delivery, export, outbox_rows, queue, rows, upkeep

_TABLES = "message|body|chunk|recipient|destination|attempt|event|owner|note|numbering"
_QUALIFIED = re.compile(rf"\b(FROM|JOIN|INTO|UPDATE|TABLE) ({_TABLES})\b")
_NUMBERED = re.compile(r"\?(\d+)")

_BATCH = "outmail.batch("
_KEYS = f"{_BATCH}?::json) j"
_SEQS = "ANY(ARRAY(SELECT json_array_elements_text(?::json)::bigint))"
#: Rows that another engine is taking in this moment are passed over.
_CLAIMED = " FOR UPDATE SKIP LOCKED"

_OWN = {
    queue.FIRST_DESTINATION: "SELECT min(name) FROM destination",
    queue.NEXT_DESTINATION: "SELECT min(name) FROM destination WHERE name > ?",
    upkeep.NEWEST: "SELECT NULL::bigint, NULL::bigint",  # sequences remember
    # unnumbered ones are the newest
    export.EVENTS_OF: export.EVENTS_OF + " NULLS LAST, id",
    delivery.READY: delivery.READY + _CLAIMED,
    delivery.ONLY: delivery.ONLY + _CLAIMED,
    delivery.SUSPECTS: delivery.SUSPECTS + _CLAIMED,
    outbox_rows.TAKE: outbox_rows.PG_TAKE,
    outbox_rows.TAKEN: outbox_rows.PG_TAKEN,
    delivery.LOST: delivery.LOST + " FOR UPDATE",
    delivery.LEASE: (
        f"UPDATE recipient SET state = 'sending', owner = ?, lease = ?, leased_at = ? FROM {_KEYS}"
        " WHERE message = j.a AND n = j.b AND state = 'queued'"
        " RETURNING message, n, address, destination, attempts, uncertain, losses, expires_at"
    ),
    delivery.DELIVERED: (
        "UPDATE recipient SET state = 'delivered', reason = '', due = NULL, attempts = attempts + 1, losses "
        "= 0, wish = NULL, owner = NULL,"
        f" lease = NULL, attempt = j.a, finished_at = j.b FROM {_KEYS}"
        # said so, it is found in the live partition by its key, not by the index of leases, which may hold
        # every one since a foreign transaction began
        " WHERE message = j.c AND n = j.d AND state IN ('queued', 'sending', 'held') AND state || '' = "
        "'sending' AND owner = ? AND lease = j.e"
        " RETURNING message, n, state, uncertain, reason, attempts, destination"
    ),
}

FEW = 30

_PLAIN_INSERT = re.compile(r"INSERT INTO (\w+) \(([\w, ]+)\) VALUES \([?,]+\)")


@cache
def copying(sql: str) -> tuple[str, str, tuple[str, ...]] | None:
    """(COPY statement, table, columns) for an INSERT that brings rows and nothing else."""
    found = _PLAIN_INSERT.fullmatch(sql)
    return (
        (
            f"COPY outmail.{found[1]} ({found[2]}) FROM STDIN (FORMAT binary)",
            found[1],
            tuple(found[2].split(", ")),
        )
        if found
        else None
    )


@cache
def translated(sql: str) -> tuple[str, bool]:
    """(the statement for psycopg, True when its parameters are numbered)."""
    sql = _OWN.get(sql, sql)
    sql = _QUALIFIED.sub(r"\1 outmail.\2", sql.replace(rows.LISTED, f"= {_SEQS}")).replace(
        " LIKE ", " ILIKE "
    )
    numbered = bool(_NUMBERED.search(sql))
    return (_NUMBERED.sub(r"%(p\1)s", sql) if numbered else sql.replace("?", "%s")), numbered


def prepared(sql: str) -> bool | None:
    """False for what is planned anew each time: the best plan for a batch depends on how large the table is
    now. None: as the connection does.
    """
    return False if _BATCH in sql else None


def parameters(values: Sequence[Any], numbered: bool) -> Any:
    """Values as the translated statement takes them."""
    return {f"p{i}": value for i, value in enumerate(values, 1)} if numbered else values
