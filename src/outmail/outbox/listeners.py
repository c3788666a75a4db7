"""Functions that are called when something happens in the queue (``Outbox.on``).

Promises: from the first registration on, each event is reported once, in the order of commits, on one thread.
When a listener raises, that is logged and the next one is called. Fails: `ConfigError` for an unknown event.
Does not: outlive its Outbox, or report what happened while the program did not run (``Outbox.events`` does).
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from outmail.errors import ConfigError
from outmail.lifecycle import ARROWS
from outmail.model import Event
from outmail.outbox.queue import Queue

log = logging.getLogger("outmail")

#: What may happen: to a message, a recipient, a next hop.
EVENTS = ("accepted", *ARROWS, "seen", "paused", "resumed")
Listener = Callable[[Event], Any]


class Listeners:
    """The listeners of one Outbox, and the thread that calls them; it is started with the first one."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.closed = False
        self.registered: list[tuple[str, Listener]] = []
        self._thread: threading.Thread | None = None

    def on(self, event: str) -> Callable[[Listener], Listener]:
        """A decorator that registers a function for one event, for all ("*"), or for whatever ends a
        recipient as failed ("failed").
        """
        if event not in (*EVENTS, "*", "failed"):
            raise ConfigError(f"no event is named {event!r}; known are {', '.join(EVENTS)}, failed and *")

        def register(listener: Listener) -> Listener:
            self.registered.append((event, listener))
            if self._thread is None:
                cursor = self.queue.last_cursor()
                self._thread = threading.Thread(
                    target=_watch, args=(weakref.ref(self), cursor), name="outmail-events", daemon=True
                )
                self._thread.start()
            return listener

        return register

    def close(self) -> None:
        """Report nothing more. Does not wait for the thread."""
        self.closed = True


def _watch(those: weakref.ref[Listeners], cursor: int) -> None:
    """The thread of the listeners. It ends with its Outbox."""
    while (listeners := those()) is not None and not listeners.closed:
        try:
            for event in list(listeners.queue.events(cursor)):
                cursor = event.cursor
                for name, listener in list(listeners.registered):
                    if name in (event.event, "*") or name == event.state == "failed":
                        _tell(listener, event)
        except Exception:
            if listeners.closed:
                return
            log.exception("outmail could not read events; trying again")
        del listeners
        time.sleep(0.05)


def _tell(listener: Listener, event: Event) -> None:
    try:
        listener(event)
    except Exception:
        log.exception("a listener for outmail's events raised")
