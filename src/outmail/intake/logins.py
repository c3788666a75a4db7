"""Passwords of clients: stored as hashes, and verified one at a time.

Verifying takes time on purpose (scrypt), so attackers could use it to block others.
Promises: one password is verified at a time, on a thread of its own. Clients (addresses) take turns, so a
thousand guesses of one client delay another client's log-in by one guess. For each client the newest attempt
comes first, and at most `MOST_WAITING` wait; the oldest is told to try again. A user that does not exist
costs the same time.
Does not: count failures (the dialogue ends a session after a few), or know where users are stored.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from base64 import b64decode, b64encode
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

from outmail.system.threads import CallThread

#: How many log-ins of one client may wait.
MOST_WAITING = 10


class Logins:
    """The log-ins that wait. ``then`` gets True, False, or None when the password was not checked, because
    too many wait.
    """

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[tuple[str, str, Callable[[bool | None], None]]]] = OrderedDict()
        self._worker: CallThread | None = None
        self._busy = False

    def ask(self, client: str, password: str, stored: str, then: Callable[[bool | None], None]) -> None:
        """Is this the password? ``stored`` comes from `hashed`; "" for a user that does not exist."""
        queue = self._waiting.setdefault(client, deque())
        queue.append((password, stored, then))
        if len(queue) > MOST_WAITING:
            queue.popleft()[2](None)
        self._next()

    def close(self) -> None:
        """Drop the waiting log-ins and end the thread."""
        self._waiting.clear()
        if self._worker is not None:
            self._worker.close()

    def _next(self) -> None:
        if self._busy or not self._waiting:
            return
        client, queue = self._waiting.popitem(last=False)
        password, stored, then = queue.pop()
        if queue:
            self._waiting[client] = queue  # behind all other clients
        self._busy = True
        self._worker = self._worker or CallThread("logins")
        self._worker.call(lambda: verified(password, stored), lambda answer: self._answer(then, answer))

    def _answer(self, then: Callable[[bool | None], None], answer: Any) -> None:
        self._busy = False
        then(answer is True)
        self._next()


def hashed(password: str) -> str:
    """``scrypt$salt$hash``, for the users' file."""
    salt = os.urandom(16)
    return f"scrypt${b64encode(salt).decode()}${b64encode(_scrypt(password, salt)).decode()}"


def verified(password: str, stored: str) -> bool:
    """Takes the same time for a user that does not exist."""
    kind, _, rest = stored.partition("$")
    salt, _, digest = rest.partition("$")
    try:
        wanted = b64decode(digest, validate=True) if kind == "scrypt" else b""
        made = _scrypt(password, b64decode(salt, validate=True) if kind == "scrypt" else b"nobody")
    except ValueError:
        return False
    return bool(wanted) and hmac.compare_digest(made, wanted)


def _scrypt(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=2**14, r=8, p=1, dklen=32)
