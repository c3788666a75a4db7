"""The thread of an engine in a program.

Promises: the engine runs in a daemon thread. At the program's end, when no thread can be started any more, it
runs in the thread that calls `drain`. Fails: never into the program; a bug that ends the engine is logged,
and mail stays queued. Does not: build the engine, or start it again.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from outmail.system.starting import started

log = logging.getLogger("outmail")


class EngineThread:
    """One engine and its thread, from now until `end`."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.failure: BaseException | None = None
        thread = threading.Thread(target=self._run, args=(engine.run,), name="outmail-engine", daemon=True)
        self._thread = thread if started(thread) else None

    def _run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            asyncio.run(work())
        except KeyboardInterrupt:
            pass  # whoever waited at the end has given up
        except BaseException as problem:
            self.failure = problem
            log.exception("the engine ended because of a bug of outmail; mail stays queued")

    def drain(self, seconds: float) -> None:
        """Wait until nothing is left that could be tried now."""
        deadline = time.monotonic() + seconds
        if self._thread is None:
            self._run(partial(self._briefly, deadline))
        while (
            self._thread is not None
            and self._thread.is_alive()
            and time.monotonic() < deadline
            and not self.engine.quiet()
        ):
            time.sleep(0.005)

    async def _briefly(self, deadline: float) -> None:
        life = asyncio.ensure_future(self.engine.run())
        while not life.done() and time.monotonic() < deadline and not self.engine.quiet():
            await asyncio.sleep(0.005)
        self.engine.stop()
        await life

    def end(self, within: float) -> None:
        """Stop the engine. What it is at within these seconds is put back."""
        self.engine.stop(within / 2)
        if self._thread is not None:
            self._thread.join(timeout=within)
