"""Modules that are loaded when they are first needed, and forks.

A thread that is loading a module holds that module's lock. Who forks meanwhile gives the child a lock that
nobody will release: it hangs for ever in its own first use. So what may be loaded while a program runs is
loaded inside ``with loading:``, and a fork waits for that, at most `WAIT` seconds.
Promises: no child inherits a module half loaded by outmail. Only import statements belong inside: they wait
for nobody who forks.
Does not: know what the program's own threads are loading.
"""

from __future__ import annotations

import os
import threading
from types import TracebackType

#: Seconds that a fork waits for a module.
WAIT = 5.0


class _Loading:
    """One thread at a time, as often as it likes."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        #: Threads whose fork has the lock; the others have waited in vain.
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
