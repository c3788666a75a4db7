"""Moves a queue from one store to another while its mail waits.

How: the old store gets a note that says where it is being moved, so that no engine starts on it and no other
move begins. Then, batch by batch, messages are added to the new store, with everything that is known of them;
after that commit they are removed from the old store. The same commit notes in the new store which batch came
last (`_Arrivals`). Whoever continues the move removes that batch from the old store and adds none of it
again, whatever has happened to it in the new store since.
Promises: nothing is lost, nothing is stored twice. Ids, keys, bodies, attempts, events and notes are moved.
The same command continues a killed move. Two of the same command at once share the work. While a move is
under way, a move to another store is refused, until the first one is finished or given up (`abandon`). A live
engine on the old store stops the move before it begins. The new store may be in use. A copy (`copied`) is one
snapshot and leaves the old store as it is.
Fails: `ConfigError` when an engine is alive or another move is under way; `StoreError`. Does not: move files
of the spool, or keep the cursors of events.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from outmail.errors import ConfigError, NotFound
from outmail.store import Store, Verb, store_id
from outmail.store.verbs import export
from outmail.store.verbs.export import Parcel

log = logging.getLogger("outmail")

#: Kinds of notes that belong to a store and its engines, not to its mail.
_OWN = ("engine", "hop", "knows", "store")
NOTE = ("store", "moving")

Tell = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Way:
    """A move that is under way, as the old store notes it: its own name, where it goes, and the id of that
    store.
    """

    id: str
    to: str
    target: str

    @property
    def arrivals(self) -> tuple[str, str]:
        """The key of its note in the new store."""
        return "store", f"arriving.{self.id}"


class _Overtaken(Exception):
    """Another process has brought a batch of the same move: look again."""


@dataclass(frozen=True, slots=True)
class _Arrivals:
    """The note about a move in the new store. It exists from before the move begins until it is over, and is
    written again in the commit of each batch.
    """

    count: int = 0
    #: The ids of the last batch. The old store may not have removed them yet.
    last: Sequence[str] = ()
    over: bool = False
    version: int = 0

    def value(self) -> dict[str, Any]:
        return {"count": self.count, "last": list(self.last), "over": self.over}


def move(
    old: Store,
    new: Store,
    now: int,
    tell: Tell = lambda done, total: None,
    fail: Callable[[str], None] = lambda point: None,
) -> int:
    """Move everything. Returns how many messages. ``tell(done, total)`` is called after each batch."""
    way, begun = _begin(old, new, now)
    old.reclaim(now, hold=False)
    alive = old.read(old.verbs.owners())
    if alive:
        if begun:
            old.run(_let_go(old, way))
            new.run(new.verbs.note_drop(*way.arrivals))
        raise ConfigError(
            f"an engine is working on {old.url} (pid {alive[0][2]}): stop it first, then move again"
        )
    total, done = sum_of(old), 0
    while (step := _step(old, new, way, now, fail)) is not None:
        done += step
        tell(done, max(total, done))
    return done


def under_way(old: Store) -> Way | None:
    """The move that is under way from this store, or None."""
    found = old.read(old.verbs.note_get(*NOTE))
    return _way(found[0]) if found else None


def _way(value: dict[str, Any]) -> Way:
    return Way(value["id"], value["to"], value["target"])


def _begin(old: Store, new: Store, now: int) -> tuple[Way, bool]:
    """The move of this command: a new one (True), or the one that is under way to the same store."""
    if old.url == new.url:
        raise ConfigError("a queue cannot be moved onto itself")
    way = Way(os.urandom(16).hex(), new.url, store_id(new))
    new.run(new.verbs.note_put(*way.arrivals, _Arrivals().value()))
    begun = old.run(
        old.verbs.note_put(*NOTE, {"id": way.id, "to": way.to, "target": way.target, "since": now}, 0)
    )
    if not begun:
        new.run(new.verbs.note_drop(*way.arrivals))
        found = under_way(old)
        if found is None:
            return _begin(old, new, now)  # that move ended just now
        if found.target != way.target:
            raise ConfigError(
                f"{old.url} is already being moved to {found.to}",
                hint=f"finish that: outmail move {old.url} {found.to}, or give it up: outmail move --abandon "
                f"{old.url}",
            )
        way = found
    there = under_way(new)
    if there is not None:
        if begun:
            old.run(_let_go(old, way))
            new.run(new.verbs.note_drop(*way.arrivals))
        same = there.id == way.id  # one database under two names
        raise ConfigError(
            "a queue cannot be moved onto itself"
            if same
            else f"{new.url} is itself being moved; finish that first"
        )
    return way, begun


def _step(old: Store, new: Store, way: Way, now: int, fail: Callable[[str], None]) -> int | None:
    """One batch, or finally the notes. Returns how many messages arrived, None when the move is over."""
    arrived = _arrived(new, way)
    batch = old.read(_waiting(way))
    if batch is not None and arrived.over:
        raise ConfigError(
            f"somebody began to give up the move of {old.url} to {way.to} and has not finished that",
            hint=f"finish that: outmail move --abandon {old.url} {way.to}",
        )
    if batch is None:
        left = sum_of(old)
        if left:
            raise ConfigError(
                f"another command has ended this move, and {left} messages are left in {old.url}: move again"
            )
        return None
    if not batch:
        return None if _finish(old, new, way) else 0
    try:
        count = new.run(_arrive(new, way, arrived, batch, now))
    except _Overtaken:
        return 0
    fail("M1")
    old.run(old.verbs.forget_messages([parcel.seq for parcel in batch]))
    return count


def _waiting(way: Way) -> Verb[list[Parcel] | None]:
    """The next batch; None when this move is no longer the one under way. Both come from one snapshot."""
    rows = yield from export.note(*NOTE)
    return None if rows is None or rows["id"] != way.id else (yield from export.parcels(0))


def _arrived(new: Store, way: Way) -> _Arrivals:
    found = new.read(new.verbs.note_get(*way.arrivals))
    return _Arrivals(**found[0], version=found[1]) if found else _Arrivals(over=True)


def _arrive(new: Store, way: Way, arrived: _Arrivals, batch: Sequence[Parcel], now: int) -> Verb[int]:
    """Add a batch to the new store, unless somebody has added one since ``arrived`` was read. Messages of the
    last batch are there already.
    """
    fresh = [parcel for parcel in batch if parcel.id not in arrived.last]
    after = _Arrivals(arrived.count + len(fresh), [parcel.id for parcel in batch])
    if not (yield from new.verbs.note_put(*way.arrivals, after.value(), arrived.version)):
        raise _Overtaken
    yield from _take_in(new, fresh, now)
    return len(fresh)


def _finish(old: Store, new: Store, way: Way) -> bool:
    """Move the notes and end. False when mail has come into the old store meanwhile; that is moved first."""
    for kind, key, value in old.read(export.notes()):
        if kind in _OWN:
            continue
        if new.run(new.verbs.note_put(kind, key, value, 0)) or new.read(export.note(kind, key)) == value:
            old.run(old.verbs.note_drop(kind, key))
        else:
            log.warning(
                "%s has its own note %s/%s and keeps it; the one to be moved stays in %s",
                new.url,
                kind,
                key,
                old.url,
            )
    if not old.run(_let_go_empty(old, way)):
        return False
    new.run(new.verbs.note_drop(*way.arrivals))
    return True


def _let_go_empty(old: Store, way: Way) -> Verb[bool]:
    if (yield "SELECT 1 FROM recipient LIMIT 1", ()):
        return False
    yield from _let_go(old, way)
    return True


def _let_go(old: Store, way: Way) -> Verb[None]:
    """Remove the note of this move, but not of a later one."""
    found = yield from old.verbs.note_get(*NOTE)
    if found and found[0]["id"] == way.id and (yield from old.verbs.note_put(*NOTE, *found)):
        yield from old.verbs.note_drop(*NOTE)


def abandon(old: Store, new: Store | None) -> tuple[int, int]:
    """Give up a move. What has arrived stays in the new store, the rest in the old one. Returns how many
    (arrived, stayed).

    ``new`` is None when the new store is gone, together with what had arrived.
    """
    way = under_way(old)
    if way is None:
        raise NotFound(f"{old.url} is not being moved")
    arrived = _Arrivals()
    if new is not None:
        if store_id(new) != way.target:
            raise ConfigError(f"{new.url} is not the store that {old.url} was being moved to ({way.to})")
        arrived = _shut(new, way)
        old.run(_forget(old, arrived.last))
    old.run(_let_go(old, way))
    if new is not None:
        new.run(new.verbs.note_drop(*way.arrivals))
    return arrived.count, sum_of(old)


def _shut(new: Store, way: Way) -> _Arrivals:
    """From now on nothing of this move can arrive, even if another process is still working on it."""
    while True:
        arrived = _arrived(new, way)
        if new.run(new.verbs.note_put(*way.arrivals, replace(arrived, over=True).value(), arrived.version)):
            return arrived


def _forget(old: Store, ids: Sequence[str]) -> Verb[int]:
    """Remove messages that have arrived from the old store, if it still has them."""
    seqs = []
    for id in sorted(ids):
        seq = yield from old.verbs.seq_of(id)
        if seq is not None:
            seqs.append(seq)
    return int((yield from old.verbs.forget_messages(seqs)))


def _take_in(store: Store, batch: Sequence[Parcel], now: int) -> Verb[int]:
    yield from store.verbs.know({destination for parcel in batch for destination in parcel.destinations})
    return (yield from export.take_in(batch, now))


def sum_of(store: Store) -> int:
    """How many messages a store has."""

    def count() -> Verb[int]:
        rows = yield "SELECT count(DISTINCT message) FROM recipient", ()
        return int(rows[0][0])

    return store.read(count())


def copied(old: Store, new: Store, now: int, tell: Tell = lambda done, total: None) -> int:
    """Copy one moment of a live queue. What was being sent at that moment is uncertain in the copy."""
    done, total = 0, sum_of(old)

    def all_of() -> Verb[list[tuple[str, str, Any]]]:
        nonlocal done
        after = 0
        while batch := (yield from export.parcels(after)):
            new.run(_take_in(new, batch, now))
            after, done = batch[-1].seq, done + len(batch)
            tell(done, max(total, done))
        kept: list[tuple[str, str, Any]] = yield from export.notes()
        return kept

    for kind, key, value in old.read(all_of()):
        if kind not in _OWN:
            new.run(new.verbs.note_put(kind, key, value, 0))
    return done
