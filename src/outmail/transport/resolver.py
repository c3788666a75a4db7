"""Resolves host names on a thread of our own (`system.threads` says why). Promises: one lookup at a time;
each gets an answer or an OSError.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401  (else loaded by the first lookup, on its thread: a child forked in that moment could never load it)
import socket
from typing import Any

from outmail.system.threads import CallThread

Address = tuple[int, Any]


class Resolver:
    """Asks the system's resolver."""

    def __init__(self) -> None:
        self._worker = CallThread("resolver")

    async def addresses(self, host: str, port: int) -> list[Address]:
        """(family, sockaddr) pairs in the system's order."""
        return await self._worker.run(lambda: _lookup(host, port))

    def close(self) -> None:
        self._worker.close()


def _lookup(host: str, port: int) -> list[Address]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as problem:
        raise OSError(str(problem)) from None
    return [(family, address) for family, _, _, _, address in found]
