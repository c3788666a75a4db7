"""Messages as *parcels*: everything that a store knows of a message, to be copied into another store
(`ops.move`).

Promises: a parcel carries id, key, content, recipients with their states, attempts and events. The new store
gives its own numbers. Recipients that were being sent in the old store become uncertain. A message that is in
the new store already is not added.
Does not: decide what is moved, or remove it from the old store (`verbs.forget_messages`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from outmail import lifecycle
from outmail.store import Exclusive, Many, Numbers, Verb
from outmail.store.verbs.delivery import add_chunks, known_as
from outmail.store.verbs.queue import content
from outmail.store.verbs.rows import BODY, LONG, PIECE
from outmail.store.verbs.upkeep import note_get, note_put

MESSAGE = (
    "id, sender, message_id, subject, size, sha256, needs, priority, accepted_at, expires_at, key, tag, dsn"
)
RECIPIENT = (
    "n, address, destination, priority, state, due, expires_at, not_before, uncertain, losses, wish, "
    "attempts, reason, attempt, finished_at"
)
ATTEMPT = "id, at, route, host, duration_ms, outcome, code, enhanced, text, recipients, transcript"
EVENT = "at, event, n, state, uncertain, reason, attempts, attempt, route"
EVENTS_OF = f"SELECT {EVENT} FROM event WHERE message = ? ORDER BY cursor"


@dataclass(slots=True)
class Parcel:
    """Everything the store knows of one message, as rows in the order of the column lists above."""

    seq: int
    message: tuple[Any, ...]
    content: bytes | None
    recipients: list[tuple[Any, ...]]
    attempts: list[tuple[Any, ...]]
    events: list[tuple[Any, ...]]

    @property
    def id(self) -> str:
        return str(self.message[0])

    @property
    def destinations(self) -> set[str]:
        return {str(row[2]) for row in self.recipients}


def parcels(after: int, limit: int = 100, budget: int = 16 * 1024 * 1024) -> Verb[list[Parcel]]:
    """The next messages after a number, with everything that belongs to them: at most ``budget`` bytes of
    content, at least one message.
    """
    heads = yield (
        f"SELECT seq, {MESSAGE} FROM message m WHERE seq > ? AND EXISTS (SELECT 1 FROM recipient r WHERE "
        f"r.message = m.seq) ORDER BY seq LIMIT ?",
        (after, limit),
    )
    found: list[Parcel] = []
    for seq, *head in heads:
        budget -= head[4]
        if budget < 0 and found:
            break
        body = yield from content(seq)
        recipients = yield f"SELECT {RECIPIENT} FROM recipient WHERE message = ? ORDER BY n", (seq,)
        tries = yield f"SELECT {ATTEMPT} FROM attempt WHERE message = ? ORDER BY id", (seq,)
        events = yield EVENTS_OF, (seq,)
        found.append(
            Parcel(
                seq,
                tuple(head),
                body,
                [tuple(row) for row in recipients],
                [tuple(row) for row in tries],
                [tuple(row) for row in events],
            )
        )
    return found


def events_of(seq: int) -> Verb[list[tuple[Any, ...]]]:
    """The events of one message, oldest first, as rows of `EVENT`."""
    return (yield EVENTS_OF, (seq,))


def take_in(found: Sequence[Parcel], now: int) -> Verb[int]:
    """Store parcels of another store. A message with a known id is not added. Recipients that were being sent
    may have the mail: they become uncertain.
    """
    yield Exclusive([parcel.id for parcel in found])
    fresh = []
    for parcel in found:
        if not (yield from known_as(parcel.id)):
            fresh.append(parcel)
    seqs = yield Numbers("message", len(fresh))
    for seq, parcel in zip(seqs, fresh):
        upload = yield from _take_in_content(seq, parcel, now)
        yield (
            f"INSERT INTO message (seq, upload, {MESSAGE}) VALUES ({_marks(2, MESSAGE)})",
            (seq, upload, *parcel.message),
        )
        numbers = yield Numbers("attempt", len(parcel.attempts))
        renamed = dict(zip((row[0] for row in parcel.attempts), numbers))
        yield Many(
            f"INSERT INTO attempt (message, {ATTEMPT}) VALUES ({_marks(1, ATTEMPT)})",
            [(seq, renamed[row[0]], *row[1:]) for row in parcel.attempts],
        )
        rows = [
            (seq, *_settled_down(row, now)[:13], renamed.get(row[13]), row[14]) for row in parcel.recipients
        ]
        yield Many(f"INSERT INTO recipient (message, {RECIPIENT}) VALUES ({_marks(1, RECIPIENT)})", rows)
        yield Many(
            f"INSERT INTO event (message, {EVENT}) VALUES ({_marks(1, EVENT)})",
            [(seq, *row[:7], renamed.get(row[7]), row[8]) for row in parcel.events],
        )
    if fresh:  # these messages have new numbers but are as old as their dates say
        yield from note_put("imported", "newest", max(seqs))
    return len(fresh)


def _marks(more: int, columns: str) -> str:
    return ", ".join("?" * (more + columns.count(",") + 1))


def _settled_down(row: tuple[Any, ...], now: int) -> tuple[Any, ...]:
    """A recipient's row of another store, for this one, where no engine is sending it."""
    n, address, destination, priority, state, due, expires_at, not_before, uncertain, losses, _, *rest = row
    if state == lifecycle.SENDING:
        state, due, uncertain, losses = "queued", now, 1, max(1, losses)
    if due is not None:
        due = max(due, now)  # this store's engines may have scanned past an earlier time
    return (
        n,
        address,
        destination,
        priority,
        state,
        due,
        expires_at,
        not_before,
        uncertain,
        losses,
        None,
        *rest,
    )


def _take_in_content(seq: int, parcel: Parcel, now: int) -> Verb[str | None]:
    """Store the content. Returns the name of its pieces if it is long."""
    if parcel.content is None:
        return None
    if len(parcel.content) <= LONG:
        yield BODY, (seq, parcel.content)
        return None
    pieces = [parcel.content[start : start + PIECE] for start in range(0, len(parcel.content), PIECE)]
    upload = os.urandom(12).hex()
    yield from add_chunks(upload, 0, pieces, now)
    return upload


def notes() -> Verb[list[tuple[str, str, Any]]]:
    """All documents as (kind, key, value), except those that refer to numbers of this store."""
    rows = yield (
        "SELECT kind, key, value FROM note"
        " WHERE kind NOT IN ('retention', 'clock', 'doubt', 'imported', 'loopback') "
        "ORDER BY kind, key",
        (),
    )
    return [(kind, key, json.loads(value)) for kind, key, value in rows]


def note(kind: str, key: str) -> Verb[Any]:
    """One document, or None."""
    found = yield from note_get(kind, key)
    return found[0] if found else None
