"""History of a PostgreSQL store goes by whole partitions: what was accepted in one period is dropped
together.

How: the upper bits of a message's number (`SPAN`) are its period. A period is opened (its partitions of
finished recipients, attempts and events are made), entered (the sequence of numbers is set forward to its
first one), dropped when all its mail is past retention, and swept: the messages themselves, whose unique ids
are kept in one table, go page by page. So a number says where everything lies that belongs to it, whatever
the clocks of hosts say, and nobody has to look for old rows.
Promises: a period that is entered has partitions. A period is dropped when all its mail is finished and past
retention and newer events exist elsewhere; from then on its messages are not found (`verbs.seq_of` asks for
recipients). Each step is short, and mail is never held up for longer than `PATIENCE`.
Fails: `StoreError`; then the step is taken another time. Does not: remove bodies at their age, or rows that
outlive their period (`verbs.purge` does both).
"""

from __future__ import annotations

from outmail.store import StoreError, Verb

SPAN = 32
#: Periods within the time that records are kept; the shortest in ms.
SHARE = 12
LEAST = 60_000
#: Seconds: between two steps, between looks for a period that can be dropped, and for how long its locks may
#: be waited for.
STEP = 30.0
LOOK = 600.0
PATIENCE = 0.5
#: Messages that are removed together.
PAGE = 2000

_LOCK = 0x6F75746F
_ALONE = f"SELECT pg_try_advisory_xact_lock({_LOCK}, 0)"
_WAIT = f"SET LOCAL lock_timeout = {PATIENCE * 1000:.0f}"
_NEWEST = (
    "SELECT n, extract(epoch FROM clock_timestamp()) * 1000 - began_at, (SELECT last_value FROM "
    "outmail.message_seq)"
    " FROM outmail.period ORDER BY n DESC LIMIT 1"
)
_OVER = (
    "SELECT n FROM (SELECT n, dropped, lead(began_at) OVER (ORDER BY n) AS ended_at FROM outmail.period) "
    "p WHERE ended_at <= ? AND NOT dropped ORDER BY n"
)
_ALIVE = "SELECT 1 FROM outmail.recipient_live WHERE message >= ? AND message < ? LIMIT 1"


def length(records: int) -> int:
    """How long a period lasts, in ms, where records are kept for so long."""
    return max(records // SHARE, LEAST)


def advance(records: int) -> Verb[None]:
    """One step towards the period that it is time for: open the next one, or enter the one that is open."""
    if not (yield _ALONE, ())[0][0]:
        return
    n, age, last = (yield _NEWEST, ())[0]
    if last < n << SPAN:
        yield "SELECT setval('outmail.message_seq', ?)", (n << SPAN,)
    elif last > n << SPAN and age >= length(records):
        yield _WAIT, ()
        yield "SELECT outmail.open_period(?)", (n + 1,)


def drop(now: int, records: int) -> Verb[int | None]:
    """Drop the oldest period that is past retention; its number. In a transaction of its own."""
    yield "SET TRANSACTION ISOLATION LEVEL READ COMMITTED", ()
    if not (yield _ALONE, ())[0][0]:
        return None
    for (n,) in (yield _OVER, (now - records,)):
        if (yield from _past(n, now - records)):
            yield _WAIT, ()
            yield f"DROP TABLE outmail.attempt_{n}, outmail.recipient_done_{n}, outmail.event_{n}", ()
            if (yield _ALIVE, (n << SPAN, (n + 1) << SPAN)):
                raise StoreError("conflict", f"a message of period {n} was put back into the queue")
            yield "UPDATE outmail.period SET dropped = true WHERE n = ?", (n,)
            return int(n)
    return None


def sweep() -> Verb[bool]:
    """Remove a page of messages of dropped periods; True when there may be more."""
    found = yield "SELECT n FROM outmail.period WHERE dropped ORDER BY n LIMIT 1", ()
    if not found:
        return False
    n = found[0][0]
    rows = yield (
        "SELECT seq FROM message WHERE seq >= ? AND seq < ? ORDER BY seq LIMIT ?",
        (n << SPAN, (n + 1) << SPAN, PAGE),
    )
    if not rows:
        yield "DELETE FROM outmail.period WHERE n = ?", (n,)
        return True
    within = rows[0][0], rows[-1][0]
    yield (
        "DELETE FROM chunk WHERE upload IN (SELECT upload FROM outmail.message WHERE seq >= ? AND seq <= ? "
        "AND upload IS NOT NULL)",
        within,
    )
    yield "DELETE FROM body WHERE seq >= ? AND seq <= ?", within
    yield "DELETE FROM message WHERE seq >= ? AND seq <= ?", within
    return True


def _past(n: int, before: int) -> Verb[bool]:
    """Nothing of it is alive, was final later than that, waits for its cursor, or is the newest event
    of all.
    """
    alive = yield _ALIVE, (n << SPAN, (n + 1) << SPAN)
    if alive:
        return False
    (row,) = yield (
        f"SELECT coalesce((SELECT max(finished_at) FROM outmail.recipient_done_{n}), 0) <= ?"
        f" AND NOT EXISTS (SELECT 1 FROM outmail.event_{n} WHERE cursor IS NULL)"
        f" AND coalesce((SELECT max(cursor) FROM outmail.event_{n}), -1) < (SELECT coalesce(max(cursor), 0) "
        f"FROM outmail.event)",
        (before,),
    )
    return bool(row[0])
