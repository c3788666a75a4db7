"""Modules that are loaded on first use, and forks.

A thread that is loading a module holds that module's lock. If another thread forks at that moment, the child
inherits a lock that nobody releases, and hangs for ever when it needs the module. So modules that may be
loaded while a program runs are loaded inside ``with loading:``, and a fork waits for that, for at most `WAIT`
seconds.
Promises: no child inherits a module that outmail has half loaded. Only import statements belong inside the
block, because they wait for no thread that forks.
Does not: know what the program's own threads are loading.
"""

from __future__ import annotations

import os
import threading
from types import TracebackType

#: Seconds that a fork waits for a module.
WAIT = 5.0


class _Loading:
    """A lock for one thread at a time; a thread may take it again."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        #: Threads whose fork holds the lock. (Other forks have given up after `WAIT` seconds.)
        self._forking: set[int] = set()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def before_fork(self) -> None:
        if self._lock.acquire(timeout=WAIT):
            self._forking.add(threading.get_ident())

    def after_fork(self) -> None:
        if threading.get_ident() in self._forking:
            self._forking.discard(threading.get_ident())
            self._lock.release()

    def in_child(self) -> None:
        self.__init__()  # type: ignore[misc]


loading = _Loading()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=loading.before_fork, after_in_parent=loading.after_fork, after_in_child=loading.in_child
    )
