"""What PostgreSQL says differently: the statements of `verbs` translated, and the verbs it has of its own.

How: `translated` puts our schema before our tables, numbers the parameters as psycopg wants them, and
exchanges the few statements that stand in `_OWN`. Names are qualified instead of a search path being set, so
that nothing depends on a session (PgBouncer).
Does not: connect, begin or commit (`postgres`).
"""

from __future__ import annotations

import json
import re
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

from outmail.model import Event, Filter, Message
from outmail.store import Added, Alone, Bulk, Exclusive, Many, Uploads, Verb, verbs
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
        " RETURNING message, n, state, uncertain, reason, attempts"
    ),
}


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


# -- verbs of its own ----------------------------------------------------------------------------------------

#: A lease by the server's clock, how often it is renewed, and after what time without renewal an engine sends
#: nothing more.
LEASE = 120.0
RENEWAL = 30.0
CONFIDENCE = 90.0
#: Nobody is declared dead by one look at a clock, which may have been set: it is doubted first, and then has
#: so long to renew.
DOUBT = 45.0

#: LOCK comes before the transaction's snapshot, so the numbering that went before is seen. The other form is
#: for transactions whose every statement has a snapshot of its own. Each waits for the other.
_ONE_AT_A_TIME = "LOCK TABLE numbering IN EXCLUSIVE MODE"
_ONE_AFTER_ANOTHER = "SELECT one FROM numbering FOR UPDATE"
_AT_ONCE = 20_000
_NUMBER = (
    f"WITH fresh AS (SELECT id, row_number() OVER (ORDER BY id) AS k FROM event WHERE cursor IS NULL AND id "
    f">= ? ORDER BY id LIMIT {_AT_ONCE}),"
    " done AS (UPDATE event e SET cursor = (SELECT coalesce(max(cursor), 0) FROM event) + fresh.k FROM fresh"
    # said twice, it is found in the index of what has no cursor; otherwise all events were read each time
    " WHERE e.id = fresh.id AND e.cursor IS NULL AND e.id >= ? RETURNING e.id)"
    " SELECT count(*), max(id) FROM done"
)
#: However many the planner thinks there are: a nested loop over twenty thousand would never end.
_NO_LOOPS, _LOOPS = "SET LOCAL enable_nestloop = off", "SET LOCAL enable_nestloop = DEFAULT"
_RENEW = "UPDATE owner SET renewed_at = clock_timestamp() WHERE id = ? RETURNING id"


def _silent(seconds: float) -> str:
    """An owner that has not renewed for so long; none while the server itself has not been up for it."""
    return (
        f"least(clock_timestamp() - renewed_at, clock_timestamp() - pg_postmaster_start_time()) > "
        f"interval '{seconds} seconds'"
    )


FEW = 30
_ACCEPT = f"outmail.accept({', '.join('?' * 20)})"


def add(
    messages: Sequence[Message],
    uploads: Uploads = (),
    supersede: str | None = None,
    taken: Mapping[str, tuple[int, int]] | None = None,
    *,
    again: bool = False,
    alone: bool = False,
) -> Verb[list[Added]]:
    """`verbs.add` with one statement a message: on a server, statements are what costs; of very many, rows
    are cheaper.
    """
    if len(messages) > FEW:
        yield Bulk()
        yield from know({recipient.destination for message in messages for recipient in message.recipients})
        return (yield from verbs.add(messages, uploads, supersede, taken, again=again))
    once = [message.id for message in messages if again or message.key]
    known: dict[str, tuple[str, str, int]] = {}
    if once:
        yield Exclusive(once)
        for *first, seq, alive in (yield _KNOWN, (once,)):
            if alive:
                known[first[0]] = (first[0], first[1], first[2])
            else:  # its period was dropped
                yield from delivery.free_id(seq)
    fresh: list[tuple[Message, str | None]] = []
    for message, upload in zip(messages, uploads or [None] * len(messages)):
        if message.id not in known:
            fresh.append((message, upload))
            if again or message.key:
                known[message.id] = (message.id, message.message_id, message.accepted_at)
    if any(uploads):
        yield from delivery.check_uploads(fresh)
    values = [_accepting(message, upload, taken) for message, upload in fresh]
    if alone and not once and not any(uploads):
        (given,) = yield Alone(_accepting_all(len(values)), [value for row in values for value in row])
    else:
        given = [row[0] for row in (yield Many(_accepting_all(1), values))]
    numbers = {id(message): number for (message, _), number in zip(fresh, given)}
    if supersede is not None and messages:
        yield from verbs.change(Filter(ids=((supersede, None),)), "cancel", messages[0].accepted_at)
    return [
        (message.id, message.message_id, message.accepted_at, False, numbers[id(message)])
        if id(message) in numbers
        else (*known[message.id], True, 0)
        for message in messages
    ]


_KNOWN = delivery.KNOWN.replace("id = ?", "id = ANY(?)")


@cache
def _accepting_all(count: int) -> str:
    """One statement, one row with a number for each of so many messages."""
    return f"SELECT {', '.join([_ACCEPT] * count)}"


_SERVER_TIME = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
#: Hours after which a long content that gets no further pieces is given up.
_GIVEN_UP = 1


def add_chunks(upload: str, first: int, pieces: Sequence[bytes], now: int) -> Verb[None]:
    """`verbs.add_chunks` by the server's clock."""
    rows = [(upload, first + i, piece) for i, piece in enumerate(pieces)]
    yield Many(f"INSERT INTO chunk (upload, n, added_at, content) VALUES (?, ?, {_SERVER_TIME}, ?)", rows)


def old_uploads() -> Verb[list[str]]:
    """Pieces without a message that got no company for long."""
    rows = yield (
        "SELECT upload FROM chunk WHERE NOT EXISTS (SELECT 1 FROM message m WHERE m.upload = chunk.upload) "
        "GROUP BY upload"
        f" HAVING max(added_at) < {_SERVER_TIME} - {_GIVEN_UP * 3_600_000}",
        (),
    )
    return [row[0] for row in rows]


def know(destinations: set[str]) -> Verb[None]:
    """Destinations that mail comes for, so that it is looked for."""
    yield Many(
        "INSERT INTO destination (name) VALUES (?) ON CONFLICT DO NOTHING",
        [(name,) for name in sorted(destinations)],
    )


class Seldom:
    """What is done every `EVERY` seconds, and more seldom when it takes long: at most one part in `SHARE` of
    all time.
    """

    EVERY = 60.0
    SHARE = 20

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._rest = 0.0

    def due(self) -> bool:
        """True when it is time; then it has begun."""
        now = time.monotonic()
        if now - self._began <= max(self.EVERY, self._rest):
            return False
        self._began = now
        return True

    def over(self, began: float) -> None:
        """What began then is over; if that was one of these, it took so long."""
        if self._began >= began:
            self._rest = self.SHARE * (time.monotonic() - began)


class Floor(delivery.Floor):
    """Where to begin to look, so that rows which a long foreign transaction keeps from being cleaned up are
    not walked over again and again.

    What becomes due is due at the time of some host's clock. So looking begins `MARGIN` before what was seen
    last, and `next_due` looks seldom from the beginning, for what a clock that is late, or a lease that came
    to nothing, has left behind. An event gets its id before its commit: without cursors are those of the last
    `LATE` seconds, and seldom one whose transaction stood still for longer. Used by one thread at a time, or
    harmlessly by two.
    """

    MARGIN = 3_000
    LATE = 30.0

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int], int] = {}
        self.afresh, self.events_afresh = Seldom(), Seldom()
        #: (when, the newest event that had a cursor then), older first.
        self._numbered: deque[tuple[float, int]] = deque()
        self._event = 0

    def of(self, destination: str, priority: int) -> int:
        return self._seen.get((destination, priority), 0)

    def seen(self, destination: str, priority: int, due: int) -> None:
        self._seen[destination, priority] = max(self.of(destination, priority), due - self.MARGIN)

    def found(self, destination: str, priority: int, due: int) -> None:
        self._seen[destination, priority] = min(self.of(destination, priority), due)

    def event(self) -> int:
        """The id from which on there may be events without cursors."""
        if self.events_afresh.due():
            return 0
        before = time.monotonic() - self.LATE
        while self._numbered and self._numbered[0][0] < before:
            self._event = max(self._event, self._numbered.popleft()[1])
        return self._event

    def numbered(self, newest: int | None) -> None:
        """All events up to this one that could be seen have cursors now."""
        if newest is not None:
            self._numbered.append((time.monotonic(), newest))


class _Bottom(delivery.Floor):
    """Looks from the beginning, for a floor that is to hear what is found."""

    def __init__(self, floor: Floor) -> None:
        self.found = floor.found  # type: ignore[method-assign]


def _accepting(
    message: Message, upload: str | None, taken: Mapping[str, tuple[int, int]] | None
) -> tuple[Any, ...]:
    owner, lease = taken.get(message.id, (None, None)) if taken else (None, None)
    people = json.dumps([(r.address, r.destination, r.suppressed) for r in message.recipients]).replace(
        "\\u0000", "\\ufffd"
    )
    return (
        message.id,
        message.sender,
        message.message_id,
        message.subject,
        len(message.content),
        message.sha256,
        message.needs,
        message.priority,
        message.accepted_at,
        message.expires_at,
        message.key,
        message.tag,
        json.dumps(asdict(message.dsn)) if message.dsn else None,
        upload,
        None if upload else message.content,
        message.due,
        message.due if message.due > message.accepted_at else 0,
        people,
        owner,
        lease,
    )


def number_events(floor: Floor, *, fresh: bool = False) -> Verb[bool]:
    """Give cursors to events that have none, in one place at a time; True when there may be more. ``fresh``:
    as the first of a transaction with one snapshot.
    """
    yield (_ONE_AT_A_TIME if fresh else _ONE_AFTER_ANOTHER), ()
    began = time.monotonic()
    first = floor.event()
    yield _NO_LOOPS, ()
    ((count, newest),) = yield _NUMBER, (first, first)
    yield _LOOPS, ()
    floor.events_afresh.over(began)
    if count < _AT_ONCE:
        floor.numbered(newest)
    return bool(count == _AT_ONCE)


def next_due(now: int, *, floor: Floor) -> Verb[dict[str, int]]:
    """`verbs.next_due`, seldom from the beginning."""
    began = time.monotonic()
    answer = yield from verbs.next_due(now, _Bottom(floor) if floor.afresh.due() else floor)
    floor.afresh.over(began)
    return answer


def events_after(cursor: int, limit: int = 1000, *, floor: Floor) -> Verb[list[Event]]:
    """Facts in the order in which their commits were seen, behind a cursor."""
    yield from number_events(floor, fresh=True)
    return (yield from verbs.events_after(cursor, limit))


def last_cursor(*, floor: Floor) -> Verb[int]:
    """The newest event's cursor."""
    while (yield from number_events(floor, fresh=True)):
        pass
    return (yield from verbs.last_cursor())


def renew(owner: int) -> Verb[bool]:
    """A sign of life; False when the owner was given up meanwhile, and what it had leased with it."""
    return bool((yield _RENEW, (owner,)))


def engines() -> Verb[int]:
    """Engines whose lease stands: they divide the limits of next hops."""
    rows = yield (
        f"SELECT greatest(1, count(*)) FROM owner WHERE renewed_at > clock_timestamp() - interval '{LEASE} "
        f"seconds'",
        (),
    )
    return int(rows[0][0])


def silent_owners(*, orphans: bool = True) -> Verb[list[int]]:
    """Owners whose lease is over or to be doubted; with ``orphans`` also those that lease without being
    known, which takes a walk over all leases.
    """
    rows = yield f"SELECT id FROM owner WHERE {_silent(LEASE - DOUBT)}", ()
    if orphans:
        rows += yield (
            "SELECT DISTINCT owner FROM recipient r WHERE state = 'sending' AND NOT EXISTS (SELECT 1 FROM "
            "owner o WHERE o.id = r.owner)",
            (),
        )
    return [row[0] for row in rows]


def reclaim(
    owner: int, noted: set[tuple[int, int, int]] | None, now: int, *, hold: bool, sure: bool = True
) -> Verb[dict[str, int]]:
    """Take back all leases of a dead engine; unless ``sure``, only if its lease is over by the server's clock
    and it was doubted before.
    """
    known = yield (
        f"SELECT renewed_at::text, {_silent(LEASE)}, extract(epoch FROM clock_timestamp())::float8 FROM "
        f"owner WHERE id = ? FOR UPDATE",
        (owner,),
    )
    if known and not sure:
        renewed, over, time = known[0]
        doubt = yield from verbs.note_get("doubt", str(owner))
        if doubt is None or doubt[0]["renewed"] != renewed:
            yield from verbs.note_put("doubt", str(owner), {"renewed": renewed, "at": time})
            over = over and DOUBT == 0
        elif not over or abs(time - doubt[0]["at"]) < DOUBT:
            over = False
        if not over:
            return {"owner": owner, "leases": 0, "uncertain": 0}
    yield from verbs.note_drop("doubt", str(owner))
    return (yield from verbs.reclaim(owner, noted, now, hold=hold))


def forget_owner(owner: int) -> Verb[bool]:
    """An engine left in order; nobody doubts it any more."""
    left = yield from verbs.forget_owner(owner)
    if left:
        yield from verbs.note_drop("doubt", str(owner))
    return left


def verbs_of(floor: Floor) -> SimpleNamespace:
    """The verbs of one store, which remembers where to begin to look."""
    looking: dict[str, Any] = {
        "lease": verbs.lease,
        "next_due": next_due,
        "events_after": events_after,
        "last_cursor": last_cursor,
        "number_events": number_events,
    }
    return SimpleNamespace(
        **vars(VERBS), **{name: partial(verb, floor=floor) for name, verb in looking.items()}
    )


_OF_A_STORE = {"lease", "next_due", "events_after", "last_cursor"}
VERBS = SimpleNamespace(
    **{
        name: function
        for name, function in vars(verbs).items()
        if not name.startswith("_") and callable(function) and name not in _OF_A_STORE
    }
    | {
        "forget_owner": forget_owner,
        "add": add,
        "add_chunks": add_chunks,
        "reclaim": reclaim,
        "engines": engines,
        "know": know,
    }
)
