"""Names to addresses in a thread of our own.

Why: at the end of a program CPython refuses to start threads, and asyncio's getaddrinfo needs its default executor;
a thread that was started with the engine still answers. Promises: one lookup at a time, an answer or OSError each.
"""

from __future__ import annotations

import asyncio
import queue
import socket
import threading
from typing import Any

Address = tuple[int, Any]


class Resolver:
    """A daemon thread that asks the system's resolver."""

    def __init__(self) -> None:
        self._asks: queue.SimpleQueue[tuple[asyncio.AbstractEventLoop, asyncio.Future[list[Address]], str, int] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="outmail-resolver", daemon=True)
        self._thread.start()

    async def addresses(self, host: str, port: int) -> list[Address]:
        """(family, sockaddr) pairs in the system's order."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Address]] = loop.create_future()
        self._asks.put((loop, future, host, port))
        return await future

    def close(self) -> None:
        self._asks.put(None)

    def _serve(self) -> None:
        while (ask := self._asks.get()) is not None:
            loop, future, host, port = ask
            result: Any
            try:
                found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                result = [(family, address) for family, _, _, _, address in found]
            except (OSError, UnicodeError) as problem:
                result = problem
            try:
                loop.call_soon_threadsafe(_answer, future, result)
            except RuntimeError:
                return  # the loop is closed: nobody waits any more


def _answer(future: asyncio.Future[list[Address]], result: Any) -> None:
    if future.done():
        return
    if isinstance(result, BaseException):
        future.set_exception(result if isinstance(result, OSError) else OSError(str(result)))
    else:
        future.set_result(result)
