"""Threads of our own for blocking calls: resolving names, writing mailboxes, verifying passwords, slow
commits.

Why not the loop's default executor: it starts threads on demand, and at the end of a program CPython refuses
to start threads. Ours are started with the object.
Promises: the answer to a call comes into the loop that made it, once; with one thread, calls are made in
order. A call is made even if its loop was closed meanwhile. Where no thread can be started any more, calls
are made in the loop's own thread.
Does not: cancel a call, or keep a program alive.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from outmail.system.starting import started

R = TypeVar("R")
Then = Callable[[Any], None]


class CallThread:
    """One daemon thread, or ``count`` of them."""

    def __init__(self, name: str, count: int = 1) -> None:
        self._calls: queue.SimpleQueue[tuple[asyncio.AbstractEventLoop, Callable[[], Any], Then] | None] = (
            queue.SimpleQueue()
        )
        self._count = count
        threads = [
            threading.Thread(
                target=self._serve, name=f"outmail-{name}" + (f"-{i}" if count > 1 else ""), daemon=True
            )
            for i in range(count)
        ]
        self._alone = not all(started(thread) for thread in threads)

    def call(self, function: Callable[[], Any], then: Then) -> None:
        """``then`` gets the result, or the exception as a value, in this loop."""
        loop = asyncio.get_running_loop()
        if self._alone:
            loop.call_soon(then, _answer(function))
        else:
            self._calls.put((loop, function, then))

    async def run(self, function: Callable[[], R]) -> R:
        """`call`, awaited."""
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self.call(function, lambda answer: _resolve(future, answer))
        return await future

    def close(self) -> None:
        """End the threads when they have finished what they were given."""
        for _ in range(self._count):
            self._calls.put(None)

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            loop, function, then = call
            answer = _answer(function)
            try:
                loop.call_soon_threadsafe(then, answer)
            except RuntimeError:
                pass  # the loop is closed: nobody waits for the answer


def _answer(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except BaseException as problem:
        return problem


def _resolve(future: asyncio.Future[Any], answer: Any) -> None:
    if future.done():
        return
    if isinstance(answer, BaseException):
        future.set_exception(answer)
    else:
        future.set_result(answer)
