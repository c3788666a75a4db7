"""Canaries: from time to time a small mail of outmail's own goes through each relay, so that you know that a
relay works even if nobody uses it.

How: the mail goes to the loopback address itself, with the tag `CANARY`, so it always has a loopback copy.
Like any other copy, it is shown by `outmail loopback stats`.
Promises: one canary for each relay and interval, however many services share the store. A canary that is not
accepted is logged and tried in the next interval. Canaries expire after one interval.
Does not: use relays that have no copies (programs, mailboxes, files), or know whether a canary arrived.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from outmail.errors import Error
from outmail.policy.loopback import CANARY, Loopback
from outmail.policy.route import Routes
from outmail.store import Store

log = logging.getLogger("outmail")


def send_due(
    store: Store, settings: Loopback, routes: Routes, now: int, send: Callable[..., Any]
) -> list[str]:
    """Send canaries that are due. Returns the relays that got one. ``send`` is `Outbox.send`."""
    if not settings.canary:
        return []
    return [
        name
        for name in _relays(routes)
        if _claimed(store, name, settings.canary, now) and _sent(name, settings, send)
    ]


def _relays(routes: Routes) -> list[str]:
    """Those that are configured: `send(relay=)` may use each of them, also where no rule does."""
    return [name for name, relay in routes.relays.items() if relay.scheme in ("smtp", "lmtp")]


def _claimed(store: Store, name: str, interval: int, now: int) -> bool:
    """True for the one service whose turn it is. A last time in the future was written with a wrong clock."""
    found = store.read(store.verbs.note_get("canary", name))
    last, version = found or (0, 0)
    if 0 <= now - last < interval:
        return False
    return store.run(store.verbs.note_put("canary", name, now, version))


def _sent(name: str, settings: Loopback, send: Callable[..., Any]) -> bool:
    try:
        send(
            settings.address,
            f"canary by {name}",
            f"outmail has sent this mail through the relay {name}. It only has to come home.\n",
            headers={"Auto-Submitted": "auto-generated"},
            tag=CANARY,
            relay=name,
            expires=f"{settings.canary}ms",
        )
    except Error as problem:
        log.warning("no canary by %s: %s", name, problem)
        return False
    return True
