"""The history of a PostgreSQL store lies in partitions by period, which are dropped as a whole.

How: the upper bits of a message's number (`SPAN`) are its period, so a number says in which partition
everything about the message lies, whatever the clocks of hosts say. A period is *opened* (its partitions of
finished recipients, attempts and events are created), *entered* (the sequence of numbers is set forward to
its first number), *dropped* when all its mail is past retention, and *swept*: the rows of the messages
themselves, which are all in one table because their ids are unique, are deleted page by page.
Promises: a period that was entered has partitions. A partition is dropped when all its mail is finished and
past retention and newer events exist elsewhere; from then on its messages are not found (`verbs.seq_of` asks
for recipients). Each step is short; mail waits at most `PATIENCE` seconds for it.
Fails: `StoreError`; the step is tried again later. Does not: delete bodies at their age, or rows that outlive
their period (`verbs.purge` does both).
"""

from __future__ import annotations

from outmail.store import StoreError, Verb

SPAN = 32
#: How many periods fit into the time that records are kept; the shortest period in ms.
SHARE = 12
LEAST = 60_000
#: Seconds: between two steps; between two searches for a period that can be dropped; how long a step waits
#: for a lock.
STEP = 30.0
LOOK = 600.0
PATIENCE = 0.5
#: How many messages are deleted together.
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
    """The length of a period in ms, when records are kept for ``records`` ms."""
    return max(records // SHARE, LEAST)


def advance(records: int) -> Verb[None]:
    """One step towards the period that is due: open the next one, or enter the one that is open."""
    if not (yield _ALONE, ())[0][0]:
        return
    n, age, last = (yield _NEWEST, ())[0]
    if last < n << SPAN:
        yield "SELECT setval('outmail.message_seq', ?)", (n << SPAN,)
    elif last > n << SPAN and age >= length(records):
        yield _WAIT, ()
        yield "SELECT outmail.open_period(?)", (n + 1,)


def drop(now: int, records: int) -> Verb[int | None]:
    """Drop the oldest period that is past retention. Returns its number, or None. Must be alone in its
    transaction.
    """
    yield "SET TRANSACTION ISOLATION LEVEL READ COMMITTED", ()
    if not (yield _ALONE, ())[0][0]:
        return None
    for (n,) in (yield _OVER, (now - records,)):
        if (yield from _past(n, now - records)):
            yield _WAIT, ()
            yield f"DROP TABLE outmail.attempt_{n}, outmail.recipient_done_{n}, outmail.event_{n}", ()
            if (yield _ALIVE, (n << SPAN, (n + 1) << SPAN)):
                raise StoreError("conflict", f"a message of period {n} was queued again in the meantime")
            yield "UPDATE outmail.period SET dropped = true WHERE n = ?", (n,)
            return int(n)
    return None


def sweep() -> Verb[bool]:
    """Delete one page of messages of dropped periods. True when there may be more."""
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
    """True when nothing in the period is alive, everything in it was final before ``before``, all its events
    have cursors, and a newer event exists elsewhere.
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
