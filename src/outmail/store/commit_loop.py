"""Group commit for an event loop: all verbs of one turn of the loop share one transaction.

How: `ask` collects verbs; a `contributor` is called right before each commit and may ask for more.
`Store.begin` does in the loop's thread what need not wait. One writer thread waits for the disk, for another
program that holds the write lock, or for a network. So a slow disk or a foreign lock delays mail, but never
stops the loop. The thread also makes blocking calls. Calls and commits take turns: however many calls come,
and however long each takes, verbs that wait are committed after the next one.
Promises: each verb gets its answer, or an exception in its place, exactly once, in the loop, after the
commit. Batches keep their order, one at a time; so do calls. The thread is started with the object and never
later.
Fails: an answer that is an exception. Does not: know what the verbs mean, or run one again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from outmail.store import Store, StoreError, Verb
from outmail.system.threads import CallThread, Then

log = logging.getLogger("outmail.engine")

#: Seconds that the next commit waits for more verbs, after a commit that others had to wait for.
BREATH = 0.001
#: The same for a store behind a network, where each commit costs round trips.
LONG_BREATH = 0.01


class Committer:
    """All writes of one loop to one store."""

    def __init__(self, store: Store, loop: asyncio.AbstractEventLoop) -> None:
        self.store = store
        self._loop = loop
        self._asks: list[tuple[Verb[Any], Then]] = []
        self._calls: deque[tuple[Callable[[], Any], Then]] = deque()
        self._contributors: list[Callable[[], None]] = []
        #: How many commits and calls are running: one, but for the end.
        self._away = 0
        #: The next commit goes before the next call.
        self._commit_first = False
        #: Somebody asked for a commit while one was running.
        self._again = False
        self._closed = False
        self._timer: asyncio.Handle | None = None
        self._due = 0.0
        self._writer = CallThread("writer")

    @property
    def idle(self) -> bool:
        """True when no verb and no call waits, and none is running."""
        return not (self._asks or self._calls or self._away or self._timer)

    def contributor(self, function: Callable[[], None]) -> None:
        """``function`` is called right before each commit and may `ask`."""
        self._contributors.append(function)

    def ask(self, verb: Verb[Any], then: Then) -> None:
        """Add a verb to the next commit. This does not start a commit: `soon` or `flush` do."""
        self._asks.append((verb, then))
        self._refuse_if_closed()

    def soon(self, seconds: float = 0.0) -> None:
        """Commit within ``seconds``, or earlier if somebody else asked for that."""
        if self._closed:
            return
        due = self._loop.time() + seconds
        if self._timer is not None:
            if self._due <= due:
                return
            self._timer.cancel()
        self._due = due
        self._timer = self._loop.call_later(seconds, self.flush)

    def flush(self) -> None:
        """Commit now; if a commit or a call is running, right after it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._closed:
            return
        if self._away or (self._calls and not self._commit_first):
            self._again = True
            self._go_on()
            return
        for contribute in self._contributors:
            contribute()
        self._commit_first = False
        if self._away:  # a contributor has made a call
            self._again = True
            return
        if not self._asks:
            self._go_on()
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
        """Run a blocking call on the writer thread. ``then`` gets its result or exception, in the loop."""
        if self._closed:
            _tell(then, _ended())
            return
        self._calls.append((function, then))
        self._go_on()

    def close(self) -> None:
        """End the thread when it has finished what it was given. No commit begins from here on: verbs that
        wait, or come later, get an exception.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._calls:
            self._next_call()
        self._writer.close()
        self._closed = True
        self._refuse_if_closed()

    def _refuse_if_closed(self) -> None:
        if self._closed:
            asks, self._asks = self._asks, []
            for _, then in asks:
                _tell(then, _ended())

    def _next_call(self) -> None:
        function, then = self._calls.popleft()
        self._away += 1
        self._commit_first = True
        self._writer.call(function, lambda answer: self._called(then, answer))

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
        """Begin the next commit, or the next call."""
        if self._away or self._closed:
            return
        wanted = self._again or self._asks or self._timer is not None
        if self._calls and not (wanted and self._commit_first):
            self._next_call()
        elif self._again or self._asks:
            self.soon((LONG_BREATH if self.store.blocking else BREATH) if self._again else 0.0)
            self._again = False


def _ended() -> StoreError:
    return StoreError("closed", "this engine has ended its work with the store")


def _tell(then: Then, answer: Any) -> None:
    try:
        then(answer)
    except Exception:
        log.exception("a bug of outmail: an answer of the store could not be processed")
