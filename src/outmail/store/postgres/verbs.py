"""The verbs that differ on PostgreSQL: leases by the server's clock, cursors for events, and `add` with fewer
statements.

Does not: connect, begin or commit (`connection`), or translate statements (`dialect`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from outmail.model import Delivery, Event, Filter, Message
from outmail.store import Added, Alone, Bulk, Exclusive, Many, Uploads, Verb, verbs
from outmail.store.postgres.dialect import FEW
from outmail.store.postgres.watermark import Watermark
from outmail.store.verbs import delivery
from outmail.store.verbs.delivery import ScanStart
from outmail.store.verbs.loopback import assigned
from outmail.store.verbs.rows import EVENT
from outmail.store.verbs.upkeep import note_drop, note_get, note_put

#: Seconds: the length of a lease by the server's clock, how often it is renewed, and after what time without
#: a renewal an engine sends nothing more.
LEASE = 120.0
RENEWAL = 30.0
CONFIDENCE = 90.0
#: Nobody is declared dead because of one look at a clock, which somebody may have set: an owner that seems
#: silent is noted, and then has this many seconds to renew.
DOUBT = 45.0

#: Only one transaction at a time numbers events. LOCK comes before the transaction takes its snapshot, so the
#: numbers given before are visible. SELECT … FOR UPDATE is for transactions in which each statement has its
#: own snapshot. Either waits for the other.
_ONE_AT_A_TIME = "LOCK TABLE numbering IN EXCLUSIVE MODE"
_ONE_AFTER_ANOTHER = "SELECT one FROM numbering FOR UPDATE"
_AT_ONCE = 20_000
_NUMBER = (
    f"WITH fresh AS (SELECT id, row_number() OVER (ORDER BY id) AS k FROM event WHERE cursor IS NULL AND id "
    f">= ? ORDER BY id LIMIT {_AT_ONCE}),"
    " done AS (UPDATE event e SET cursor = (SELECT coalesce(max(cursor), 0) FROM event) + fresh.k FROM fresh"
    # the conditions are repeated here so that the index of events without a cursor is used; without them all
    # events were read each time
    " WHERE e.id = fresh.id AND e.cursor IS NULL AND e.id >= ? RETURNING e.id)"
    " SELECT count(*), max(id) FROM done"
)
#: Whatever the planner's estimate is: a nested loop over twenty thousand rows would take for ever.
_NO_LOOPS, _LOOPS = "SET LOCAL enable_nestloop = off", "SET LOCAL enable_nestloop = DEFAULT"
_RENEW = "UPDATE owner SET renewed_at = clock_timestamp() WHERE id = ? RETURNING id"


def _silent(seconds: float) -> str:
    """True for an owner that has not renewed for so long. False while the server itself has not been up for
    so long.
    """
    return (
        f"least(clock_timestamp() - renewed_at, clock_timestamp() - pg_postmaster_start_time()) > "
        f"interval '{seconds} seconds'"
    )


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
    """`verbs.add` with one statement for each message, because on a server each statement costs a round trip.
    Very many messages are cheaper as rows.
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
            else:  # the period of the known message was dropped
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
    renamed = [message for message, _ in fresh if message.replaced]
    if alone and not once and not renamed and not any(uploads):
        (given,) = yield Alone(_accepting_all(len(values)), [value for row in values for value in row])
    else:
        given = [row[0] for row in (yield Many(_accepting_all(1), values))]
    numbers = {id(message): number for (message, _), number in zip(fresh, given)}
    if renamed:
        rows = [assigned(numbers[id(message)], message.accepted_at, message.replaced) for message in renamed]
        yield Many(EVENT, rows)
    if supersede is not None and messages:
        yield from verbs.change(Filter(ids=((supersede, None),)), "superseded", messages[0].accepted_at)
    return [
        (message.id, message.message_id, message.accepted_at, False, numbers[id(message)])
        if id(message) in numbers
        else (*known[message.id], True, 0)
        for message in messages
    ]


_KNOWN = delivery.KNOWN.replace("id = ?", "id = ANY(?)")


@cache
def _accepting_all(count: int) -> str:
    """One statement that returns one row with a number for each of ``count`` messages."""
    return f"SELECT {', '.join([_ACCEPT] * count)}"


_SERVER_TIME = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
#: Hours after which an upload that gets no further pieces is abandoned.
_GIVEN_UP = 1


def add_chunks(upload: str, first: int, pieces: Sequence[bytes], now: int) -> Verb[None]:
    """`verbs.add_chunks` with the server's time."""
    rows = [(upload, first + i, piece) for i, piece in enumerate(pieces)]
    yield Many(f"INSERT INTO chunk (upload, n, added_at, content) VALUES (?, ?, {_SERVER_TIME}, ?)", rows)


def old_uploads() -> Verb[list[str]]:
    """Uploads without a message that have got no further piece for `_GIVEN_UP` hours."""
    rows = yield (
        "SELECT upload FROM chunk WHERE NOT EXISTS (SELECT 1 FROM message m WHERE m.upload = chunk.upload) "
        "GROUP BY upload"
        f" HAVING max(added_at) < {_SERVER_TIME} - {_GIVEN_UP * 3_600_000}",
        (),
    )
    return [row[0] for row in rows]


def know(destinations: set[str]) -> Verb[None]:
    """Note the destinations, so that scans look for their mail."""
    yield Many(
        "INSERT INTO destination (name) VALUES (?) ON CONFLICT DO NOTHING",
        [(name,) for name in sorted(destinations)],
    )


def reroute(
    selection: Filter, route: str, now: int, after: tuple[int, int] = (0, 0)
) -> Verb[tuple[int, tuple[int, int] | None]]:
    """`verbs.reroute` to a destination that is looked for from then on."""
    yield from know({route})
    return (yield from verbs.reroute(selection, route, now, after))


class _FullScan(ScanStart):
    """A scan from the beginning. It tells the watermark what it finds."""

    def __init__(self, watermark: Watermark) -> None:
        self._watermark = watermark

    def found(self, destination: str, priority: int, due: int) -> None:
        self._watermark.found(destination, priority, due)


def _accepting(
    message: Message, upload: str | None, taken: Mapping[str, tuple[int, int]] | None
) -> tuple[Any, ...]:
    owner, lease = taken.get(message.id, (None, None)) if taken else (None, None)
    people = json.dumps([(r.address, r.destination, r.suppressed) for r in message.recipients]).replace(
        "\\u0000", "\\ufffd"
    )
    return (
        *delivery.columns(message),
        upload,
        None if upload else message.content,
        message.due,
        message.due if message.due > message.accepted_at else 0,
        people,
        owner,
        lease,
    )


def number_events(watermark: Watermark, *, fresh: bool = False) -> Verb[bool]:
    """Give cursors to events that have none; only one program at a time does this. True when there may be
    more. ``fresh``: the first verb of a transaction with one snapshot.
    """
    yield (_ONE_AT_A_TIME if fresh else _ONE_AFTER_ANOTHER), ()
    began = time.monotonic()
    first = watermark.event()
    yield _NO_LOOPS, ()
    ((count, newest),) = yield _NUMBER, (first, first)
    yield _LOOPS, ()
    watermark.events_afresh.over(began)
    if count < _AT_ONCE:
        watermark.numbered(newest)
    return bool(count == _AT_ONCE)


def next_due(now: int, *, watermark: Watermark) -> Verb[dict[str, int]]:
    """`verbs.next_due`, from the beginning only once in a while."""
    began = time.monotonic()
    answer = yield from verbs.next_due(now, _FullScan(watermark) if watermark.afresh.due() else watermark)
    watermark.afresh.over(began)
    return answer


def events_after(cursor: int, limit: int = 1000, *, watermark: Watermark) -> Verb[list[Event]]:
    """Events after a cursor, in the order in which their commits became visible."""
    yield from number_events(watermark, fresh=True)
    return (yield from verbs.events_after(cursor, limit))


def cursor_at(since: int, *, watermark: Watermark) -> Verb[int]:
    """`verbs.cursor_at`, once all have cursors."""
    while (yield from number_events(watermark, fresh=True)):
        pass
    return (yield from verbs.cursor_at(since))


def last_cursor(*, watermark: Watermark) -> Verb[int]:
    """The newest event's cursor."""
    while (yield from number_events(watermark, fresh=True)):
        pass
    return (yield from verbs.last_cursor())


def renew(owner: int) -> Verb[bool]:
    """Renew a lease. False when the owner was declared dead meanwhile; its leases are then lost."""
    return bool((yield _RENEW, (owner,)))


def engines() -> Verb[int]:
    """How many engines have a valid lease; they share the limits of next hops."""
    rows = yield (
        f"SELECT greatest(1, count(*)) FROM owner WHERE renewed_at > clock_timestamp() - interval '{LEASE} "
        f"seconds'",
        (),
    )
    return int(rows[0][0])


def silent_owners(*, orphans: bool = True) -> Verb[list[int]]:
    """Owners whose lease has ended or is in doubt. With ``orphans`` also owners that have leases without
    being registered; that reads all leases.
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
    owner: int,
    noted: set[tuple[int, int, int]] | None,
    now: int,
    *,
    hold: bool,
    within: int = 0,
    sure: bool = True,
) -> Verb[dict[str, int]]:
    """Take back all leases of a dead engine. Unless ``sure``, only when its lease has ended by the server's
    clock and it has been in doubt for `DOUBT` seconds.
    """
    known = yield (
        f"SELECT renewed_at::text, {_silent(LEASE)}, extract(epoch FROM clock_timestamp())::float8 FROM "
        f"owner WHERE id = ? FOR UPDATE",
        (owner,),
    )
    if known and not sure:
        renewed, over, time = known[0]
        doubt = yield from note_get("doubt", str(owner))
        if doubt is None or doubt[0]["renewed"] != renewed:
            yield from note_put("doubt", str(owner), {"renewed": renewed, "at": time})
            over = over and DOUBT == 0
        elif not over or abs(time - doubt[0]["at"]) < DOUBT:
            over = False
        if not over:
            return {"owner": owner, "leases": 0, "uncertain": 0}
    yield from note_drop("doubt", str(owner))
    return (yield from verbs.reclaim(owner, noted, now, hold=hold, within=within))


def forget_owner(owner: int) -> Verb[bool]:
    """An engine that has ended in order is not in doubt any more."""
    left = yield from verbs.forget_owner(owner)
    if left:
        yield from note_drop("doubt", str(owner))
    return left


class PostgresVerbs:
    """`outmail.store.Verbs` for one PostgreSQL store. It remembers where its scans begin."""

    def __init__(self, watermark: Watermark) -> None:
        self.watermark = watermark

    # -- accepting -------------------------------------------------------------------------------------------

    add = staticmethod(add)
    add_chunks = staticmethod(add_chunks)
    know = staticmethod(know)

    # -- leasing ---------------------------------------------------------------------------------------------

    def lease(
        self,
        owner: int,
        number: int,
        room: Mapping[str, int],
        now: int,
        *,
        turn: int = 0,
        budget: int = 1 << 62,
        suspects: bool = True,
        only: int | None = None,
    ) -> Verb[list[Delivery]]:
        """`verbs.lease`, beginning at the watermark."""
        return verbs.lease(
            owner,
            number,
            room,
            now,
            turn=turn,
            budget=budget,
            suspects=suspects,
            only=only,
            start=self.watermark,
        )

    def next_due(self, now: int) -> Verb[dict[str, int]]:
        """`verbs.next_due`, beginning at the watermark."""
        return next_due(now, watermark=self.watermark)

    # -- settling --------------------------------------------------------------------------------------------

    settle = staticmethod(verbs.settle)
    unlease = staticmethod(verbs.unlease)
    give_back = staticmethod(verbs.give_back)
    quarantine = staticmethod(verbs.quarantine)

    # -- engines ---------------------------------------------------------------------------------------------

    register = staticmethod(verbs.register)
    owners = staticmethod(verbs.owners)
    engines = staticmethod(engines)
    eldest = staticmethod(verbs.eldest)
    forget_owner = staticmethod(forget_owner)
    reclaim = staticmethod(reclaim)

    # -- changing and reading --------------------------------------------------------------------------------

    change = staticmethod(verbs.change)
    reroute = staticmethod(reroute)
    seq_of = staticmethod(verbs.seq_of)
    find = staticmethod(verbs.find)
    ids_beginning = staticmethod(verbs.ids_beginning)
    failed_since = staticmethod(verbs.failed_since)
    statuses = staticmethod(verbs.statuses)
    unfinished = staticmethod(verbs.unfinished)
    content = staticmethod(verbs.content)
    attempts = staticmethod(verbs.attempts)
    stats = staticmethod(verbs.stats)
    waiting = staticmethod(verbs.waiting)
    deeper = staticmethod(verbs.deeper)
    destinations = staticmethod(verbs.destinations)

    def events_after(self, cursor: int, limit: int = 1000) -> Verb[list[Event]]:
        """`events_after`; gives cursors first."""
        return events_after(cursor, limit, watermark=self.watermark)

    def cursor_at(self, since: int) -> Verb[int]:
        """`cursor_at`, which gives cursors first."""
        return cursor_at(since, watermark=self.watermark)

    def last_cursor(self) -> Verb[int]:
        """`last_cursor`; gives cursors first."""
        return last_cursor(watermark=self.watermark)

    def number_events(self) -> Verb[bool]:
        """Give cursors to events that have none. True when there may be more."""
        return number_events(self.watermark)

    # -- loopback --------------------------------------------------------------------------------------------

    assign = staticmethod(verbs.assign)
    came_home = staticmethod(verbs.came_home)
    came_home_by_id = staticmethod(verbs.came_home_by_id)
    loopback_count = staticmethod(verbs.loopback_count)
    loopback_counts = staticmethod(verbs.loopback_counts)
    miss = staticmethod(verbs.miss)
    missing = staticmethod(verbs.missing)
    copies_of = staticmethod(verbs.copies_of)
    copies_since = staticmethod(verbs.copies_since)
    forget_copies = staticmethod(verbs.forget_copies)

    # -- upkeep ----------------------------------------------------------------------------------------------

    expire = staticmethod(verbs.expire)
    newest = staticmethod(verbs.newest)
    rejuvenate = staticmethod(verbs.rejuvenate)
    shorten = staticmethod(verbs.shorten)
    earlier = staticmethod(verbs.earlier)
    clamp = staticmethod(verbs.clamp)
    purge = staticmethod(verbs.purge)
    forget_messages = staticmethod(verbs.forget_messages)
    drop_upload = staticmethod(verbs.drop_upload)

    # -- next hops -------------------------------------------------------------------------------------------

    pause_hop = staticmethod(verbs.pause_hop)
    resume_hop = staticmethod(verbs.resume_hop)
    forget_hops = staticmethod(verbs.forget_hops)

    # -- notes -----------------------------------------------------------------------------------------------

    note_get = staticmethod(verbs.note_get)
    note_list = staticmethod(verbs.note_list)
    note_keys = staticmethod(verbs.note_keys)
    note_put = staticmethod(verbs.note_put)
    note_set_aside = staticmethod(verbs.note_set_aside)
    note_drop = staticmethod(verbs.note_drop)
