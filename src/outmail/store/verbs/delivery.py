"""The verbs of a message's way through the queue: it is added, leased by an engine, settled, or taken back
from an engine that died.

Each function is a generator that yields SQL and returns its result; `drivers.drive` and
`postgres.connection.drive` run it. The WHERE clause of each change names the states from which it is legal
(`lifecycle.sources`), so an illegal change changes no row. Each change but ``lease`` and ``returned`` writes
its event in the same transaction.
Fails: `Missing` from `add`, when pieces of a long content are gone.
Does not: begin, commit, wait, read a clock (``now`` is passed in), or touch the file of an engine (`owner`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from outmail import lifecycle
from outmail.lifecycle import Standing
from outmail.model import Delivery, Dsn, Filter, Leased, Message, Settled, Verdict
from outmail.policy import pace
from outmail.policy.loopback import APART
from outmail.policy.retry import WAITS_FOR_COPY, lost_due
from outmail.store import Added, Exclusive, Many, Missing, Numbers, Uploads, Verb
from outmail.store.verbs import loopback
from outmail.store.verbs.queue import change, destinations
from outmail.store.verbs.rows import (
    BLANK,
    BODY,
    EVENT,
    GONE,
    LISTED,
    MAX_BATCH,
    PIECE,
    chunks,
    event_rows,
    json_list,
)

# -- accepting -----------------------------------------------------------------------------------------------

_MESSAGE = (
    "INSERT INTO message (seq, id, sender, message_id, subject, size, sha256, needs, priority, accepted_at, "
    "expires_at, key, tag, dsn, upload)"
    " VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
)

_RECIPIENT = (
    "INSERT INTO recipient (message, n, address, destination, priority, state, due, expires_at, not_before, "
    "reason, finished_at, owner, lease, leased_at)"
    " VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
)


def columns(message: Message) -> tuple[Any, ...]:
    """Of the table message: from id to dsn."""
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
    )


def _recipient_rows(seq: int, message: Message, taken: tuple[int, int] | None) -> Iterator[tuple[Any, ...]]:
    """``taken``: the engine and the number of its lease, if one has the message at once."""
    at, due, expires_at, priority = message.accepted_at, message.due, message.expires_at, message.priority
    not_before = due if due > at else 0
    owner, lease = taken or (None, None)
    state, leased_at = ("queued", None) if taken is None else ("sending", at)
    for n, one in enumerate(message.recipients, 1):
        what = (seq, n, one.address, one.destination, priority)
        if one.suppressed:
            yield (*what, "failed", None, expires_at, 0, one.suppressed, at, None, None, None)
        else:
            yield (*what, state, due, expires_at, not_before, "", None, owner, lease, leased_at)


def _suppressions(seq: int, message: Message) -> Iterator[tuple[Any, ...]]:
    """The events of recipients that may not be contacted."""
    for n, one in enumerate(message.recipients, 1):
        if one.suppressed:
            yield (message.accepted_at, "suppress", seq, n, "failed", 0, one.suppressed, 0, None)


def add(
    messages: Sequence[Message],
    uploads: Uploads = (),
    supersede: str | None = None,
    taken: Mapping[str, tuple[int, int]] | None = None,
    *,
    again: bool = False,
    alone: bool = False,
) -> Verb[list[Added]]:
    """Store messages, all or none. A message with a known key is not added; the answer is the receipt of the
    first one.

    ``uploads`` names the pieces of messages whose content was written before; raises `Missing` when some of
    them are gone. ``supersede`` cancels, in the same transaction, what still waits of another message.
    ``taken`` leases messages to an engine in the same transaction, as (owner, lease); that engine has their
    content in memory. With ``again`` these messages may have been added before, with or without a key: a
    message with a known id is not added. ``alone`` promises that the transaction has no other verb.
    """
    result: list[Added] = []
    numbers = iter((yield Numbers("message", len(messages))))
    if again or any(message.key for message in messages):
        yield Exclusive([message.id for message in messages if again or message.key])
    rows: list[tuple[Any, ...]] = []
    bodies: list[tuple[Any, ...]] = []
    recipients: list[tuple[Any, ...]] = []
    events: list[tuple[Any, ...]] = []
    fresh: dict[str, Added] = {}
    for message, upload in zip(messages, uploads or [None] * len(messages)):
        once = again or bool(message.key)
        known = fresh.get(message.id) if once else None
        if once and not known:
            known = yield from known_as(message.id)
        if known:
            result.append((*known[:3], True, 0))
            continue
        seq = next(numbers)
        rows.append((seq, *columns(message), upload))
        if upload is None:
            bodies.append((seq, message.content))
        events.append((message.accepted_at, "accepted", seq, None, "queued", 0, "", 0, None))
        if message.replaced:
            events.append(loopback.assigned(seq, message.accepted_at, message.replaced))
        recipients += _recipient_rows(seq, message, taken.get(message.id) if taken else None)
        events += _suppressions(seq, message)
        added = (message.id, message.message_id, message.accepted_at, False, seq)
        result.append(added)
        if once:
            fresh[message.id] = added
    if any(uploads):
        yield from check_uploads(
            [(message, upload) for message, upload, one in zip(messages, uploads, result) if not one[3]]
        )
    if rows:
        yield Many(_MESSAGE, rows)
        yield Many(BODY, bodies)
        yield Many(_RECIPIENT, recipients)
        yield Many(EVENT, events)
    if supersede is not None and messages:
        yield from change(Filter(ids=((supersede, None),)), "superseded", messages[0].accepted_at)
    return result


def known_as(id: str) -> Verb[Added | None]:
    """The answer for a message whose id exists already; None when it does not, or when only its number is
    left because its record was removed.
    """
    rows = yield KNOWN, (id,)
    if rows and not rows[0][4]:
        yield from free_id(rows[0][3])
    return (*rows[0][:3], True, 0) if rows and rows[0][4] else None


#: Not EXISTS: PostgreSQL may answer that by reading all recipients.
KNOWN = (
    "SELECT id, message_id, accepted_at, seq, (SELECT 1 FROM recipient r WHERE r.message = m.seq LIMIT "
    "1) FROM message m WHERE id = ?"
)


def free_id(seq: int) -> Verb[None]:
    """A message without recipients only reserves its number. Change its id, so that a new message can have
    it.
    """
    yield (
        "DELETE FROM chunk WHERE upload IN (SELECT upload FROM message WHERE seq = ? AND upload IS NOT NULL)",
        (seq,),
    )
    yield BLANK, (f"{GONE}{seq}", seq)


# -- long content, ahead of its message ----------------------------------------------------------------------


def check_uploads(fresh: Sequence[tuple[Message, str | None]]) -> Verb[None]:
    """Raises `Missing` unless all pieces of these messages are there, complete. Nobody removes them until the
    commit.
    """
    written = [(upload, len(message.content)) for message, upload in fresh if upload]
    yield Exclusive([upload for upload, _ in written])
    found = yield Many(_PIECES, [(upload,) for upload, _ in written])
    for (upload, size), (count, have) in zip(written, found):
        if (count, have) != (-(-size // PIECE), size):
            raise Missing(f"of {size} bytes that were written as {upload}, {have} are left")


_PIECES = "SELECT count(*), coalesce(sum(length(content)), 0) FROM chunk WHERE upload = ?"


def add_chunks(upload: str, first: int, pieces: Sequence[bytes], now: int) -> Verb[None]:
    """Write pieces of a long content, before its message."""
    yield Many(
        "INSERT INTO chunk (upload, n, added_at, content) VALUES (?,?,?,?)",
        [(upload, first + i, now, p) for i, p in enumerate(pieces)],
    )


# -- leasing -------------------------------------------------------------------------------------------------

READY = (
    "SELECT message, n, due FROM recipient WHERE state = 'queued' AND losses = 0 AND destination = ? AND "
    "priority = ? AND due >= ? AND due <= ?"
    " ORDER BY due, message, n LIMIT ?"
)
_OLDEST = (
    "SELECT priority, due FROM recipient WHERE state = 'queued' AND losses = 0 AND destination = ? AND "
    "priority = ? AND due >= ? ORDER BY due LIMIT 1"
)
SUSPECTS = (
    "SELECT message, n, destination FROM recipient WHERE state = 'queued' AND losses > 0 AND due <= "
    "? ORDER BY due LIMIT 100"
)
ONLY = "SELECT n, destination FROM recipient WHERE message = ? AND state = 'queued' AND due <= ? ORDER BY n"
# One statement for a whole batch, with the keys as JSON, takes a third of the time of one statement for each
# row (decision 3).
LEASE = (
    "UPDATE recipient SET state = 'sending', owner = ?, lease = ?, leased_at = ?"
    " WHERE (message, n) IN (SELECT value ->> 0, value ->> 1 FROM json_each(?)) AND state = 'queued'"
    " RETURNING message, n, address, destination, attempts, uncertain, losses, expires_at"
)
SIZES = f"SELECT seq, size FROM message WHERE seq {LISTED}"
TO_SEND = (
    "SELECT m.seq, m.id, m.sender, m.sha256, m.needs, m.message_id, m.accepted_at, m.expires_at - "
    "m.accepted_at, m.dsn, m.upload, m.tag, b.content"
    f" FROM message m LEFT JOIN body b ON b.seq = m.seq WHERE m.seq {LISTED}"
)


class ScanStart:
    """The due time at which a scan for recipients of a destination and priority begins. Here: the beginning.
    (`postgres.watermark` remembers more.)
    """

    def of(self, destination: str, priority: int) -> int:
        return 0

    def seen(self, destination: str, priority: int, due: int) -> None:
        """No recipient that was due before ``due`` is left."""

    def found(self, destination: str, priority: int, due: int) -> None:
        """The oldest waiting recipient is due at ``due``."""


def lease(
    owner: int,
    number: int,
    room: Mapping[str, int],
    now: int,
    *,
    turn: int = 0,
    budget: int = 1 << 62,
    suspects: bool = True,
    only: int | None = None,
    start: ScanStart | None = None,
) -> Verb[list[Delivery]]:
    """Lease up to ``room[destination]`` due recipients of each destination: by priority shares, and the
    oldest first.

    ``budget`` bounds the bytes of content; at least one message is always taken. With ``suspects`` one
    suspect message is leased, too, alone. A destination without room is not looked at. ``start`` says where a
    scan begins, and is told what is left.
    """
    start = start or ScanStart()
    picked: list[tuple[int, int]] = []
    if only is not None:
        rows = yield ONLY, (only, now)
        picked, room, suspects = [(only, n) for n, destination in rows if destination in room], {}, False
    left: list[tuple[str, int, int]] = []
    for destination, n in room.items():
        waiting = []
        for priority in range(3):
            waiting.append((yield READY, (destination, priority, start.of(destination, priority), now, n)))
        counts = pace.shares(n, (len(waiting[0]), len(waiting[1]), len(waiting[2])), turn)
        for priority, (rows, count) in enumerate(zip(waiting, counts)):
            picked += [(message, k) for message, k, _ in rows[:count]]
            left.append(
                (
                    destination,
                    priority,
                    rows[count][2] if count < len(rows) else rows[-1][2] if len(rows) == n else now,
                )
            )
    wanted = len(picked)
    picked = yield from _within(picked, budget)
    if len(picked) == wanted:
        for destination, priority, due in left:
            start.seen(destination, priority, due)
    if suspects:
        picked += yield from _suspect(room, now)
    if not picked:
        return []
    rows = yield LEASE, (owner, number, now, json.dumps(picked))
    return (yield from _deliveries(picked, rows, owner, number))


def _within(picked: list[tuple[int, int]], budget: int) -> Verb[list[tuple[int, int]]]:
    seqs = list(dict.fromkeys(message for message, _ in picked))
    sizes = dict((yield SIZES, (json.dumps(seqs),)))
    taken: set[int] = set()
    used = 0
    for seq in seqs:
        if used + sizes[seq] > budget and taken:
            break
        used += sizes[seq]
        taken.add(seq)
    return picked if len(taken) == len(seqs) else [pair for pair in picked if pair[0] in taken]


def _suspect(room: Mapping[str, int], now: int) -> Verb[list[tuple[int, int]]]:
    rows = yield SUSPECTS, (now,)
    mine = [(message, n, destination) for message, n, destination in rows if room.get(destination)]
    return [
        (message, n) for message, n, destination in mine if (message, destination) == (mine[0][0], mine[0][2])
    ]


def _deliveries(
    picked: list[tuple[int, int]], rows: list[Any], owner: int, number: int
) -> Verb[list[Delivery]]:
    """Leased rows as deliveries with content, in the order in which they were picked: one for each message
    and destination, with at most 100 recipients.
    """
    groups: dict[tuple[int, str], list[Leased]] = {}
    expiry: dict[tuple[int, str], int] = {}
    leased = {(row[0], row[1]): row for row in rows}
    for pair in picked:
        if pair not in leased:
            continue
        message, n, address, destination, attempts, uncertain, losses, expires_at = leased[pair]
        groups.setdefault((message, destination), []).append(
            Leased(n, address, attempts, bool(uncertain), losses)
        )
        expiry[message, destination] = expires_at
    found = yield TO_SEND, (json.dumps(list({message for message, _ in groups})),)
    messages = {row[0]: row for row in found}
    deliveries = []
    for (seq, destination), recipients in groups.items():
        _, id, sender, sha256, needs, message_id, accepted_at, life, dsn, upload, tag, content = messages[seq]
        if upload is not None:
            content = yield from chunks(upload)
        for start in range(0, len(recipients), MAX_BATCH):
            deliveries.append(
                Delivery(
                    seq,
                    id,
                    number,
                    destination,
                    sender,
                    content if content is not None else b"",
                    sha256,
                    needs,
                    message_id,
                    accepted_at,
                    expiry[seq, destination],
                    recipients[start : start + MAX_BATCH],
                    dsn=Dsn(**json.loads(dsn)) if dsn else None,
                    owner=owner,
                    life=life,
                    tag=tag,
                )
            )
    return deliveries


def next_due(now: int, start: ScanStart | None = None) -> Verb[dict[str, int]]:
    """For each destination with queued mail, when something is due. A million waiting rows cost a few index
    seeks.
    """
    start = start or ScanStart()
    due: dict[str, int] = {}
    for destination in (yield from destinations()):
        oldest = yield Many(
            _OLDEST, [(destination, priority, start.of(destination, priority)) for priority in range(3)]
        )
        for priority, moment in oldest:
            start.found(destination, priority, moment)
            due[destination] = min(moment, due.get(destination, moment))
    suspects = yield (
        "SELECT destination, due FROM recipient WHERE state = 'queued' AND losses > 0 ORDER BY due LIMIT "
        "1000",
        (),
    )
    for destination, moment in suspects:
        due[destination] = min(moment, due.get(destination, moment))
    return due


def know(destinations: set[str]) -> Verb[None]:
    """Nothing to do here: an index knows the destinations."""
    return
    yield


# -- settling ------------------------------------------------------------------------------------------------

#: How many lines of a long dialogue are kept at its beginning and at its end.
TRANSCRIPT = 50

#: The JSON rows are (attempt, at, message, n, lease). The unary plus keeps the planner from reading all
#: leases of the owner for each row.
DELIVERED = (
    "UPDATE recipient SET state = 'delivered', reason = '', due = NULL, attempts = attempts + 1, losses = 0, "
    "wish = NULL, owner = NULL,"
    " lease = NULL, attempt = j.value ->> 0, finished_at = j.value ->> 1 FROM json_each(?) j"
    " WHERE message = j.value ->> 2 AND n = j.value ->> 3 AND +state = 'sending' AND +owner = ? AND lease = "
    "j.value ->> 4"
    " RETURNING message, n, state, uncertain, reason, attempts, destination"
)
#: Why somebody's wish to cancel ends it.
_CANCELLED = f"CASE reason WHEN '{lifecycle.REPLACED}' THEN reason ELSE '{lifecycle.BY_OPERATOR}' END"
#: A wish to cancel ends what would wait again, and what would be held because it may have arrived.
_ENDS = "wish = 'cancel' AND (?1 = 'queued' OR (?1 = 'held' AND ?2 = 'uncertain'))"
_BACK = f"CASE WHEN {_ENDS} THEN 'cancelled' WHEN ?1 = 'queued' AND wish = 'hold' THEN 'held' ELSE ?1 END"
#: Parameters: 1 to, 2 reason, 3 due, 4 at, 5 charged, 6 uncertain, 7 settled, 8 attempt, 9 message, 10 n, 11
#: owner, 12 lease, 13 the route of the lease. That a next hop defers says nothing about another route.
_SETTLE = f"""
UPDATE recipient SET state = {_BACK},
    reason = CASE WHEN {_ENDS} THEN {_CANCELLED}
                  WHEN ?1 = 'queued' AND wish = 'hold' THEN 'operator'
                  WHEN ?1 = 'queued' AND ?2 = '' AND ?7 = 0 THEN reason ELSE ?2 END,
    due = CASE WHEN {_BACK} = 'queued'
               THEN CAST(CASE WHEN destination <> ?13 AND ?6 = 0 THEN ?4 ELSE ?3 END AS bigint) END,
    finished_at = CASE WHEN {_BACK} IN ('failed', 'cancelled', 'delivered') THEN ?4 END,
    attempts = attempts + ?5, uncertain = CASE WHEN ?6 > uncertain THEN ?6 ELSE uncertain END,
    losses = CASE WHEN ?7 = 1 THEN 0 ELSE losses END,
    attempt = coalesce(?8, attempt), wish = NULL, owner = NULL, lease = NULL
WHERE message = ?9 AND n = ?10 AND state = 'sending' AND owner = ?11 AND lease = ?12
RETURNING message, n, state, uncertain, reason, attempts
""".strip()
_CONFIRM = (
    "UPDATE recipient SET state = 'delivered', reason = 'confirmed', due = NULL, owner = NULL, lease = NULL, "
    "wish = NULL, losses = 0,"
    " attempt = ?, finished_at = ? WHERE message = ? AND n = ? AND uncertain = 1 AND state IN ('queued', "
    "'sending', 'held')"
    " RETURNING message, n, state, uncertain, reason, attempts, destination"
)
#: What got another route while it was being sent: the one that delivered it stays on record.
_TOOK = "UPDATE recipient SET destination = ? WHERE message = ? AND n = ? AND state = 'delivered'"
_ATTEMPT = (
    "INSERT INTO attempt (id, message, at, route, host, duration_ms, outcome, code, enhanced, text, "
    "recipients, transcript)"
    " VALUES (?,?,?,?,?,?,?,?,?,?,?,?)"
)
_TARGET = {
    "delivered": "delivered",
    "refused": "failed",
    "deferred": "queued",
    "unknown": "queued",
    "expired": "failed",
    "quarantine": "held",
}


def settle(owner: int, settled: Sequence[Settled], *, hold_unknown: bool = False) -> Verb[int]:
    """Write what attempts found out: attempt, state and event of each recipient in one transaction. Returns
    how many recipients changed.

    A recipient that this engine no longer has is not changed, with one exception: a late *delivered*
    confirms an uncertain recipient, whoever has leased it. A recipient that got another route
    meanwhile is due there at once when it is deferred; when it is delivered, it keeps the route
    that delivered it.
    """
    groups = [(item, event, group) for item in settled for event, group in _alike(item.verdicts)]
    numbers = yield Numbers("attempt", len(groups))
    attempts: list[tuple[Any, ...]] = []
    plain: list[tuple[Any, ...]] = []
    other: list[tuple[Any, ...]] = []
    context: dict[tuple[int, int], tuple[str, int, int, str]] = {}
    for attempt, (item, event, group) in zip(numbers, groups):
        delivery = item.delivery
        outcome = group[0][0].outcome
        assert outcome is not None
        attempts.append(
            (
                attempt,
                delivery.seq,
                item.at,
                delivery.destination,
                delivery.host,
                item.duration_ms,
                outcome.kind,
                outcome.reply.code,
                outcome.reply.enhanced,
                outcome.reply.text,
                json_list([r.n for r, _ in group]),
                _transcript(item, event),
            )
        )
        for leased, verdict in group:
            context[delivery.seq, leased.n] = (event, item.at, attempt, delivery.destination)
            if event == "delivered":
                plain.append((attempt, item.at, delivery.seq, leased.n, delivery.lease))
            else:
                to = "held" if event == "unknown" and hold_unknown else _TARGET[event]
                reason = "uncertain" if event == "unknown" and hold_unknown else verdict.reason
                other.append(
                    (
                        to,
                        reason,
                        verdict.due,
                        item.at,
                        int(verdict.charged),
                        int(event == "unknown"),
                        1,
                        attempt,
                        delivery.seq,
                        leased.n,
                        owner,
                        delivery.lease,
                        delivery.destination,
                    )
                )
    yield Many(_ATTEMPT, attempts)
    done = (yield DELIVERED, (json.dumps(plain), owner)) if plain else []
    back = (yield Many(_SETTLE, other)) if other else []
    if len(done) + len(back) < len(context):
        done += yield from _late(plain, done, context)
    elsewhere = [(context[m, n][3], m, n) for m, n, *_, route in done if route != context[m, n][3]]
    if elsewhere:
        yield Many(_TOOK, elsewhere)
    events = []
    for message, n, state, uncertain, reason, count, *_ in (*done, *back):
        event, at, number, _ = context[message, n]
        events.append((at, event, message, n, state, uncertain, reason, count, number))
    yield Many(EVENT, events)
    if copies := loopback.of_settled(owner, settled):
        yield from loopback.sent(copies, settled[-1].at)
    return len(events)


def _alike(verdicts: Sequence[tuple[Leased, Verdict]]) -> list[tuple[str, Sequence[tuple[Leased, Verdict]]]]:
    """Group the verdicts: recipients with the same event and outcome share one attempt."""
    if len(verdicts) == 1:
        return [(verdicts[0][1].event, verdicts)]
    groups: dict[tuple[str, Any], list[tuple[Leased, Verdict]]] = {}
    for leased, verdict in verdicts:
        groups.setdefault((verdict.event, leased.outcome), []).append((leased, verdict))
    return [(event, group) for (event, _), group in groups.items()]


def _transcript(item: Settled, event: str) -> str | None:
    if not item.keep_transcript and event == "delivered":
        return None
    lines = [
        {"ms": ms, "dir": way, "line": line.decode("utf-8", "replace")[:1000]}
        for ms, way, line in item.delivery.transcript
    ]
    if len(lines) > 2 * TRANSCRIPT:
        lines[TRANSCRIPT:-TRANSCRIPT] = [{"ms": lines[TRANSCRIPT]["ms"], "dir": "S", "line": "(…)"}]
    return json.dumps(lines)


def _late(
    plain: list[Any], done: list[Any], context: dict[tuple[int, int], tuple[str, int, int, str]]
) -> Verb[list[Any]]:
    mine = {(row[0], row[1]) for row in done}
    late = [(attempt, at, message, n) for attempt, at, message, n, _ in plain if (message, n) not in mine]
    for _, at, message, n in late:
        context[message, n] = ("confirm", at, *context[message, n][2:])
    return (yield Many(_CONFIRM, late)) if late else []


def unlease(owner: int, numbers: Sequence[int], now: int) -> Verb[int]:
    """Put back into the queue what these leases hold: the store gave the leases, but the engine never got the
    answer.
    """
    rows = yield Many(
        "UPDATE recipient SET"
        " state = CASE wish WHEN 'cancel' THEN 'cancelled' WHEN 'hold' THEN 'held' ELSE 'queued' END,"
        f" reason = CASE wish WHEN 'cancel' THEN {_CANCELLED} WHEN 'hold' THEN 'operator'"
        " ELSE reason END,"
        " due = CASE WHEN wish IS NULL THEN ?1 END,"
        " finished_at = CASE WHEN wish = 'cancel' THEN ?1 END, wish = NULL, owner = NULL, lease = NULL"
        " WHERE state = 'sending' AND owner = ?2 AND lease = ?3 RETURNING n",
        [(now, owner, number) for number in numbers],
    )
    return len(rows)


def give_back(owner: int, deliveries: Iterable[Delivery], now: int, why: str = "") -> Verb[int]:
    """Put untried recipients back into the queue. No attempt is counted. With ``why`` an attempt is recorded
    that gives the reason.
    """
    count = 0
    deliveries = list(deliveries)
    numbers = yield Numbers("attempt", len(deliveries))
    for attempt, delivery in zip(numbers, deliveries):
        lease = (owner, delivery.lease, delivery.destination)
        rows = yield Many(
            _SETTLE,
            [
                ("queued", why, now, now, 0, 0, 0, None, delivery.seq, r.n, *lease)
                for r in delivery.recipients
            ],
        )
        count += len(rows)
        people = json_list([r.n for r in delivery.recipients])
        yield (
            _ATTEMPT,
            (
                attempt,
                delivery.seq,
                now,
                delivery.destination,
                delivery.host,
                0,
                "returned",
                0,
                "",
                why,
                people,
                None,
            ),
        )
    return count


def quarantine(owner: int, delivery: Delivery, now: int, reason: str) -> Verb[int]:
    """Hold a message that cannot be read, with an event."""
    lease = (owner, delivery.lease, delivery.destination)
    rows = yield Many(
        _SETTLE,
        [
            ("held", f"corrupt: {reason}", None, now, 0, 0, 1, None, delivery.seq, r.n, *lease)
            for r in delivery.recipients
        ],
    )
    yield Many(EVENT, event_rows(now, "quarantine", rows))
    return len(rows)


# -- engines -------------------------------------------------------------------------------------------------


def register(uuid: str, pid: int, host: str, boot: str, now: int) -> Verb[int]:
    """Register a new engine. Returns its number."""
    rows = yield (
        "INSERT INTO owner (uuid, pid, host, boot, started_at) VALUES (?,?,?,?,?) RETURNING id",
        (uuid, pid, host, boot, now),
    )
    return int(rows[0][0])


def owners() -> Verb[list[tuple[int, str, int, str, int, int, int | None]]]:
    """All known engines, as (id, uuid, pid, boot, started_at, leased recipients, time of the oldest
    lease).
    """
    rows = yield (
        "SELECT o.id, o.uuid, o.pid, o.boot, o.started_at, count(r.message), min(r.leased_at) FROM owner o"
        " LEFT JOIN recipient r ON r.owner = o.id AND r.state = 'sending' GROUP BY o.id ORDER BY o.id",
        (),
    )
    return rows


def engines() -> Verb[int]:
    """How many engines share the limits of next hops. Here always 1: on one host each engine has the limits
    for itself.
    """
    return 1
    yield


def eldest() -> Verb[int | None]:
    """The engine that was registered first; it does what only one engine has to do."""
    rows = yield "SELECT min(id) FROM owner", ()
    return rows[0][0]  # type: ignore[no-any-return]


def forget_owner(owner: int) -> Verb[bool]:
    """Remove an engine that has ended. False when it still has leases."""
    rows = yield (
        "DELETE FROM owner WHERE id = ? AND NOT EXISTS (SELECT 1 FROM recipient WHERE owner = ? AND state = "
        "'sending') RETURNING id",
        (owner, owner),
    )
    return bool(rows)


#: These stand in the place of a recipient's number in an engine's record. BEGUN: a session is about to work
#: on the delivery. HARMLESS: a session has worked on it for a while, and the engine is alive.
BEGUN, HARMLESS = 0, 0xFFFFFFFF
LOST = (
    "SELECT message, n, lease, losses, uncertain, wish, reason, destination, leased_at FROM recipient"
    " WHERE state = 'sending' AND owner = ?"
)


def reclaim(
    owner: int, noted: set[tuple[int, int, int]] | None, now: int, *, hold: bool, within: int = 0
) -> Verb[dict[str, int]]:
    """Take back all leases of a dead engine. ``noted``: the records in its file. With None every lease counts
    as possibly sent, and none as begun. ``within``: for so long (ms) those wait whose loopback copy may tell
    what became of them.
    """
    rows = yield LOST, (owner,)
    updates, events, uncertain = [], [], 0
    parts = loopback.noted_parts(noted) if noted is not None else {}
    together = Counter((message, number) for message, _, number, *_ in rows) if noted is None else {}
    copies: list[tuple[int, int, int, int, str, int]] = []
    for message, n, number, losses, mark, wish, reason, route, leased_at in rows:
        dot = noted is None or (message, n, number) in parts
        # without a record nobody knows which transaction it was; one who was alone had the first
        part = parts.get((message, n, number), 0) if noted is not None else int(within > 0)
        if noted is None and together[message, number] > 1:
            part = 0
        begun = (
            noted is not None
            and (message, BEGUN, number) in noted
            and (message, HARMLESS, number) not in noted
        )
        before = Standing("sending", reason, bool(mark), losses, wish)
        after = lifecycle.lost(before, dot=dot, begun=begun, hold=hold)
        finished = now if after.state in lifecycle.FINAL else None
        due = lost_due(after.losses, now) if after.state == "queued" else None
        reason = after.reason
        if part and within and due is not None and not part & APART:
            due, reason = max(due, now + within), f"{reason}; {WAITS_FOR_COPY}"
        if part:
            copies.append((message, n, number, part, route, leased_at))
        uncertain += after.uncertain and not before.uncertain
        updates.append(
            (
                after.state,
                reason,
                due,
                int(after.uncertain),
                after.losses,
                int(dot),
                finished,
                message,
                n,
                owner,
                number,
            )
        )
        events.append((now, "lost", message, n, after.state, int(after.uncertain), reason, 0, None))
    yield Many(
        "UPDATE recipient SET state = ?, reason = ?, due = ?, uncertain = ?, losses = ?, attempts = attempts "
        "+ ?, finished_at = ?, wish = NULL,"
        " owner = NULL, lease = NULL WHERE message = ? AND n = ? AND state = 'sending' AND owner = ? AND "
        "lease = ?",
        updates,
    )
    yield Many(EVENT, events)
    yield from loopback.sent(loopback.of_lost(owner, copies, now, presumed=noted is None), now)
    yield "DELETE FROM owner WHERE id = ?", (owner,)
    return {"owner": owner, "leases": len(rows), "uncertain": uncertain}
