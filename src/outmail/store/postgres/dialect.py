"""The SQL that differs on PostgreSQL: statements of `outmail.store.verbs`, translated.

How: `translated` puts our schema before the names of our tables, turns the parameters into psycopg's form,
and replaces the few statements in `_OWN`. Table names are qualified, rather than found by a search path, so
that nothing depends on the session (PgBouncer).
Does not: connect, run statements, or contain the verbs that only PostgreSQL has (`verbs`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from outmail.store.verbs import delivery, export, outbox_rows, queue, rows, upkeep

_TABLES = (
    "message|body|chunk|recipient|destination|attempt|event|owner|note|numbering|loopback|loopback_count"
)
_QUALIFIED = re.compile(rf"\b(FROM|JOIN|INTO|UPDATE|TABLE) ({_TABLES})\b")
_NUMBERED = re.compile(r"\?(\d+)")

_BATCH = "outmail.batch("
_KEYS = f"{_BATCH}?::json) j"
_SEQS = "ANY(ARRAY(SELECT json_array_elements_text(?::json)::bigint))"
#: Skip rows that another engine is leasing at this moment.
_CLAIMED = " FOR UPDATE SKIP LOCKED"

_OWN = {
    queue.BY_DOMAIN: queue.BY_DOMAIN.replace("instr(r.address, '@')", "strpos(r.address, '@')"),
    queue.FIRST_DESTINATION: "SELECT min(name) FROM destination",
    queue.NEXT_DESTINATION: "SELECT min(name) FROM destination WHERE name > ?",
    upkeep.NEWEST: "SELECT NULL::bigint, NULL::bigint",  # sequences never give a number twice
    # events without a cursor are the newest
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
        # the condition on state || '' makes the planner find the row by its key in the live partition, not by
        # the index of leases: a long foreign transaction may have left every lease since its beginning in
        # that index
        " WHERE message = j.c AND n = j.d AND state IN ('queued', 'sending', 'held') AND state || '' = "
        "'sending' AND owner = ? AND lease = j.e"
        " RETURNING message, n, state, uncertain, reason, attempts, destination"
    ),
}

FEW = 30

_PLAIN_INSERT = re.compile(r"INSERT INTO (\w+) \(([\w, ]+)\) VALUES \([?,]+\)")


@cache
def copying(sql: str) -> tuple[str, str, tuple[str, ...]] | None:
    """(COPY statement, table, columns) for an INSERT that only brings rows; else None."""
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
    """False for statements that are planned anew each time, because the best plan for a batch depends on the
    present size of the table. None: as the connection does by default.
    """
    return False if _BATCH in sql else None


def parameters(values: Sequence[Any], numbered: bool) -> Any:
    """Values in the form that the translated statement expects."""
    return {f"p{i}": value for i, value in enumerate(values, 1)} if numbered else values
