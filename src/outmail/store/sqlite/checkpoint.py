"""Checkpoints of a SQLite file run beside the commits, not inside them.

A checkpoint moves the write-ahead log into the database. By default SQLite does that inside the commit that
made the log long enough, and that commit takes ten times as long. Here a thread with its own connection moves
what is in the log while commits go on. The first commit after that moves the little that was added meanwhile,
so that the log can start again from its beginning.
Promises: no commit fails because of a checkpoint. Nobody waits for one, unless the thread cannot be started.
Fails: never by raising; trouble is logged once, and the log grows until the trouble is over. Does not: use a
thread before `aside` is called (event loops call it); until then checkpoints run inside commits.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from outmail.store import StoreError
from outmail.store.sqlite.drivers import Apsw
from outmail.system.starting import started

log = logging.getLogger("outmail")

#: Checkpoints begin when the log has this many pages.
PAGES = 2000


class Checkpoints:
    """The checkpoints of one writing connection. ``connect`` opens another connection to the same file."""

    def __init__(self, writer: Apsw, connect: Callable[[], Apsw]) -> None:
        self._writer = writer
        self._connect = connect
        self._side: Apsw | None = None
        self._thread: threading.Thread | None = None
        self._aside = False
        #: The thread has moved everything that was in the log when it began.
        self._rest = False
        #: The length at which the next checkpoint begins. It grows while a reader of old pages keeps the log
        #: from starting again.
        self._due = PAGES
        self._told = False
        writer.on_commit(self._committed)

    def aside(self) -> None:
        """From now on use a thread."""
        self._aside = True

    def wait(self, seconds: float) -> bool:
        """Wait for a running checkpoint; False when it still runs. The caller holds the lock of commits, so
        that no other one begins.
        """
        if self._thread is not None:
            self._thread.join(seconds)
        return self._thread is None or not self._thread.is_alive()

    def forsake(self) -> None:
        """In a forked child: drop the connection, which is the parent's."""
        if self._side is not None:
            self._side.forsake()

    def close(self) -> None:
        """Close, after a running checkpoint has ended."""
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
            if problem.kind != "busy":  # another process runs a checkpoint
                self._tell(problem)

    def _tell(self, problem: StoreError) -> None:
        if not self._told:
            log.warning(
                "the write-ahead log grows, because it cannot be moved into the database: %s", problem
            )
        self._told = True
