"""Django's settings: the `Outbox` of this process for them, and the URL of the database whose table is
emptied.

``OUTMAIL`` in the settings, overridden by a mailer's OPTIONS: ``store``, ``relay``, ``config``, ``deliver``
as for `Outbox`, and ``database``: the alias of the database whose transactions mail belongs to, or None.
"""

from __future__ import annotations

import threading
from typing import Any
from urllib.parse import quote

from django.conf import settings
from django.db import connections

from outmail import ConfigError, Outbox

WORDS = ("store", "relay", "config", "deliver", "database")
_boxes: dict[tuple[Any, ...], Outbox] = {}
_guard = threading.Lock()


def options(own: dict[str, Any] | None = None) -> dict[str, Any]:
    """The settings, overridden by a mailer's own options."""
    found = {"database": "default", "deliver": "never", **getattr(settings, "OUTMAIL", {}), **(own or {})}
    unknown = sorted(set(found) - set(WORDS))
    if unknown:
        raise ConfigError(f"OUTMAIL has no setting {unknown[0]!r}; it has {', '.join(WORDS)}")
    return found


def outbox(own: dict[str, Any] | None = None) -> Outbox:
    """The `Outbox` of this process for these options, opened on first use."""
    found = options(own)
    words = {
        name: found[name] for name in ("store", "relay", "config", "deliver") if found.get(name) is not None
    }
    key = tuple(sorted((name, str(value)) for name, value in words.items()))
    with _guard:
        box = _boxes.get(key)
        if box is None or box.closed:
            box = _boxes[key] = Outbox(**words)
        return box


def transaction(own: dict[str, Any] | None = None) -> Any:
    """The connection with an open transaction, for ``using=``; None outside a transaction."""
    alias = options(own)["database"]
    connection = connections[alias] if alias else None
    return connection if connection is not None and connection.in_atomic_block else None


def database_url(own: dict[str, Any] | None = None) -> str:
    """The URL at which `outmail run` finds the table; "" when mail belongs to no database. Raises ConfigError
    for databases that outmail cannot empty.
    """
    alias = options(own)["database"]
    if not alias:
        return ""
    found = connections[alias].settings_dict
    if connections[alias].vendor == "sqlite":
        return f"sqlite:{found['NAME']}"
    if connections[alias].vendor != "postgresql":
        raise ConfigError(
            f"outmail can empty a table in SQLite and PostgreSQL, not in {connections[alias].vendor}",
            hint='OUTMAIL = {"database": None}',
        )
    who = quote(str(found.get("USER") or ""), safe="") + (
        f":{quote(str(found['PASSWORD']), safe='')}" if found.get("PASSWORD") else ""
    )
    host, port = str(found.get("HOST") or ""), str(found.get("PORT") or "")
    where = "" if host.startswith("/") else host + (f":{port}" if port else "")
    socket = (
        f"?host={quote(host, safe='')}" + (f"&port={port}" if port else "") if host.startswith("/") else ""
    )
    return f"postgresql://{who + '@' if who else ''}{where}/{quote(str(found['NAME']), safe='')}{socket}"
