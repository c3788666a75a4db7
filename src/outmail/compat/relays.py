"""Turns the usual mail settings (host, port, encryption, login) into the `Outbox` that delivers there.

Promises: one Outbox in this process for each server, store and login; it is opened again after it was closed.
Fails: `outmail.ConfigError`, `outmail.NotStored`. Does not: connect to anything.
"""

from __future__ import annotations

import threading
from typing import Literal
from urllib.parse import quote

from outmail.config import Config
from outmail.outbox.outbox import Outbox
from outmail.store import forks

Encryption = Literal["off", "starttls", "ssl"]
_SCHEMES: dict[Encryption, str] = {"off": "smtp+plain", "starttls": "smtp", "ssl": "smtps"}
_PORTS: dict[Encryption, int] = {"off": 25, "starttls": 25, "ssl": 465}


def relay_url(
    host: str, port: int | None, encryption: Encryption, user: str | None = "", password: str | None = ""
) -> str:
    """A relay's URL. Without a port it is smtplib's default: 465 for ``ssl``, else 25."""
    login = f"{quote(user, safe='')}:{quote(password or '', safe='')}@" if user else ""
    shown = f"[{host}]" if ":" in host else host
    return f"{_SCHEMES[encryption]}://{login}{shown}:{port or _PORTS[encryption]}"


class _Boxes:
    """The Outboxes of this process."""

    def __init__(self) -> None:
        self.open: dict[tuple[str | None, str | None, float, str], Outbox] = {}
        self.begin_anew()
        forks.in_child(self, _Boxes.begin_anew)

    def begin_anew(self) -> None:
        """Also in a forked child, because a thread of the parent may have been opening an Outbox."""
        self.guard = threading.Lock()


_boxes = _Boxes()


def outbox(
    relay: str | None,
    store: str | None = None,
    exit_wait: float = 5.0,
    config: Config | None = None,
    sender: str = "",
) -> Outbox:
    """The Outbox whose mail goes to this relay; None: it only stores. ``config``: the configuration that
    names ``sender``.
    """
    key = (relay, store, exit_wait, sender)
    with _boxes.guard:
        box = _boxes.open.get(key)
        if box is None or box.closed:
            box = _boxes.open[key] = Outbox(store, relay=relay, config=config, exit_wait=exit_wait)
        return box
