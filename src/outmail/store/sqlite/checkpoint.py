"""The write-ahead log of a SQLite file is moved into the database beside the commits, not by one of them.

SQLite's own way is that the commit which makes the log long enough moves all of it, and whoever waits for
that commit waits ten times as long. Here a thread with a connection of its own moves what there is while
commits go on; the first commit after it moves the little that came meanwhile, so that the log can begin anew.
Promises: no commit fails because of a checkpoint; nobody waits for one unless the thread cannot be started.
Fails: never; trouble is logged once, and the log grows until it is over. Does not: begin before `aside` is
called, which is for loops; others do it in place.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from outmail.store import StoreError
from outmail.store.sqlite.drivers import Apsw
from outmail.system.starting import started

log = logging.getLogger("outmail")

#: Pages in the log that are worth moving.
PAGES = 2000


class Checkpoints:
    """Those of one writing connection. ``connect`` makes another one to the same file."""

    def __init__(self, writer: Apsw, connect: Callable[[], Apsw]) -> None:
        self._writer = writer
        self._connect = connect
        self._side: Apsw | None = None
        self._thread: threading.Thread | None = None
        self._aside = False
        #: The thread is through with what there was when it began.
        self._rest = False
        #: The length at which the next one begins: not at once while a reader of old pages keeps the log from
        #: beginning anew.
        self._due = PAGES
        self._told = False
        writer.on_commit(self._committed)

    def aside(self) -> None:
        """From now on by a thread."""
        self._aside = True

    def wait(self, seconds: float) -> bool:
        """For the one under way; False when it still is. Whoever waits holds the lock of commits, so that no
        other begins.
        """
        if self._thread is not None:
            self._thread.join(seconds)
        return self._thread is None or not self._thread.is_alive()

    def forsake(self) -> None:
        """In a forked child: the connection is the parent's."""
        if self._side is not None:
            self._side.forsake()

    def close(self) -> None:
        """Once the one under way is done."""
        self.wait(60)
        if self._side is not None:
            self._side.close()

    def _committed(self, pages: int) -> None:
        if pages < PAGES:
            self._due = PAGES
        if self._thread is not None:
            if not self._rest:
                return
            self._thread, self._rest, self._due = None, False, pages + PAGES // 4
        elif pages < self._due or (self._aside and self._started()):
            return
        self._move(self._writer)

    def _started(self) -> bool:
        thread = threading.Thread(target=self._work, name="outmail-checkpoint", daemon=True)
        self._thread = thread if started(thread) else None
        return self._thread is not None

    def _work(self) -> None:
        try:
            self._side = self._side or self._connect()
            self._move(self._side)
        except StoreError as problem:
            self._tell(problem)
        finally:
            self._rest = True

    def _move(self, connection: Apsw) -> None:
        try:
            connection.checkpoint()
            self._told = False
        except StoreError as problem:
            if problem.kind != "busy":  # another process is at it
                self._tell(problem)

    def _tell(self, problem: StoreError) -> None:
        if not self._told:
            log.warning("the write-ahead log cannot be moved into the database, it grows: %s", problem)
        self._told = True
