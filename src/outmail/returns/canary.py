"""Canaries: a small mail of our own by each relay, from time to time, so that a way that nobody uses is known
to work.

How: the mail goes to the loopback address itself, with the tag `CANARY`, so it always has a loopback copy;
that the copy comes home, and after how long, is told as of any other (`outmail loopback stats`).
Promises: one canary a relay and interval, however many services share the store; one that cannot be accepted
is logged and tried in the next interval; canaries expire after one interval.
Does not: go by ways that have no copies (programs, mailboxes, files), or know what became of one.
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
    """Send what is due; the relays that got one. ``send`` is `Outbox.send`."""
    if not settings.canary:
        return []
    return [
        name
        for name in _relays(routes)
        if _claimed(store, name, settings.canary, now) and _sent(name, settings, send)
    ]


def _relays(routes: Routes) -> list[str]:
    """Relays that mail may go by: those of the rules, and the default one."""
    named = dict.fromkeys(["default", *[name for rule in routes.rules for name in rule.relays]])
    return [name for name in named if routes.relays[name].scheme in ("smtp", "lmtp")]


def _claimed(store: Store, name: str, interval: int, now: int) -> bool:
    """True for the one service whose turn it is. A last one in the future was dated by a wrong clock."""
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
            f"This mail of outmail itself went by the relay {name}. It only has to come home.\n",
            headers={"Auto-Submitted": "auto-generated"},
            tag=CANARY,
            relay=name,
            expires=f"{settings.canary}ms",
        )
    except Error as problem:
        log.warning("no canary by %s: %s", name, problem)
        return False
    return True
