"""A queue moves from one store to another while its mail waits.

How: the old store gets a note that it is being moved, so that no engine starts on it; then, batch by batch, messages are added to the new
store, with everything that is known of them, and after that commit forgotten in the old one. What the new store has already is only
forgotten in the old one, so a move that was killed goes on where it was.
Promises: nothing is lost, nothing doubled; ids, keys, bodies, attempts, events and notes come along; an engine alive on the old store stops
the move before it begins; the new store may be in use. A copy (`copied`) is one snapshot and leaves the old store as it is.
Fails: `ConfigError` for an engine that is alive, `Trouble`. Does not: move files of the spool, or keep the cursors of events.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from outmail.errors import ConfigError
from outmail.store import Store, Verb, parcels
from outmail.store.parcels import Parcel

#: Notes that belong to a store and its engines, not to its mail.
_OWN = ("engine", "hop", "store")
NOTE = ("store", "moving")

Tell = Callable[[int, int], None]


def move(old: Store, new: Store, now: int, tell: Tell = lambda done, total: None, fail: Callable[[str], None] = lambda point: None) -> int:
    """Everything; returns how many messages. ``tell(done, total)`` is called after each batch."""
    if old.url == new.url:
        raise ConfigError("a queue cannot be moved onto itself")
    if new.read(new.verbs.note_get(*NOTE)):
        raise ConfigError(f"{new.url} is itself being moved; finish that first")
    old.run(old.verbs.note_put(*NOTE, {"to": new.url, "since": now}))
    old.reclaim(now, hold=False)
    alive = old.read(old.verbs.owners())
    if alive:
        old.run(old.verbs.note_drop(*NOTE))
        raise ConfigError(f"an engine is working on {old.url} (pid {alive[0][2]}): stop it first, a moment later move again")
    total, done = sum_of(old), 0
    while batch := old.read(parcels.parcels(0)):
        new.run(_arrive(new, batch, now))
        fail("M1")
        old.run(old.verbs.forget_messages([parcel.seq for parcel in batch]))
        done += len(batch)
        tell(done, max(total, done))
    for kind, key, value in old.read(parcels.notes()):
        if kind not in _OWN:
            new.run(new.verbs.note_put(kind, key, value, 0))
            old.run(old.verbs.note_drop(kind, key))
    old.run(old.verbs.note_drop(*NOTE))
    return done


def _arrive(store: Store, batch: Sequence[Parcel], now: int) -> Verb[int]:
    yield from store.verbs.know({destination for parcel in batch for destination in parcel.destinations})
    return (yield from parcels.take_in(batch, now))


def sum_of(store: Store) -> int:
    """How many messages a store has."""

    def count() -> Verb[int]:
        rows = yield "SELECT count(DISTINCT message) FROM recipient", ()
        return int(rows[0][0])

    return store.read(count())


def copied(old: Store, new: Store, now: int, tell: Tell = lambda done, total: None) -> int:
    """A copy of one moment of a live queue; what was being sent in that moment is uncertain in the copy."""
    done, total = 0, sum_of(old)

    def all_of() -> Verb[list[tuple[str, str, Any]]]:
        nonlocal done
        after = 0
        while batch := (yield from parcels.parcels(after)):
            new.run(_arrive(new, batch, now))
            after, done = batch[-1].seq, done + len(batch)
            tell(done, max(total, done))
        kept: list[tuple[str, str, Any]] = yield from parcels.notes()
        return kept

    for kind, key, value in old.read(all_of()):
        if kind not in _OWN:
            new.run(new.verbs.note_put(kind, key, value, 0))
    return done
