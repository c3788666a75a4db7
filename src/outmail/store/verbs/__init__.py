"""The verbs of the SQL stores: every change of the queue, each a promise kept inside one transaction.

Each function is a generator that yields SQL and returns its result; `drivers.drive` runs it. State changes
carry the present state in their WHERE clause, so an illegal arrow changes zero rows; `lifecycle.sources` is
where those words come from. Every arrow but ``lease`` and ``returned`` writes its event beside the change.
The SQL is what SQLite and PostgreSQL both understand, but for the statements that `pgsql` says in its own
way.
Does not: begin, commit, wait, look at a clock (``now`` is passed in), or touch the file of an engine
(`owner`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from outmail import lifecycle
from outmail.lifecycle import Standing
from outmail.model import (
    PRIORITIES,
    Attempt,
    Delivery,
    Dsn,
    Event,
    Filter,
    Leased,
    Message,
    RecipientStatus,
    Reply,
    Settled,
    Status,
    Verdict,
)
from outmail.policy import pace
from outmail.policy.age import JUMP, NO_MARK, Mark
from outmail.policy.retry import lost_due
from outmail.store import Exclusive, Many, Missing, Numbers, Verb
from outmail.store.filters import where

MAX_BATCH = 100
#: Content longer than this is kept in pieces.
LONG = 1024 * 1024
PIECE = 256 * 1024
#: A condition on a column: one of many numbers, which are one parameter (`_list`). PostgreSQL has another
#: form of it (`pgsql.translated`).
LISTED = "IN (SELECT value FROM json_each(?))"
#: Lines kept of either end of a long dialogue.
TRANSCRIPT = 50

#: What `add` says of each message: (id, message_id, accepted_at, duplicate, the store's number or 0 for a
#: duplicate).
Added = tuple[str, str, int, bool, int]
#: For each of some messages, in their order, the name of the pieces that its content was written in, or None;
#: empty where none was.
Uploads = Sequence[str | None]


def _in(event: str) -> str:
    return ", ".join(f"'{state}'" for state in lifecycle.sources(event) if state != lifecycle.SENDING)


# -- accepting -----------------------------------------------------------------------------------------------

_MESSAGE = (
    "INSERT INTO message (seq, id, sender, message_id, subject, size, sha256, needs, priority, accepted_at, "
    "expires_at, key, tag, dsn, upload)"
    " VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
)
_BODY = "INSERT INTO body (seq, content) VALUES (?,?)"
_RECIPIENT = (
    "INSERT INTO recipient (message, n, address, destination, priority, state, due, expires_at, not_before, "
    "reason, finished_at, owner, lease, leased_at)"
    " VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
)
_EVENT = (
    "INSERT INTO event (at, event, message, n, state, uncertain, reason, attempts, attempt) VALUES "
    "(?,?,?,?,?,?,?,?,?)"
)


def add(
    messages: Sequence[Message],
    uploads: Uploads = (),
    supersede: str | None = None,
    taken: Mapping[str, tuple[int, int]] | None = None,
    *,
    again: bool = False,
    alone: bool = False,
) -> Verb[list[Added]]:
    """Store messages whole; all or none. A known key adds nothing and answers with the first receipt.

    ``uploads`` names the pieces of those whose content was written before; raises `Missing` unless all of it
    is there. ``supersede`` cancels the waiting recipients of another message in the same transaction.
    ``taken`` names messages whose recipients an engine leases in the moment they are accepted, as (owner,
    lease): it has their content at hand and need not read it back. ``again`` says that these may have been
    added before, keyed or not: a known id adds nothing. ``alone`` promises that nothing else belongs to the
    transaction.
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
        dsn = json.dumps(asdict(message.dsn)) if message.dsn else None
        rows.append(
            (
                seq,
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
                dsn,
                upload,
            )
        )
        if upload is None:
            bodies.append((seq, message.content))
        events.append((message.accepted_at, "accepted", seq, None, "queued", 0, "", 0, None))
        not_before = message.due if message.due > message.accepted_at else 0
        owner, lease = taken.get(message.id, (None, None)) if taken else (None, None)
        state, leased_at = ("queued", None) if owner is None else ("sending", message.accepted_at)
        for n, recipient in enumerate(message.recipients, 1):
            if recipient.suppressed:
                recipients.append(
                    (
                        seq,
                        n,
                        recipient.address,
                        recipient.destination,
                        message.priority,
                        "failed",
                        None,
                        message.expires_at,
                        0,
                        recipient.suppressed,
                        message.accepted_at,
                        None,
                        None,
                        None,
                    )
                )
                events.append(
                    (message.accepted_at, "suppress", seq, n, "failed", 0, recipient.suppressed, 0, None)
                )
            else:
                recipients.append(
                    (
                        seq,
                        n,
                        recipient.address,
                        recipient.destination,
                        message.priority,
                        state,
                        message.due,
                        message.expires_at,
                        not_before,
                        "",
                        None,
                        owner,
                        lease,
                        leased_at,
                    )
                )
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
        yield Many(_BODY, bodies)
        yield Many(_RECIPIENT, recipients)
        yield Many(_EVENT, events)
    if supersede is not None and messages:
        yield from change(Filter(ids=((supersede, None),)), "cancel", messages[0].accepted_at)
    return result


def known_as(id: str) -> Verb[Added | None]:
    """What was said of the message that has this id already, for another of the same id. One whose record is
    gone does not count.
    """
    rows = yield _KNOWN, (id,)
    if rows and not rows[0][4]:
        yield from free_id(rows[0][3])
    return (*rows[0][:3], True, 0) if rows and rows[0][4] else None


#: Not EXISTS, which PostgreSQL may answer by reading all recipients.
_KNOWN = (
    "SELECT id, message_id, accepted_at, seq, (SELECT 1 FROM recipient r WHERE r.message = m.seq LIMIT "
    "1) FROM message m WHERE id = ?"
)


def free_id(seq: int) -> Verb[None]:
    """A row without recipients only keeps its number: its id may be given to a new message."""
    yield (
        "DELETE FROM chunk WHERE upload IN (SELECT upload FROM message WHERE seq = ? AND upload IS NOT NULL)",
        (seq,),
    )
    yield _BLANK, (f"{GONE}{seq}", seq)


#: Begins what stands for the id where a message is gone and its number is kept. No id has a dot.
GONE = "gone."
_BLANK = (
    "UPDATE message SET id = ?, sender = '', message_id = '', subject = '', size = 0, key = NULL, tag = "
    "NULL, dsn = NULL, upload = NULL WHERE seq = ?"
)


def check_uploads(fresh: Sequence[tuple[Message, str | None]]) -> Verb[None]:
    """Raises `Missing` unless every piece written ahead for these messages is there, whole; until the commit
    nobody sweeps them.
    """
    written = [(upload, len(message.content)) for message, upload in fresh if upload]
    yield Exclusive([upload for upload, _ in written])
    found = yield Many(_PIECES, [(upload,) for upload, _ in written])
    for (upload, size), (count, have) in zip(written, found):
        if (count, have) != (-(-size // PIECE), size):
            raise Missing(f"of {size} bytes written ahead as {upload}, {have} are there")


_PIECES = "SELECT count(*), coalesce(sum(length(content)), 0) FROM chunk WHERE upload = ?"


def add_chunks(upload: str, first: int, pieces: Sequence[bytes], now: int) -> Verb[None]:
    """Part of a long content, ahead of its message."""
    yield Many(
        "INSERT INTO chunk (upload, n, added_at, content) VALUES (?,?,?,?)",
        [(upload, first + i, now, p) for i, p in enumerate(pieces)],
    )


# -- leasing -------------------------------------------------------------------------------------------------

_READY = (
    "SELECT message, n, due FROM recipient WHERE state = 'queued' AND losses = 0 AND destination = ? AND "
    "priority = ? AND due >= ? AND due <= ?"
    " ORDER BY due, message, n LIMIT ?"
)
_OLDEST = (
    "SELECT priority, due FROM recipient WHERE state = 'queued' AND losses = 0 AND destination = ? AND "
    "priority = ? AND due >= ? ORDER BY due LIMIT 1"
)
_SUSPECTS = (
    "SELECT message, n, destination FROM recipient WHERE state = 'queued' AND losses > 0 AND due <= "
    "? ORDER BY due LIMIT 100"
)
_ONLY = "SELECT n, destination FROM recipient WHERE message = ? AND state = 'queued' AND due <= ? ORDER BY n"
# One statement for a whole batch, its keys as JSON: a third of the time of the same statement once a row
# (decision 3).
_LEASE = (
    "UPDATE recipient SET state = 'sending', owner = ?, lease = ?, leased_at = ?"
    " WHERE (message, n) IN (SELECT value ->> 0, value ->> 1 FROM json_each(?)) AND state = 'queued'"
    " RETURNING message, n, address, destination, attempts, uncertain, losses, expires_at"
)
_SIZES = f"SELECT seq, size FROM message WHERE seq {LISTED}"
_TO_SEND = (
    "SELECT m.seq, m.id, m.sender, m.sha256, m.needs, m.message_id, m.accepted_at, m.expires_at - "
    "m.accepted_at, m.dsn, m.upload, b.content"
    f" FROM message m LEFT JOIN body b ON b.seq = m.seq WHERE m.seq {LISTED}"
)


class Floor:
    """From which moment on to look for due recipients. Here: from the beginning (`pgsql.Floor` remembers)."""

    def of(self, destination: str, priority: int) -> int:
        return 0

    def seen(self, destination: str, priority: int, due: int) -> None:
        """Nothing older than ``due`` is left."""

    def found(self, destination: str, priority: int, due: int) -> None:
        """The oldest that waits is due then."""


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
    floor: Floor | None = None,
) -> Verb[list[Delivery]]:
    """Take up to ``room[destination]`` due recipients of each destination, by priority shares, older first.

    ``budget`` bounds the bytes of content; at least one message is always taken. With ``suspects`` one
    suspect message comes along, alone. A destination without room is not looked at. ``floor`` remembers where
    to begin to look.
    """
    floor = floor or Floor()
    picked: list[tuple[int, int]] = []
    if only is not None:
        rows = yield _ONLY, (only, now)
        picked, room, suspects = [(only, n) for n, destination in rows if destination in room], {}, False
    left: list[tuple[str, int, int]] = []
    for destination, n in room.items():
        waiting = []
        for priority in range(3):
            waiting.append((yield _READY, (destination, priority, floor.of(destination, priority), now, n)))
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
            floor.seen(destination, priority, due)
    if suspects:
        picked += yield from _suspect(room, now)
    if not picked:
        return []
    rows = yield _LEASE, (owner, number, now, json.dumps(picked))
    return (yield from _deliveries(picked, rows, owner, number))


def _within(picked: list[tuple[int, int]], budget: int) -> Verb[list[tuple[int, int]]]:
    seqs = list(dict.fromkeys(message for message, _ in picked))
    sizes = dict((yield _SIZES, (json.dumps(seqs),)))
    taken: set[int] = set()
    used = 0
    for seq in seqs:
        if used + sizes[seq] > budget and taken:
            break
        used += sizes[seq]
        taken.add(seq)
    return picked if len(taken) == len(seqs) else [pair for pair in picked if pair[0] in taken]


def _suspect(room: Mapping[str, int], now: int) -> Verb[list[tuple[int, int]]]:
    rows = yield _SUSPECTS, (now,)
    mine = [(message, n, destination) for message, n, destination in rows if room.get(destination)]
    return [
        (message, n) for message, n, destination in mine if (message, destination) == (mine[0][0], mine[0][2])
    ]


def _deliveries(
    picked: list[tuple[int, int]], rows: list[Any], owner: int, number: int
) -> Verb[list[Delivery]]:
    """Leased rows → one delivery per message and destination, at most 100 recipients each, with the content,
    in the order picked.
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
    found = yield _TO_SEND, (json.dumps(list({message for message, _ in groups})),)
    messages = {row[0]: row for row in found}
    deliveries = []
    for (seq, destination), recipients in groups.items():
        _, id, sender, sha256, needs, message_id, accepted_at, life, dsn, upload, content = messages[seq]
        if upload is not None:
            content = yield from _chunks(upload)
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
                )
            )
    return deliveries


def _chunks(upload: str) -> Verb[bytes]:
    rows = yield "SELECT content FROM chunk WHERE upload = ? ORDER BY n", (upload,)
    return b"".join([row[0] for row in rows])


_FIRST_DESTINATION = "SELECT min(destination) FROM recipient WHERE state = 'queued' AND losses = 0"
_NEXT_DESTINATION = f"{_FIRST_DESTINATION} AND destination > ?"


def _destinations() -> Verb[list[str]]:
    """The destinations that have queued mail: a loose index scan, one seek each, however much waits."""
    found: list[str] = []
    rows = yield _FIRST_DESTINATION, ()
    while rows[0][0] is not None:
        found.append(rows[0][0])
        rows = yield _NEXT_DESTINATION, (found[-1],)
    return found


def next_due(now: int, floor: Floor | None = None) -> Verb[dict[str, int]]:
    """When each destination has something to do; a million waiting rows cost a few seeks."""
    floor = floor or Floor()
    due: dict[str, int] = {}
    for destination in (yield from _destinations()):
        oldest = yield Many(
            _OLDEST, [(destination, priority, floor.of(destination, priority)) for priority in range(3)]
        )
        for priority, moment in oldest:
            floor.found(destination, priority, moment)
            due[destination] = min(moment, due.get(destination, moment))
    suspects = yield (
        "SELECT destination, due FROM recipient WHERE state = 'queued' AND losses > 0 ORDER BY due LIMIT "
        "1000",
        (),
    )
    for destination, moment in suspects:
        due[destination] = min(moment, due.get(destination, moment))
    return due


# -- settling ------------------------------------------------------------------------------------------------

#: The JSON rows are (attempt, at, message, n, lease). Unary plus keeps the planner from walking all leases of
#: the owner for each.
_DELIVERED = (
    "UPDATE recipient SET state = 'delivered', reason = '', due = NULL, attempts = attempts + 1, losses = 0, "
    "wish = NULL, owner = NULL,"
    " lease = NULL, attempt = j.value ->> 0, finished_at = j.value ->> 1 FROM json_each(?) j"
    " WHERE message = j.value ->> 2 AND n = j.value ->> 3 AND +state = 'sending' AND +owner = ? AND lease = "
    "j.value ->> 4"
    " RETURNING message, n, state, uncertain, reason, attempts"
)
_BACK = (
    "CASE WHEN ?1 = 'queued' AND wish = 'cancel' THEN 'cancelled' WHEN ?1 = 'queued' AND wish = 'hold' "
    "THEN 'held' ELSE ?1 END"
)
#: Parameters: 1 to, 2 reason, 3 due, 4 at, 5 charged, 6 uncertain, 7 settled, 8 attempt, 9 message, 10 n, 11
#: owner, 12 lease.
_SETTLE = f"""
UPDATE recipient SET state = {_BACK},
    reason = CASE WHEN ?1 = 'queued' AND wish = 'cancel' THEN 'cancelled by operator'
                  WHEN ?1 = 'queued' AND wish = 'hold' THEN 'operator' ELSE ?2 END,
    due = CASE WHEN {_BACK} = 'queued' THEN CAST(?3 AS bigint) END,
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
    " RETURNING message, n, state, uncertain, reason, attempts"
)
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
    """Write what attempts learned: attempt, state and event together. Returns how many recipients changed.

    A row that is no longer ours changes nothing, except that a late *delivered* confirms an uncertain
    recipient, whoever holds it.
    """
    groups = [(item, event, group) for item in settled for event, group in _alike(item.verdicts)]
    numbers = yield Numbers("attempt", len(groups))
    attempts: list[tuple[Any, ...]] = []
    plain: list[tuple[Any, ...]] = []
    other: list[tuple[Any, ...]] = []
    context: dict[tuple[int, int], tuple[str, int, int]] = {}
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
                _list([r.n for r, _ in group]),
                _transcript(item, event),
            )
        )
        for leased, verdict in group:
            context[delivery.seq, leased.n] = (event, item.at, attempt)
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
                    )
                )
    yield Many(_ATTEMPT, attempts)
    changed = (yield _DELIVERED, (json.dumps(plain), owner)) if plain else []
    if other:
        changed += yield Many(_SETTLE, other)
    if len(changed) < len(context):
        changed += yield from _late(plain, changed, context)
    events = []
    for message, n, state, uncertain, reason, count in changed:
        event, at, number = context[message, n]
        events.append((at, event, message, n, state, uncertain, reason, count, number))
    yield Many(_EVENT, events)
    return len(events)


def _list(numbers: Iterable[int]) -> str:
    """As JSON."""
    return f"[{', '.join(map(str, numbers))}]"


def _alike(verdicts: Sequence[tuple[Leased, Verdict]]) -> list[tuple[str, Sequence[tuple[Leased, Verdict]]]]:
    """Those with one event and one outcome share an attempt."""
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
    plain: list[Any], changed: list[Any], context: dict[tuple[int, int], tuple[str, int, int]]
) -> Verb[list[Any]]:
    mine = {(row[0], row[1]) for row in changed}
    late = [(attempt, at, message, n) for attempt, at, message, n, _ in plain if (message, n) not in mine]
    for _, at, message, n in late:
        context[message, n] = ("confirm", at, context[message, n][2])
    return (yield Many(_CONFIRM, late)) if late else []


def unlease(owner: int, numbers: Sequence[int], now: int) -> Verb[int]:
    """Return what these leases hold: the store took them, and the engine never heard so."""
    rows = yield Many(
        "UPDATE recipient SET state = CASE wish WHEN 'cancel' THEN 'cancelled' WHEN 'hold' THEN 'held' ELSE "
        "'queued' END,"
        " reason = CASE wish WHEN 'cancel' THEN 'cancelled by operator' WHEN 'hold' THEN 'operator' ELSE '' "
        "END,"
        " due = CASE WHEN wish IS NULL THEN ?1 END, finished_at = CASE WHEN wish = 'cancel' THEN ?1 END, "
        "wish = NULL, owner = NULL, lease = NULL"
        " WHERE state = 'sending' AND owner = ?2 AND lease = ?3 RETURNING n",
        [(now, owner, number) for number in numbers],
    )
    return len(rows)


def give_back(owner: int, deliveries: Iterable[Delivery], now: int, why: str = "") -> Verb[int]:
    """Return untried recipients; no attempt is counted. With ``why`` the record is an attempt that says
    so.
    """
    count = 0
    deliveries = list(deliveries)
    numbers = yield Numbers("attempt", len(deliveries))
    for attempt, delivery in zip(numbers, deliveries):
        rows = yield Many(
            _SETTLE,
            [
                ("queued", why, now, now, 0, 0, 0, None, delivery.seq, r.n, owner, delivery.lease)
                for r in delivery.recipients
            ],
        )
        count += len(rows)
        people = _list([r.n for r in delivery.recipients])
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
    """Hold what cannot be read, with an event."""
    rows = yield Many(
        _SETTLE,
        [
            ("held", f"corrupt: {reason}", None, now, 0, 0, 1, None, delivery.seq, r.n, owner, delivery.lease)
            for r in delivery.recipients
        ],
    )
    yield Many(_EVENT, _events(now, "quarantine", rows))
    return len(rows)


def _events(at: int, event: str, rows: Iterable[Any]) -> list[tuple[Any, ...]]:
    return [
        (at, event, message, n, state, uncertain, reason, attempts, None)
        for message, n, state, uncertain, reason, attempts in rows
    ]


# -- owners --------------------------------------------------------------------------------------------------


def register(uuid: str, pid: int, host: str, boot: str, now: int) -> Verb[int]:
    """A new engine's number."""
    rows = yield (
        "INSERT INTO owner (uuid, pid, host, boot, started_at) VALUES (?,?,?,?,?) RETURNING id",
        (uuid, pid, host, boot, now),
    )
    return int(rows[0][0])


def owners() -> Verb[list[tuple[int, str, int, str, int, int, int | None]]]:
    """Known engines as (id, uuid, pid, boot, started_at, leased recipients, oldest lease)."""
    rows = yield (
        "SELECT o.id, o.uuid, o.pid, o.boot, o.started_at, count(r.message), min(r.leased_at) FROM owner o"
        " LEFT JOIN recipient r ON r.owner = o.id AND r.state = 'sending' GROUP BY o.id ORDER BY o.id",
        (),
    )
    return rows


def know(destinations: set[str]) -> Verb[None]:
    """Destinations that mail comes for: here an index knows them."""
    return
    yield


def engines() -> Verb[int]:
    """How many engines share the limits of next hops: on one host each has its own."""
    return 1
    yield


def eldest() -> Verb[int | None]:
    """The engine that has been there the longest: what needs to be done by one is done by it."""
    rows = yield "SELECT min(id) FROM owner", ()
    return rows[0][0]  # type: ignore[no-any-return]


def forget_owner(owner: int) -> Verb[bool]:
    """An engine left in order; False when it still has leases."""
    rows = yield (
        "DELETE FROM owner WHERE id = ? AND NOT EXISTS (SELECT 1 FROM recipient WHERE owner = ? AND state = "
        "'sending') RETURNING id",
        (owner, owner),
    )
    return bool(rows)


#: In the place of a recipient in an engine's record: a session is about to work on the delivery; it has done
#: so for a while, and the engine lives.
BEGUN, HARMLESS = 0, 0xFFFFFFFF
_LOST = (
    "SELECT message, n, lease, losses, uncertain, wish FROM recipient WHERE state = 'sending' AND owner = ?"
)


def reclaim(
    owner: int, noted: set[tuple[int, int, int]] | None, now: int, *, hold: bool
) -> Verb[dict[str, int]]:
    """Take back all leases of a dead engine. ``noted``: its record, None = every lease counts as noted, and
    none as begun.
    """
    rows = yield _LOST, (owner,)
    updates, events, uncertain = [], [], 0
    for message, n, number, losses, mark, wish in rows:
        dot = noted is None or (message, n, number) in noted
        begun = (
            noted is not None
            and (message, BEGUN, number) in noted
            and (message, HARMLESS, number) not in noted
        )
        before = Standing("sending", "", bool(mark), losses, wish)
        after = lifecycle.lost(before, dot=dot, begun=begun, hold=hold)
        finished = now if after.state in lifecycle.FINAL else None
        due = lost_due(after.losses, now) if after.state == "queued" else None
        uncertain += after.uncertain and not before.uncertain
        updates.append(
            (
                after.state,
                after.reason,
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
        events.append((now, "lost", message, n, after.state, int(after.uncertain), after.reason, 0, None))
    yield Many(
        "UPDATE recipient SET state = ?, reason = ?, due = ?, uncertain = ?, losses = ?, attempts = attempts "
        "+ ?, finished_at = ?, wish = NULL,"
        " owner = NULL, lease = NULL WHERE message = ? AND n = ? AND state = 'sending' AND owner = ? AND "
        "lease = ?",
        updates,
    )
    yield Many(_EVENT, events)
    yield "DELETE FROM owner WHERE id = ?", (owner,)
    return {"owner": owner, "leases": len(rows), "uncertain": uncertain}


# -- operators -----------------------------------------------------------------------------------------------

PAGE = 2000

_CHANGES: dict[str, str] = {
    "hold": "state = 'held', reason = 'operator', due = NULL",
    "release": "state = 'queued', reason = '', due = CASE WHEN not_before > :now THEN not_before ELSE :now "
    "END, losses = 0",
    "cancel": "state = 'cancelled', reason = 'cancelled by operator', due = NULL, finished_at = :now",
    "due": "due = :now, not_before = 0",
    "suppress": "state = 'failed', reason = :reason, due = NULL, finished_at = :now",
    "expired": "state = 'failed', reason = :reason, due = NULL, finished_at = :now",
    "confirm": "state = 'delivered', reason = 'confirmed', due = NULL, finished_at = :now, losses = 0, wish "
    "= NULL, owner = NULL, lease = NULL",
    "requeue": "state = 'queued', reason = '', due = :now, losses = 0, attempts = 0, finished_at = NULL, "
    "expires_at = :now"
    " + (SELECT m.expires_at - m.accepted_at FROM message m WHERE m.seq = recipient.message)",
}
_WISHES = {
    "hold": ("wish = 'hold'", "wish IS NULL"),
    "cancel": ("wish = 'cancel'", "coalesce(wish, '') <> 'cancel'"),
    "release": ("wish = NULL", "wish = 'hold'"),
}
_CONTENT_LEFT = (
    " AND (EXISTS (SELECT 1 FROM body b WHERE b.seq = recipient.message)"
    " OR EXISTS (SELECT 1 FROM message m JOIN chunk c ON c.upload = m.upload WHERE m.seq = "
    "recipient.message))"
)


def change(
    selection: Filter, event: str, now: int, reason: str = "", after: tuple[int, int] = (0, 0)
) -> Verb[tuple[int, tuple[int, int] | None]]:
    """One page of an operator's change; returns (recipients changed, where the next page begins or None)."""
    condition, params = where(selection, now)
    page = yield (
        f"SELECT r.message, r.n FROM message m JOIN recipient r ON r.message = m.seq LEFT JOIN attempt a ON "
        f"a.id = r.attempt AND a.message = r.message"
        f" WHERE (r.message, r.n) > (?, ?) AND {condition} ORDER BY r.message, r.n LIMIT {PAGE}",
        (*after, *params),
    )
    count = yield from _apply(event, page, now, reason)
    return count, (page[-1][0], page[-1][1]) if len(page) == PAGE else None


def _apply(event: str, rows: Sequence[tuple[int, int]], now: int, reason: str) -> Verb[int]:
    origin = f"state IN ({_in(event)})" + (_CONTENT_LEFT if event == "requeue" else "")
    if event == "confirm":
        origin = f"state IN ({_in(event)}, 'sending') AND uncertain = 1"
    returning = "RETURNING message, n, state, uncertain, reason, attempts"
    # Named in _CHANGES for the reader; numbered here for executemany, which takes sequences.
    sets = _CHANGES[event].replace(":now", "?1").replace(":reason", "?2")
    changed = yield Many(
        f"UPDATE recipient SET {sets} WHERE message = ?3 AND n = ?4 AND {origin} {returning}",
        [(now, reason, m, n) for m, n in rows],
    )
    if event in _WISHES:
        wish, unless = _WISHES[event]
        changed += yield Many(
            f"UPDATE recipient SET {wish} WHERE message = ? AND n = ? AND state = 'sending' AND {unless} "
            f"{returning}",
            rows,
        )
    yield Many(_EVENT, _events(now, event, changed))
    return len(changed)


# -- looking -------------------------------------------------------------------------------------------------

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


def find(
    selection: Filter, now: int, after: int = 0, limit: int = 500
) -> Verb[tuple[list[Status], int | None]]:
    """A page of messages that have a matching recipient, oldest first; and where the next page begins, or
    None.
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
    return (yield from _chunks(upload)) or None


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
    """Facts in the order of commit, behind a cursor."""
    rows = yield (
        "SELECT e.cursor, e.at, e.event, m.id, e.n, r.address, e.state, e.uncertain, e.reason, e.attempts, "
        "a.code, a.enhanced, a.text"
        " FROM event e JOIN message m ON m.seq = e.message LEFT JOIN recipient r ON r.message = e.message "
        "AND r.n = e.n"
        " LEFT JOIN attempt a ON a.id = e.attempt AND a.message = e.message WHERE e.cursor > ? ORDER BY "
        "e.cursor LIMIT ?",
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
            state,
            bool(mark),
            reason,
            tries,
            Reply(code, text, enhanced) if code is not None else None,
        )
        for c, at, event, id, n, address, state, mark, reason, tries, code, enhanced, text in rows
    ]


def last_cursor() -> Verb[int]:
    """The newest event's cursor."""
    rows = yield "SELECT max(cursor) FROM event", ()
    return rows[0][0] or 0


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


def deeper(limit: int) -> Verb[bool]:
    """True when more recipients than that wait; costs no more than counting so many."""
    rows = yield (
        "SELECT count(*) FROM (SELECT 1 FROM recipient WHERE state IN ('queued', 'held') LIMIT ?) w",
        (limit + 1,),
    )
    return bool(rows[0][0] > limit)


#: What must not be found, as (statement that counts it, what it is).
CHECKS = (
    (
        "SELECT count(*) FROM recipient r WHERE NOT EXISTS (SELECT 1 FROM message m WHERE m.seq = r.message)",
        "recipients without a message",
    ),
    (
        "SELECT count(*) FROM message m WHERE EXISTS (SELECT 1 FROM recipient r WHERE r.message = m.seq AND "
        "r.state IN ('queued', 'sending'))"
        " AND m.upload IS NULL AND NOT EXISTS (SELECT 1 FROM body b WHERE b.seq = m.seq)",
        "waiting messages without content",
    ),
)


# -- upkeep --------------------------------------------------------------------------------------------------


def expire(
    now: int, spared: tuple[int, int] = (0, 0), mark: Mark = NO_MARK, *, above: int = -1, after: int = -1
) -> Verb[int]:
    """Fail what waits and whose end has come, at most `PAGE`; returns how many.

    Ends behind ``spared[0]`` and up to ``spared[1]`` are passed over, and those up to ``after``; so are
    messages that are not numbered ``above``. What the ``mark`` says is younger than its dates gets the end of
    its true life.
    """
    old: list[tuple[int, int]] = []
    for begin, until in ((after, min(now, spared[0])), (max(after, spared[1]), now)):
        if begin < until:
            rows = yield _ENDED, (begin, until, above, PAGE - len(old))
            young = [
                (now + life - mark[1], message, n)
                for message, n, life in rows
                if message > mark[0] and life > mark[1]
            ]
            if young:  # they have come lately, but perhaps from another store
                moved = yield from note_get("imported", "newest")
                young = [row for row in young if row[1] > (moved[0] if moved else 0)]
            yield Many("UPDATE recipient SET expires_at = ? WHERE message = ? AND n = ?", young)
            spare = {(message, n) for _, message, n in young}
            old += [(message, n) for message, n, _ in rows if (message, n) not in spare]
    return (yield from _apply("expired", old, now, "too old")) if old else 0


_ENDED = (
    "SELECT r.message, r.n, m.expires_at - m.accepted_at FROM recipient r JOIN message m ON m.seq = r.message"
    " WHERE r.state IN ('queued', 'held') AND r.expires_at > ? AND r.expires_at <= ? AND r.message > ? LIMIT "
    "?"
)


def newest() -> Verb[int]:
    """The highest number of a message."""
    rows = yield "SELECT max(seq) FROM message", ()
    return rows[0][0] or 0


_LIFE = "(SELECT m.expires_at - m.accepted_at FROM message m WHERE m.seq = recipient.message)"


def rejuvenate(now: int, low: int, high: int, ago: int) -> Verb[int]:
    """Messages numbered above ``low`` and up to ``high`` are not older than ``ago``: their end is not earlier
    than that allows, whatever clock dated them.
    """
    rows = yield (
        f"UPDATE recipient SET expires_at = ? + {_LIFE} WHERE message > ? AND message <= ? AND state IN "
        f"('queued', 'held', 'sending')"
        f" AND expires_at < ? + {_LIFE} RETURNING n",
        (now - ago, low, high, now - ago - JUMP),
    )
    return len(rows)


def shorten(now: int, life: int) -> Verb[int]:
    """After a clock was set back: nobody has more time left than a whole life, ``life`` at the least."""
    rows = yield (
        f"UPDATE recipient SET expires_at = ? + {_LIFE} WHERE state IN ('queued', 'held') AND expires_at > ?"
        f" AND expires_at > ? + {_LIFE} AND not_before <= ? RETURNING n",
        (now, now + life, now, now),
    )
    return len(rows)


def destinations() -> Verb[list[str]]:
    """Those that have queued mail."""
    return (yield from _destinations())


def earlier(by: int, now: int, destination: str) -> Verb[int]:
    """After a clock was set back by so much: what waits is due as long from now as it was, but not before its
    time.
    """
    sooner = "CASE WHEN due - ? > not_before THEN due - ? WHEN not_before < due THEN not_before ELSE due END"
    count = 0
    for losses in ("losses = 0", "losses > 0"):
        rows = yield Many(
            f"UPDATE recipient SET due = {sooner} WHERE state = 'queued' AND {losses} AND destination = ? "
            f"AND priority = ? AND due > ? RETURNING n",
            [(by, by, destination, priority, now) for priority in range(3)],
        )
        count += len(rows)
    return count


def clamp(now: int, longest: int) -> Verb[int]:
    """Nothing waits longer than the longest retry step, whatever a clock that jumped left behind."""
    early = (
        "due = CASE WHEN not_before > ? THEN not_before ELSE ? END WHERE state = 'queued' AND expires_at "
        "> ? AND due > ? AND due > not_before"
    )
    count = 0
    for destination in (yield from _destinations()):
        keys = [(now, now, now, now + longest, destination, priority) for priority in range(3)]
        count += len(
            (
                yield Many(
                    f"UPDATE recipient SET {early} AND losses = 0 AND destination = ? AND priority = ? "
                    f"RETURNING n",
                    keys,
                )
            )
        )
    count += len(
        (yield f"UPDATE recipient SET {early} AND losses > 0 RETURNING n", (now, now, now, now + longest))
    )
    return count


#: What retention removes, each at an age of its own.
KINDS = ("bodies", "transcripts", "records")


def purge(kind: str, before: int, after: int = 0, limit: int = 500) -> Verb[tuple[int, int, bool]]:
    """One page of retention, of messages numbered above ``after`` whose last recipient was final before that
    instant.

    Returns the last number looked at, the one up to which nothing is left to be done, and whether older ones
    may follow. The newest message, event and attempt stay, so that their numbers are never used again.
    """
    rows = yield (
        "SELECT m.seq, m.upload, m.accepted_at, max(coalesce(r.finished_at, 4611686018427387904))"
        " FROM (SELECT seq, upload, accepted_at FROM message WHERE seq > ? ORDER BY seq LIMIT ?) m JOIN "
        "recipient r ON r.message = m.seq"
        " GROUP BY m.seq, m.upload, m.accepted_at ORDER BY m.seq",
        (after, limit),
    )
    old = [(seq, upload) for seq, upload, _, final in rows if final <= before]
    if old:
        yield from _REMOVING[kind](old)
    young = next((seq for seq, _, _, final in rows if final > before), None)
    last = rows[-1][0] if rows else after
    return (
        last,
        last if young is None else young - 1,
        len(rows) == limit and any(row[2] <= before for row in rows),
    )


def _remove_bodies(old: list[tuple[int, str | None]]) -> Verb[None]:
    yield f"DELETE FROM body WHERE seq {LISTED}", (_numbers(old),)
    yield Many("DELETE FROM chunk WHERE upload = ?", [(upload,) for _, upload in old if upload])


def _remove_transcripts(old: list[tuple[int, str | None]]) -> Verb[None]:
    yield (
        f"UPDATE attempt SET transcript = NULL WHERE message {LISTED} AND message >= ? AND message <= ? AND "
        f"transcript IS NOT NULL",
        (_numbers(old), old[0][0], old[-1][0]),
    )


_NEWEST = "SELECT (SELECT max(seq) FROM message), (SELECT max(id) FROM attempt)"


def _numbers(old: Sequence[tuple[int, Any]]) -> str:
    return _list([row[0] for row in old])


def _forget(old: Sequence[tuple[int, Any]]) -> Verb[None]:
    """Remove whole records. Of the newest row of a numbered table the number stays, so that it is never given
    again; nothing else of it.
    """
    newest = yield _NEWEST, ()
    seq, attempt = newest[0]
    these, first, last = _numbers(old), old[0][0], old[-1][0]
    yield (
        f"DELETE FROM attempt WHERE message {LISTED} AND message >= ? AND message <= ? AND id <> ?",
        (these, first, last, attempt or 0),
    )
    yield (
        f"DELETE FROM recipient WHERE message {LISTED} AND message >= ? AND message <= ?",
        (these, first, last),
    )
    yield f"DELETE FROM body WHERE seq {LISTED}", (these,)
    yield (
        f"DELETE FROM chunk WHERE upload IN (SELECT upload FROM message WHERE seq {LISTED} AND upload IS NOT "
        f"NULL)",
        (these,),
    )
    yield f"DELETE FROM message WHERE seq {LISTED} AND seq <> ?", (these, seq or 0)
    if seq is not None:
        # kept by an earlier one
        yield "DELETE FROM message WHERE id >= ? AND id < ? AND seq < ?", (GONE, "gone/", seq)
        if any(number == seq for number, _ in old):
            yield _BLANK, (f"{GONE}{seq}", seq)
    yield (
        "DELETE FROM event WHERE cursor < (SELECT max(cursor) FROM event) AND message <= ? AND NOT EXISTS "
        "(SELECT 1 FROM recipient r WHERE r.message = event.message)",
        (last,),
    )


_REMOVING: dict[str, Callable[[list[tuple[int, str | None]]], Verb[None]]] = {
    "bodies": _remove_bodies,
    "transcripts": _remove_transcripts,
    "records": _forget,
}


def forget_messages(seqs: Sequence[int]) -> Verb[int]:
    """Forget these finished messages now."""
    if seqs:
        yield from _forget([(seq, None) for seq in sorted(seqs)])
    return len(seqs)


#: Not correlated: however many pieces there are, messages are looked at once.
_UNUSED = "NOT EXISTS (SELECT 1 FROM message m WHERE m.upload = ?)"


def unused(upload: str) -> Verb[bool]:
    """True when pieces of this name are there and no message has them."""
    return bool((yield f"SELECT 1 FROM chunk WHERE upload = ? AND {_UNUSED} LIMIT 1", (upload, upload)))


def drop_upload(upload: str) -> Verb[int]:
    """Remove pieces whose message never came: their writer is gone. Returns how many."""
    # a statement of its own: what a writer has committed meanwhile is seen by the next
    yield Exclusive([upload])
    return len((yield f"DELETE FROM chunk WHERE upload = ? AND {_UNUSED} RETURNING n", (upload, upload)))


# -- notes ---------------------------------------------------------------------------------------------------


def note_get(kind: str, key: str) -> Verb[tuple[Any, int] | None]:
    """A small document and its version."""
    rows = yield "SELECT value, version FROM note WHERE kind = ? AND key = ?", (kind, key)
    return (json.loads(rows[0][0]), rows[0][1]) if rows else None


def note_list(kind: str) -> Verb[dict[str, Any]]:
    """All documents of a kind."""
    rows = yield "SELECT key, value FROM note WHERE kind = ? ORDER BY key", (kind,)
    return {key: json.loads(value) for key, value in rows}


def note_put(kind: str, key: str, value: Any, version: int | None = None) -> Verb[bool]:
    """Write a document; with ``version`` only if it is still that one (0: only if it is new). False =
    somebody was faster.
    """
    text = json.dumps(value)
    if version is None:
        yield (
            "INSERT INTO note (kind, key, value, version) VALUES (?,?,?,1) ON CONFLICT (kind, key)"
            " DO UPDATE SET value = excluded.value, version = note.version + 1",
            (kind, key, text),
        )
        return True
    if version == 0:
        sql = (
            "INSERT INTO note (kind, key, value, version) VALUES (?,?,?,1) ON CONFLICT DO NOTHING "
            "RETURNING version"
        )
        return bool((yield sql, (kind, key, text)))
    sql = (
        "UPDATE note SET value = ?, version = version + 1 WHERE kind = ? AND key = ? AND version = ? "
        "RETURNING version"
    )
    return bool((yield sql, (text, kind, key, version)))


def note_keys(kind: str) -> Verb[list[str]]:
    """The keys of a kind, whatever the documents hold."""
    rows = yield "SELECT key FROM note WHERE kind = ? ORDER BY key", (kind,)
    return [key for (key,) in rows]


def note_set_aside(kind: str, key: str) -> Verb[None]:
    """A document that cannot be read, out of the way: under the kind ``<kind>.unreadable``, as it is."""
    yield "DELETE FROM note WHERE kind = ? AND key = ?", (f"{kind}.unreadable", key)
    yield "UPDATE note SET kind = ? WHERE kind = ? AND key = ?", (f"{kind}.unreadable", kind, key)


def note_drop(kind: str, key: str) -> Verb[None]:
    """Remove a document."""
    yield "DELETE FROM note WHERE kind = ? AND key = ?", (kind, key)
