"""NOTIFY as a hint between hosts (``postgresql://…?notify=1``): engines elsewhere hear of new mail before
they poll.

How: the host that accepted mail sends NOTIFY after the commit and outside of any transaction, because NOTIFY
takes a lock on the whole database when its transaction commits. It does so at most ten times a second, and
never when the connection has other work. Engines listen on a connection of their own.
Promises: a hint that is lost, late or superfluous changes only the moment: polling (`PostgresStore.changed`)
finds the mail in any case.
Fails: in the log, and tries again. Does not: carry data, or work through PgBouncer.
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
#: Seconds between two hints of one process, between two tries to listen again, and that `close` waits at
#: most.
PAUSE = 0.1
RETRY = 2.0
LOOK = 1.0


class Hints:
    """One process's hints. ``connect`` makes a connection in autocommit."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect
        self._told = -PAUSE
        self._begin_anew()
        forks.in_child(self, Hints._begin_anew)

    def _begin_anew(self) -> None:
        """At the start, and in a forked child, where no thread listens."""
        self._over = threading.Event()

    def tell(self, connection: Any) -> None:
        """Announce new mail, unless that was done a moment ago. ``connection`` is idle and ours."""
        now = time.monotonic()
        if now - self._told < PAUSE:
            return
        self._told = now
        try:
            connection.execute(f"NOTIFY {CHANNEL}")
        except Exception as problem:
            log.info("the hint about new mail was not sent: %s", problem)

    def listen(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` on a thread whenever somebody announces mail, until `close`. Not started at a
        program's end.
        """
        started(threading.Thread(target=self._listen, args=(wake,), name="outmail-hints", daemon=True))

    def close(self) -> None:
        """End the thread, within a second."""
        self._over.set()

    def _listen(self, wake: Callable[[], None]) -> None:
        while not self._over.is_set():
            try:
                with contextlib.closing(self._connect()) as connection:
                    connection.execute(f"LISTEN {CHANNEL}")
                    wake()  # mail may have been announced before we listened
                    while not self._over.is_set():
                        for _ in connection.notifies(timeout=LOOK, stop_after=1):
                            wake()
            except Exception as problem:
                if self._over.is_set():
                    return
                log.info("hints about new mail cannot be received; polling finds the mail: %s", problem)
                self._over.wait(RETRY)
