"""outmail: outgoing mail for programs.

>>> import outmail
>>> with outmail.Outbox("mail.db", relay="smtp://localhost:25") as box:  # doctest: +SKIP
...     box.send("you@example.org", "Hello", "It works.", sender="me@example.org")

Everything public is here; importing it costs next to nothing, because each name is loaded when it is first
used.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as in typing, without the price of importing it

__version__ = "0.1.0"

if TYPE_CHECKING:
    from typing import Any

    from outmail.errors import ConfigError, Error, NotFound, NotStored, Refused
    from outmail.model import Attempt, Dsn, Event, Receipt, RecipientStatus, Reply, Status
    from outmail.outbox.aio import AsyncOutbox
    from outmail.outbox.outbox import Outbox
    from outmail.reports.decorator import notify
    from outmail.reports.digest import DigestHandler
    from outmail.reports.jobs import Job, job, track
    from outmail.transactional.insert import outbox_ddl

_HOMES = {
    "errors": ("ConfigError", "Error", "NotFound", "NotStored", "Refused"),
    "model": ("Attempt", "Dsn", "Event", "Receipt", "RecipientStatus", "Reply", "Status"),
    "outbox.aio": ("AsyncOutbox",),
    "outbox.outbox": ("Outbox",),
    "reports.jobs": ("Job", "job", "track"),
    "reports.decorator": ("notify",),
    "reports.digest": ("DigestHandler",),
    "transactional.insert": ("outbox_ddl",),
}
_WHERE = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AsyncOutbox",
    "Attempt",
    "ConfigError",
    "DigestHandler",
    "Dsn",
    "Error",
    "Event",
    "Job",
    "NotFound",
    "NotStored",
    "Outbox",
    "Receipt",
    "RecipientStatus",
    "Refused",
    "Reply",
    "Status",
    "__version__",
    "job",
    "notify",
    "outbox_ddl",
    "track",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'outmail' has no attribute {name!r}")
    from importlib import import_module

    if _WHERE[name].startswith("reports."):
        # What reports use that are given no Outbox. Loaded now: a first record must neither wait for it, nor
        # leave it half loaded to a child that is forked meanwhile.
        import_module("outmail.outbox.default")
    value = getattr(import_module(f"outmail.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
