"""The verbs for people who look after the queue: change what waits, find messages, read what happened to
them.

Promises: a change covers one page of at most `PAGE` recipients, writes an event for each, and changes only
recipients whose state `lifecycle.sources` allows. Reading verbs return whole objects of `model`.
Does not: begin, commit, or read a clock (``now`` is passed in).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from outmail import lifecycle
from outmail.model import PRIORITIES, Attempt, Event, Filter, RecipientStatus, Reply, Status
from outmail.store import Many, Verb
from outmail.store.filters import where
from outmail.store.verbs.rows import EVENT, ROUTE_EVENT, chunks, event_rows

# -- changing ------------------------------------------------------------------------------------------------

PAGE = 2000


def _in(event: str) -> str:
    return ", ".join(f"'{state}'" for state in lifecycle.sources(event) if state != lifecycle.SENDING)


#: What a change sets, by column. Names with a colon are for the reader: executemany needs numbers.
_CHANGES: dict[str, dict[str, str]] = {
    "hold": {"state": "'held'", "reason": "'operator'", "due": "NULL"},
    "release": {
        "state": "'queued'",
        "reason": "''",
        "due": "CASE WHEN not_before > :now THEN not_before ELSE :now END",
        "losses": "0",
    },
    "cancel": {
        "state": "'cancelled'",
        "reason": f"'{lifecycle.BY_OPERATOR}'",
        "due": "NULL",
        "finished_at": ":now",
    },
    "superseded": {
        "state": "'cancelled'",
        "reason": f"'{lifecycle.REPLACED}'",
        "due": "NULL",
        "finished_at": ":now",
    },
    "due": {"due": ":now", "not_before": "0"},
    "suppress": {"state": "'failed'", "reason": ":reason", "due": "NULL", "finished_at": ":now"},
    "expired": {"state": "'failed'", "reason": ":reason", "due": "NULL", "finished_at": ":now"},
    "confirm": {
        "state": "'delivered'",
        "reason": "'confirmed'",
        "due": "NULL",
        "finished_at": ":now",
        "losses": "0",
        "wish": "NULL",
        "owner": "NULL",
        "lease": "NULL",
    },
    "requeue": {
        "state": "'queued'",
        "reason": "''",
        "due": ":now",
        "losses": "0",
        "attempts": "0",
        "finished_at": "NULL",
        "expires_at": ":now + (SELECT m.expires_at - m.accepted_at FROM message m WHERE m.seq = "
        "recipient.message)",
    },
}

#: The same for a recipient that is being sent, and which of these change.
_WISHES: dict[str, tuple[dict[str, str], str]] = {
    "hold": ({"wish": "'hold'"}, "wish IS NULL"),
    "cancel": ({"wish": "'cancel'"}, "coalesce(wish, '') <> 'cancel'"),
    "superseded": (
        {"wish": "'cancel'", "reason": f"'{lifecycle.REPLACED}'"},
        "coalesce(wish, '') <> 'cancel'",
    ),
    "release": ({"wish": "NULL"}, "wish = 'hold'"),
}
_CONTENT_LEFT = (
    " AND (EXISTS (SELECT 1 FROM body b WHERE b.seq = recipient.message)"
    " OR EXISTS (SELECT 1 FROM message m JOIN chunk c ON c.upload = m.upload WHERE m.seq = "
    "recipient.message))"
)


def change(
    selection: Filter, event: str, now: int, reason: str = "", after: tuple[int, int] = (0, 0)
) -> Verb[tuple[int, tuple[int, int] | None]]:
    """One page of a change that a person asked for. Returns (recipients changed, where the next page begins
    or None).
    """
    page = yield from _page(selection, now, after)
    count = yield from apply(event, page, now, reason)
    return count, _next(page)


def reroute(
    selection: Filter, route: str, now: int, after: tuple[int, int] = (0, 0)
) -> Verb[tuple[int, tuple[int, int] | None]]:
    """Give one page of recipients another route. Returns what `change` returns. Queued recipients are due at
    once, but not before the time the sender asked for. Recipients that are being sent take the new route if
    they come back.
    """
    page = yield from _page(selection, now, after)
    changed = yield Many(_REROUTE, [(route, now, m, n) for m, n in page])
    yield Many(ROUTE_EVENT, [(*row, route) for row in event_rows(now, "reroute", changed)])
    return len(changed), _next(page)


#: One statement for all states. With two, a recipient that an engine returns in between would be missed.
_REROUTE = (
    "UPDATE recipient SET destination = ?1, reason = CASE state WHEN 'queued' THEN '' ELSE reason END,"
    " due = CASE WHEN state <> 'queued' THEN due WHEN not_before > ?2 THEN not_before ELSE ?2 END"
    f" WHERE message = ?3 AND n = ?4 AND state IN ({_in('reroute')}, 'sending')"
    " AND destination <> ?1 AND coalesce(wish, '') <> 'cancel'"
    " RETURNING message, n, state, uncertain, reason, attempts"
)


def _page(selection: Filter, now: int, after: tuple[int, int]) -> Verb[list[Any]]:
    condition, params = where(selection, now)
    return (
        yield (
            "SELECT r.message, r.n FROM message m JOIN recipient r ON r.message = m.seq LEFT JOIN attempt a "
            "ON a.id = r.attempt AND a.message = r.message"
            f" WHERE (r.message, r.n) > (?, ?) AND {condition} ORDER BY r.message, r.n LIMIT {PAGE}",
            (*after, *params),
        )
    )


def _next(page: Sequence[Any]) -> tuple[int, int] | None:
    return (page[-1][0], page[-1][1]) if len(page) == PAGE else None


def apply(event: str, rows: Sequence[tuple[int, int]], now: int, reason: str) -> Verb[int]:
    changed = yield Many(_statement(event), [(now, reason, m, n) for m, n in rows])
    yield Many(EVENT, event_rows(now, event, changed))
    return len(changed)


@cache
def _statement(event: str) -> str:
    """One statement for all states, so that no recipient is missed that an engine returns meanwhile."""
    plain = _CHANGES[event]
    wished, unless = _WISHES.get(event, ({}, ""))
    if event == "confirm":
        origin = f"state IN ({_in(event)}, 'sending') AND uncertain = 1"
    elif event == "requeue":
        origin = f"state IN ({_in(event)}){_CONTENT_LEFT}"
    elif wished:
        origin = f"(state IN ({_in(event)}) OR (state = 'sending' AND {unless}))"
    else:
        origin = f"state IN ({_in(event)})"
    sets = plain
    if wished:
        sets = {
            column: f"CASE state WHEN 'sending' THEN {wished.get(column, column)}"
            f" ELSE {plain.get(column, column)} END"
            for column in {**plain, **wished}
        }
    text = ", ".join(f"{column} = {value}" for column, value in sets.items())
    return (
        f"UPDATE recipient SET {text.replace(':now', '?1').replace(':reason', '?2')}"
        f" WHERE message = ?3 AND n = ?4 AND {origin}"
        " RETURNING message, n, state, uncertain, reason, attempts"
    )


# -- reading -------------------------------------------------------------------------------------------------

_STATUS = (
    "SELECT seq, id, message_id, sender, subject, size, sha256, key, tag, priority, accepted_at, "
    "expires_at FROM message WHERE seq = ?"
)
_STANDING = (
    "SELECT r.message, r.n, r.address, r.state, r.uncertain, r.reason, r.attempts, r.due, r.destination, "
    "a.code, a.enhanced, a.text"
    " FROM recipient r LEFT JOIN attempt a ON a.id = r.attempt AND a.message = r.message WHERE r.message = ? "
    "ORDER BY r.n"
)


def seq_of(id: str) -> Verb[int | None]:
    """The store's number of a message, or None."""
    rows = yield (
        "SELECT seq FROM message WHERE id = ? AND EXISTS (SELECT 1 FROM recipient WHERE message = seq)",
        (id,),
    )
    return rows[0][0] if rows else None


def ids_beginning(prefix: str, limit: int = 3) -> Verb[list[str]]:
    """The ids of messages that begin so, at most so many."""
    rows = yield (
        "SELECT id FROM message m WHERE id >= ? AND id < ? AND EXISTS (SELECT 1 FROM recipient r WHERE "
        "r.message = m.seq) ORDER BY id LIMIT ?",
        (prefix, f"{prefix}w", limit),  # an id has no letter behind v
    )
    return [row[0] for row in rows]


def failed_since(since: int, most: int = 100_000) -> Verb[int]:
    """How many recipients have failed since then, among the newest events."""
    rows = yield (
        "SELECT count(*) FROM (SELECT at, state FROM event WHERE cursor IS NOT NULL ORDER BY cursor DESC "
        "LIMIT ?) e WHERE at >= ? AND state = 'failed'",
        (most, since),
    )
    return int(rows[0][0])


def find(
    selection: Filter, now: int, after: int = 0, limit: int = 500
) -> Verb[tuple[list[Status], int | None]]:
    """A page of messages of which at least one recipient matches, oldest first. Also returns where the next
    page begins, or None.
    """
    condition, params = where(selection, now)
    rows = yield (
        f"SELECT DISTINCT m.seq FROM message m JOIN recipient r ON r.message = m.seq LEFT JOIN attempt a ON "
        f"a.id = r.attempt AND a.message = r.message"
        f" WHERE m.seq > ? AND {condition} ORDER BY m.seq LIMIT ?",
        (after, *params, limit),
    )
    seqs = [row[0] for row in rows]
    return (yield from statuses(seqs)), seqs[-1] if len(seqs) == limit else None


def unfinished(
    after: tuple[int, int], limit: int = 5000
) -> Verb[tuple[list[tuple[Any, ...]], tuple[int, int] | None]]:
    """A page of recipients that are not final, as (id, size, accepted_at, sender, address, state, reason),
    oldest first; and where the next page begins, or None.
    """
    rows = yield (
        "SELECT r.message, r.n, m.id, m.size, m.accepted_at, m.sender, r.address, r.state, r.reason"
        " FROM recipient r JOIN message m ON m.seq = r.message"
        " WHERE r.state IN ('queued', 'sending', 'held') AND (r.message, r.n) > (?, ?)"
        " ORDER BY r.message, r.n LIMIT ?",
        (*after, limit),
    )
    return [row[2:] for row in rows], (rows[-1][0], rows[-1][1]) if len(rows) == limit else None


def statuses(seqs: Sequence[int]) -> Verb[list[Status]]:
    """Messages with their recipients, by the store's numbers."""
    keys = [(seq,) for seq in seqs]
    rows = yield Many(_STATUS, keys)
    standings = yield Many(_STANDING, keys)
    people: dict[int, list[RecipientStatus]] = {}
    for seq, n, address, state, uncertain, reason, attempts, due, route, code, enhanced, text in standings:
        reply = Reply(code, text, enhanced) if code is not None else None
        due = due if state == lifecycle.QUEUED else None
        people.setdefault(seq, []).append(
            RecipientStatus(n, address, state, bool(uncertain), reason, attempts, due, route, reply)
        )
    return [
        Status(
            id,
            message_id,
            sender,
            subject,
            size,
            sha256.hex(),
            key,
            tag,
            PRIORITIES[priority],
            accepted,
            expires,
            tuple(people.get(seq, ())),
        )
        for seq, id, message_id, sender, subject, size, sha256, key, tag, priority, accepted, expires in rows
    ]


def content(seq: int) -> Verb[bytes | None]:
    """The bytes of a message; None when retention has taken them."""
    rows = yield (
        "SELECT m.upload, b.content FROM message m LEFT JOIN body b ON b.seq = m.seq WHERE m.seq = ?",
        (seq,),
    )
    if not rows:
        return None
    upload, body = rows[0]
    if upload is None:
        return body  # type: ignore[no-any-return]
    return (yield from chunks(upload)) or None


def attempts(seq: int) -> Verb[list[Attempt]]:
    """Every try of a message, oldest first."""
    rows = yield (
        "SELECT at, recipients, route, host, duration_ms, outcome, code, enhanced, text, transcript FROM "
        "attempt WHERE message = ? ORDER BY id",
        (seq,),
    )
    return [
        Attempt(
            at,
            tuple(json.loads(who)),
            route,
            host,
            ms,
            outcome,
            Reply(code, text, enhanced),
            _lines(transcript, code, enhanced, text),
        )
        for at, who, route, host, ms, outcome, code, enhanced, text, transcript in rows
    ]


def _lines(transcript: str | None, code: int, enhanced: str, text: str) -> tuple[Mapping[str, Any], ...]:
    if transcript is None:
        return ({"ms": 0, "dir": "S", "line": str(Reply(code, text, enhanced))},) if code else ()
    return tuple(json.loads(transcript))


def events_after(cursor: int, limit: int = 1000) -> Verb[list[Event]]:
    """Events after a cursor, in the order of their commits."""
    rows = yield (
        "SELECT e.cursor, e.at, e.event, m.id, e.n, r.address, e.state, e.uncertain, e.reason, e.attempts, "
        "a.code, a.enhanced, a.text, e.route"
        " FROM event e LEFT JOIN message m ON m.seq = e.message LEFT JOIN recipient r ON r.message = "
        "e.message AND r.n = e.n"
        " LEFT JOIN attempt a ON a.id = e.attempt AND a.message = e.message WHERE e.cursor > ? AND (m.seq IS "
        "NOT NULL OR e.message < 0) ORDER BY e.cursor LIMIT ?",
        (cursor, limit),
    )
    return [
        Event(
            c,
            at,
            event,
            id,
            n,
            address,
            state or None,
            bool(mark),
            reason,
            tries,
            Reply(code, text, enhanced) if code is not None else None,
            route,
        )
        for c, at, event, id, n, address, state, mark, reason, tries, code, enhanced, text, route in rows
    ]


def cursor_at(since: int) -> Verb[int]:
    """The cursor behind which all events lie that happened at that time or later."""
    rows = yield "SELECT min(cursor) FROM event WHERE at >= ?", (since,)
    return int(rows[0][0]) - 1 if rows[0][0] is not None else (yield from last_cursor())


def last_cursor() -> Verb[int]:
    """The newest event's cursor."""
    rows = yield "SELECT max(cursor) FROM event", ()
    return rows[0][0] or 0


#: Since when something waits: scheduled mail from its time on, and not before.
_WAITS_SINCE = "CASE WHEN r.not_before > m.accepted_at THEN r.not_before ELSE m.accepted_at END"


def stats(now: int) -> Verb[dict[str, Any]]:
    """The queue in numbers: live recipients by route and state, with the oldest; everything by state."""
    routes = yield (
        "SELECT r.destination, r.state, r.attempts > 0, count(*), min(m.accepted_at), count(CASE WHEN r.due "
        "<= ? THEN 1 END), sum(r.uncertain)"
        " FROM recipient r JOIN message m ON m.seq = r.message WHERE r.state IN ('queued', 'sending', "
        "'held') GROUP BY 1, 2, 3 ORDER BY 1, 2, 3",
        (now,),
    )
    totals = yield "SELECT state, count(*) FROM recipient GROUP BY state", ()
    return {
        "routes": [
            {
                "route": route,
                "state": "deferred" if tried and state == "queued" else state,
                "recipients": count,
                "oldest_at": oldest,
                "due": ready,
                "uncertain": int(uncertain),
            }
            for route, state, tried, count, oldest, ready, uncertain in routes
        ],
        "states": dict(totals),
    }


_WAITING = (
    "SELECT {what}, count(*), min(" + _WAITS_SINCE + "), sum(CASE WHEN r.state = 'held' THEN 1 ELSE 0 END)"
    " FROM recipient r JOIN message m ON m.seq = r.message LEFT JOIN attempt a ON a.id = r.attempt AND "
    "a.message = r.message WHERE r.state IN ('queued', 'sending', 'held') AND r.not_before <= ?"
    " GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT ?"
)
#: `postgres.dialect` has another word for the domain.
BY_ROUTE = _WAITING.format(what="r.destination")
BY_DOMAIN = _WAITING.format(what="lower(substr(r.address, instr(r.address, '@') + 1))")
#: A server's code and enhanced code, which do not change from one message to the next as its words do; the
#: reason where nobody answered.
BY_REASON = _WAITING.format(
    what="CASE WHEN a.code > 0 AND r.reason <> '' THEN CAST(a.code AS TEXT) || ' ' || a.enhanced ELSE "
    "r.reason END"
)
_BY = {"relay": BY_ROUTE, "domain": BY_DOMAIN, "reason": BY_REASON}


def waiting(by: str, now: int, limit: int) -> Verb[list[tuple[str, int, int, int]]]:
    """What waits and whose time has come, by "relay" (the route's name), recipient "domain" or "reason", as
    (which, recipients, since when the oldest, how many of them held); most first.
    """
    rows = yield _BY[by], (now, limit)
    return [(which.strip(), count, since, int(held)) for which, count, since, held in rows]


def deeper(limit: int) -> Verb[bool]:
    """True when more recipients wait than ``limit``. Costs no more than counting that many."""
    rows = yield (
        "SELECT count(*) FROM (SELECT 1 FROM recipient WHERE state IN ('queued', 'held') LIMIT ?) w",
        (limit + 1,),
    )
    return bool(rows[0][0] > limit)


FIRST_DESTINATION = "SELECT min(destination) FROM recipient WHERE state = 'queued' AND losses = 0"
NEXT_DESTINATION = f"{FIRST_DESTINATION} AND destination > ?"


def destinations() -> Verb[list[str]]:
    """The destinations that have queued mail. A loose index scan: one seek for each, however much mail
    waits.
    """
    found: list[str] = []
    rows = yield FIRST_DESTINATION, ()
    while rows[0][0] is not None:
        found.append(rows[0][0])
        rows = yield NEXT_DESTINATION, (found[-1],)
    return found
