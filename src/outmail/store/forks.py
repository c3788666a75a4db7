"""What a fork does to open SQLite files, and what is done about it.

SQLite keeps one list of its files and their locks for the whole process. A forked child inherits the list,
not the locks: a connection that it opens beside an inherited one believes that it holds them. Then whoever
closes the file elsewhere is the last one in the eyes of the system, and deletes the write-ahead log under the
child, with all that the child stores from then on.
How: each holder of connections is paused before a fork (nobody inside SQLite, no transaction open, nothing
half opened) and in the child forsakes them at once, before anything is opened there; then whatever else has
locks or connections of its own gets new ones (`in_child`). Both happen while the child has one thread, so
that none of its threads need agree who does it.
Promises: a child that opens a file that was open at the fork has locks of its own. Fails: `check` raises
`StoreError` in a child whose parent could not be paused within `WAIT` seconds. Does not: know connections
that an application opened by itself.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from outmail.store import StoreError

T = TypeVar("T")
#: Seconds that a fork waits for a thread inside SQLite.
WAIT = 5.0


class Holder(Protocol):
    """Whoever has connections to one file."""

    path: str

    def pause(self) -> bool:
        """Wait until nobody is inside SQLite, and let nobody in; False when `WAIT` was not enough."""

    def resume(self) -> None:
        """After `pause`, in the parent and in the child."""

    def forsake(self) -> None:
        """In the child, while paused: close the connections, and leave the file alone."""


_holders: weakref.WeakValueDictionary[int, Holder] = weakref.WeakValueDictionary()
_renewals: weakref.WeakKeyDictionary[Any, Callable[[Any], None]] = weakref.WeakKeyDictionary()
#: One fork at a time; whom it has paused; files whose holders it could not.
_guard = threading.Lock()
_moving: list[Holder] = []
_missed: set[str] = set()
#: In a child: files that cannot be opened any more.
_torn: set[str] = set()
_count = 0


def attend(holder: Holder) -> None:
    """From now on, for as long as it lives."""
    _holders[id(holder)] = holder


def in_child(one: T, renew: Callable[[T], None]) -> None:
    """What gives an object, in a forked child, new locks; called for as long as the object lives."""
    _renewals[one] = renew


def count() -> int:
    """How many forks lie between this process and the first one: cheaper to ask than the process's number."""
    return _count


def check(path: str) -> None:
    """Before a file is opened."""
    if path in _torn:
        raise StoreError(
            "io",
            f"{path} was in use when this process was forked, and its locks are lost: start this program "
            f"anew",
        )


def _before() -> None:
    _guard.acquire()  # for as long as another thread's fork takes
    _moving[:] = [holder for found in _holders.valuerefs() if (holder := found()) is not None]
    _missed.update(holder.path for holder in _moving if not holder.pause())


def _after() -> None:
    while _moving:
        _moving.pop().resume()
    _missed.clear()
    _guard.release()


def _in_child() -> None:
    global _count
    _count += 1
    _torn.update(_missed)
    try:
        for holder in _moving:
            if holder.path in _missed:
                _holders.pop(id(holder), None)  # nobody waits for its locks again
            else:
                holder.forsake()
        for one, renew in list(_renewals.items()):
            renew(one)
    finally:
        _after()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_in_child)
