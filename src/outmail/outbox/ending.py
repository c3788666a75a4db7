"""The end of the program: the last reports are made, then every Outbox is closed.

Promises: functions registered with `reports.door.at_close` run first. An Outbox that cannot be closed does
not keep the others from being closed. Fails: never; it logs. Does not: run after ``os._exit`` or a signal
that kills.
"""

from __future__ import annotations

import atexit
import logging  # before we register, so that logging ends after us
import weakref
from typing import Protocol

from outmail.reports import door

log = logging.getLogger("outmail")


class Closable(Protocol):
    def close(self) -> None: ...


#: The Outboxes of this program.
boxes: weakref.WeakSet[Closable] = weakref.WeakSet()


def _close_all() -> None:
    try:
        door.closing()
    except Exception:
        log.exception("the last reports could not be made")
    for box in list(boxes):
        try:
            box.close()
        except Exception:
            log.exception("closing an Outbox at exit failed; its mail stays queued")


atexit.register(_close_all)
