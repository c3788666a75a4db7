"""The default Outbox of reports: used by a job, a digest or `outmail watch` that was given none.

Promises: the program has one, on the configured store; it is opened on first use, and again after it was
closed. It delivers by itself unless a live service does. Fails: `ConfigError`, `NotStored`.
Does not: open anything when it is imported.
"""

from __future__ import annotations

import threading
from typing import Any

from outmail.clock import Clock
from outmail.config import Config, load
from outmail.outbox.direct import Direct
from outmail.outbox.outbox import Outbox
from outmail.store import forks
from outmail.wiring import spool_of


class _Default:
    """The default Outbox of this program; None until somebody asks for it."""

    def __init__(self) -> None:
        self.box: Outbox | None = None
        self.begin_anew()
        forks.in_child(self, _Default.begin_anew)

    def begin_anew(self) -> None:
        """Also in a forked child, because a thread of the parent may have been opening it."""
        self.guard = threading.Lock()


_default = _Default()


def default_outbox() -> Outbox:
    """The Outbox for reports that were given none: on the configured store, with an engine here unless a
    service serves its route.
    """
    with _default.guard:
        if _default.box is None or _default.box.closed:
            _default.box = with_engine_if_needed(load())
        return _default.box


def with_engine_if_needed(config: Config, **words: Any) -> Outbox:
    """An Outbox that delivers by itself, unless a live service has published the route ``default``."""
    box = Outbox(config=config, deliver="never", **words)
    if not box.queue.is_served("default"):
        box.deliver_here()
    return box


def default_direct() -> Direct:
    """The way past its store, from the configuration alone."""
    return direct(load())


def direct(config: Config) -> Direct:
    """The way past the store of a configuration."""
    return Direct(config, config.routes, Clock(), None)


def default_spool() -> str:
    """The spool folder of the default Outbox, from the configuration alone."""
    return spool_of(load().store)
