"""NOTIFY as a hint between hosts (``postgresql://…?notify=1``): mail that was just accepted need not wait to
be found by looking.

How: whoever accepted says so after the commit, outside of any transaction, because NOTIFY takes a lock for
the whole database at the commit of the transaction it is in; at most ten times a second; and never when the
connection has something better to do. Engines listen on a connection of their own. Promises: a hint that is
lost, late, or one too many changes nothing but the moment: looking (`PostgresStore.changed`) stays the truth.
Fails: in the log, and tries again. Does not: carry anything, or work through PgBouncer.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from outmail.store import forks
from outmail.system.starting import started

log = logging.getLogger("outmail")

CHANNEL = "outmail_queue"
#: Seconds: between two hints of one process, and between tries to listen again; how long an end may be waited
#: for.
PAUSE = 0.1
RETRY = 2.0
LOOK = 1.0


class Hints:
    """One process's side. ``connect`` makes a connection in autocommit."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect
        self._told = -PAUSE
        self._begin_anew()
        forks.in_child(self, Hints._begin_anew)

    def _begin_anew(self) -> None:
        """At the start, and in a forked child: nobody listens."""
        self._over = threading.Event()

    def tell(self, connection: Any) -> None:
        """Say that there is new mail, unless it was said a moment ago; ``connection`` is idle and ours."""
        now = time.monotonic()
        if now - self._told < PAUSE:
            return
        self._told = now
        try:
            connection.execute(f"NOTIFY {CHANNEL}")
        except Exception as problem:
            log.info("the hint that there is new mail was not given: %s", problem)

    def listen(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` on a thread whenever somebody tells, until `close`; never at the end of a program."""
        started(threading.Thread(target=self._listen, args=(wake,), name="outmail-hints", daemon=True))

    def close(self) -> None:
        """The thread ends within a second."""
        self._over.set()

    def _listen(self, wake: Callable[[], None]) -> None:
        while not self._over.is_set():
            try:
                with contextlib.closing(self._connect()) as connection:
                    connection.execute(f"LISTEN {CHANNEL}")
                    wake()  # what was told before we listened
                    while not self._over.is_set():
                        for _ in connection.notifies(timeout=LOOK, stop_after=1):
                            wake()
            except Exception as problem:
                if self._over.is_set():
                    return
                log.info("hints of new mail cannot be heard, it is found by looking: %s", problem)
                self._over.wait(RETRY)
