"""Keeps SQLite files safe when a program forks.

The problem: SQLite keeps one list of its files and their locks for the whole process. A forked child inherits
the list but not the locks. A connection that the child opens beside an inherited one believes that it holds
those locks, and it does not. When another process then closes the file, it sees no locks, thinks it closes
last, and deletes the write-ahead log, with everything that the child stores from then on.
How: before a fork each holder of connections is paused: no thread is inside SQLite, no transaction is open,
and nothing is half opened. In the child each holder first drops its connections (`forsake`), before anything
is opened. Then all other objects with locks or connections of their own get new ones (`in_child`). Both
happen while the child has only one thread, so no locking is needed.
Promises: when a child opens a file that was open at the fork, its locks are its own.
Fails: `check` raises `StoreError` in a child whose parent could not be paused within `WAIT` seconds. Does
not: know connections that the application opened by itself.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from outmail.store import StoreError

T = TypeVar("T")
#: How many seconds a fork waits for a thread inside SQLite.
WAIT = 5.0


class Holder(Protocol):
    """Something that has connections to one file."""

    path: str

    def pause(self) -> bool:
        """Wait until no thread is inside SQLite, and let no thread enter. False when `WAIT` seconds were not
        enough.
        """

    def resume(self) -> None:
        """After `pause`, in the parent and in the child."""

    def forsake(self) -> None:
        """In the child, while paused: drop the connections without touching the file."""


_holders: weakref.WeakValueDictionary[int, Holder] = weakref.WeakValueDictionary()
_renewals: weakref.WeakKeyDictionary[Any, Callable[[Any], None]] = weakref.WeakKeyDictionary()
#: Only one fork runs at a time. Then: the holders that this fork has paused, and the files whose holders it
#: could not pause.
_guard = threading.Lock()
_moving: list[Holder] = []
_missed: set[str] = set()
#: In a child: files that must not be opened any more.
_torn: set[str] = set()
_count = 0


def attend(holder: Holder) -> None:
    """Pause this holder at each fork, for as long as it exists."""
    _holders[id(holder)] = holder


def in_child(one: T, renew: Callable[[T], None]) -> None:
    """``renew`` is called in every forked child, and gives the object new locks; for as long as the object
    exists.
    """
    _renewals[one] = renew


def count() -> int:
    """How many forks lie between this process and the first one. Asking this is cheaper than asking for the
    process number.
    """
    return _count


def check(path: str) -> None:
    """To be called before a file is opened. Raises `StoreError` when it must not be."""
    if path in _torn:
        raise StoreError(
            "io",
            f"{path} was in use when this process was forked, and its locks are lost: restart this program",
        )


def _before() -> None:
    _guard.acquire()  # held until the fork has happened, so that another thread's fork waits
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
                _holders.pop(id(holder), None)  # it is not paused at later forks
            else:
                holder.forsake()
        for one, renew in list(_renewals.items()):
            renew(one)
    finally:
        _after()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_in_child)
