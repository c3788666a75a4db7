"""Group commit for a loop: what is asked of the store in one turn shares one transaction.

How: verbs are gathered (`ask`, or a `contributor` that is asked right before each commit) and given to
`Store.begin`: what need not wait is done in the loop's own thread; one writer thread waits for the disk, for
another program that holds the write lock, or for a network. A slow disk or a foreign lock delays mail, it
never stops the loop.
Promises: every verb asked gets its answer, or the exception in its place, exactly once, in the loop, after
the commit; batches keep their order; one is under way at a time; the thread is started with the object and
never later.
Fails: an answer that is an exception. Does not: know what the verbs mean, or try one again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from outmail.store import Store, Verb
from outmail.system.threads import CallThread, Then

log = logging.getLogger("outmail.engine")

#: After a commit that others waited for the next one gathers for so long.
BREATH = 0.001
#: The same for a store behind a network, where each commit costs round trips.
LONG_BREATH = 0.01


class Committer:
    """Everything a loop writes to one store."""

    def __init__(self, store: Store, loop: asyncio.AbstractEventLoop) -> None:
        self.store = store
        self._loop = loop
        self._asks: list[tuple[Verb[Any], Then]] = []
        self._contributors: list[Callable[[], None]] = []
        self._away = 0
        #: Somebody wanted a commit while one was under way.
        self._again = False
        self._timer: asyncio.Handle | None = None
        self._due = 0.0
        self._writer = CallThread("writer")

    @property
    def idle(self) -> bool:
        """True when nothing is asked and nothing under way."""
        return not (self._asks or self._away or self._timer)

    def contributor(self, function: Callable[[], None]) -> None:
        """``function`` is called right before each commit and may `ask`."""
        self._contributors.append(function)

    def ask(self, verb: Verb[Any], then: Then) -> None:
        """A verb for the next commit. Does not schedule one: `soon` or `flush` do."""
        self._asks.append((verb, then))

    def soon(self, seconds: float = 0.0) -> None:
        """Commit within ``seconds`` from now, or earlier when somebody else is in more of a hurry."""
        due = self._loop.time() + seconds
        if self._timer is not None:
            if self._due <= due:
                return
            self._timer.cancel()
        self._due = due
        self._timer = self._loop.call_later(seconds, self.flush)

    def flush(self) -> None:
        """Commit now, unless a batch is under way: then right after it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._away:
            self._again = True
            return
        for contribute in self._contributors:
            contribute()
        if not self._asks:
            return
        asks, self._asks = self._asks, []
        try:
            rest = self.store.begin([verb for verb, _ in asks])
        except Exception as problem:
            self._landed(asks, problem)
            return
        self._away += 1
        self._writer.call(rest, lambda answers: self._written(asks, answers))

    def call(self, function: Callable[[], Any], then: Then) -> None:
        """Run a blocking call on the writer thread; ``then`` gets its result or its exception, in the
        loop.
        """
        self._away += 1
        self._writer.call(function, lambda answer: self._called(then, answer))

    def close(self) -> None:
        """End the thread once it is through with what it has."""
        self._writer.close()

    # -- answers ---------------------------------------------------------------------------------------------

    def _called(self, then: Then, answer: Any) -> None:
        self._away -= 1
        _tell(then, answer)
        self._go_on()

    def _written(self, asks: list[tuple[Verb[Any], Then]], answers: list[Any] | BaseException) -> None:
        self._away -= 1
        self._landed(asks, answers)

    def _landed(self, asks: list[tuple[Verb[Any], Then]], answers: list[Any] | BaseException) -> None:
        for i, (_, then) in enumerate(asks):
            _tell(then, answers if isinstance(answers, BaseException) else answers[i])
        self._go_on()

    def _go_on(self) -> None:
        if self._away or not (self._again or self._asks):
            return
        self.soon((LONG_BREATH if self.store.blocking else BREATH) if self._again else 0.0)
        self._again = False


def _tell(then: Then, answer: Any) -> None:
    try:
        then(answer)
    except Exception:
        log.exception("a bug of outmail while it took an answer of the store")
