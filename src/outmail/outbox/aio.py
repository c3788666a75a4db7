"""`AsyncOutbox`: the calls of `Outbox`, awaited.

Promises: calls run on threads of its own, so the loop never waits for a disk. Concurrent sends share commits.
What is written on a connection given as ``using`` is written in the caller's loop. Fails: as `Outbox`. Does
not: deliver in the caller's loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial
from typing import Any

from outmail.errors import ConfigError
from outmail.model import Attempt, Event, Receipt, Status
from outmail.outbox.outbox import WAIT_WITH_USING, Outbox, one_using
from outmail.system.threads import CallThread
from outmail.transactional.insert import Rows, caller


class AsyncOutbox:
    """`Outbox` with every call awaited; concurrent sends share commits."""

    def __init__(self, *args: Any, **words: Any) -> None:
        self._box = Outbox(*args, **words)
        self._workers = CallThread("outbox", 4)

    async def send(self, *args: Any, using: Any = None, wait: float | None = None, **words: Any) -> Receipt:
        return await self._with_patience(using, wait, partial(self._box.send, *args, **words))

    async def send_many(self, items: Iterable[dict[str, Any]]) -> list[Receipt]:
        return await self._many(items, self._box.send_many)

    async def submit(
        self, content: Any, *, using: Any = None, wait: float | None = None, **words: Any
    ) -> Receipt:
        return await self._with_patience(using, wait, partial(self._box.submit, content, **words))

    async def submit_many(self, items: Iterable[dict[str, Any]]) -> list[Receipt]:
        return await self._many(items, self._box.submit_many)

    async def _many(
        self, items: Iterable[dict[str, Any]], call: Callable[..., list[Receipt]]
    ) -> list[Receipt]:
        found, using = one_using(items)
        return await self._with(using, lambda **words: call([{**item, **words} for item in found]))  # type: ignore[no-any-return]

    async def _with_patience(self, using: Any, wait: float | None, call: Callable[..., Receipt]) -> Receipt:
        """``wait`` is waited in the loop, on no thread."""
        if using is not None and wait is not None:
            raise ConfigError(WAIT_WITH_USING)
        receipt: Receipt = await self._with(using, call)
        if wait is not None:
            await self.wait(receipt.id, wait)
        return receipt

    async def _with(self, using: Any, call: Callable[..., Any]) -> Any:
        """Make the call on a thread. Rows for the caller's connection are collected there and written here,
        in the caller's loop.
        """
        if using is None:
            return await self._workers.run(call)
        there, rows = caller(using), Rows()
        answer = await self._workers.run(partial(call, using=rows))
        writing = there.write(rows)
        if writing is not None:
            await writing
        return answer

    async def status(self, id: str) -> Status:
        return await self._workers.run(partial(self._box.status, id))

    async def find(self, filter: str = "", **words: str) -> AsyncIterator[Status]:
        for status in await self._workers.run(lambda: list(self._box.find(filter, **words))):
            yield status

    async def content(self, id: str) -> bytes:
        return await self._workers.run(partial(self._box.content, id))

    async def attempts(self, id: str) -> list[Attempt]:
        return await self._workers.run(partial(self._box.attempts, id))

    async def wait(self, id: str, timeout: float) -> Status:
        deadline = time.monotonic() + timeout
        while not (status := await self.status(id)).settled and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        return status

    async def events(self, after: int = 0) -> AsyncIterator[Event]:
        for event in await self._workers.run(lambda: list(self._box.events(after))):
            yield event

    def on(self, event: str) -> Callable[[Callable[[Event], Any]], Callable[[Event], Any]]:
        return self._box.on(event)

    async def cancel(self, what: str) -> int:
        return await self._workers.run(partial(self._box.cancel, what))

    async def hold(self, what: str) -> int:
        return await self._workers.run(partial(self._box.hold, what))

    async def release(self, what: str) -> int:
        return await self._workers.run(partial(self._box.release, what))

    async def retry(self, what: str) -> int:
        return await self._workers.run(partial(self._box.retry, what))

    async def requeue(self, what: str) -> int:
        return await self._workers.run(partial(self._box.requeue, what))

    @property
    def closed(self) -> bool:
        return self._box.closed

    async def close(self) -> None:
        await self._workers.run(self._box.close)
        self._workers.close()

    async def __aenter__(self) -> AsyncOutbox:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
