"""Group commit for a loop: what is asked of the store in one turn shares one transaction.

How: verbs are gathered (`ask`, or a `contributor` that is asked right before each commit) and committed in the loop's own
thread, which is fastest while commits are fast. When another program holds the write lock, or when commits are slow
(median of the last 50 above 3 ms), batches go to one writer thread until they are fast again: a slow disk or a foreign
lock delays mail, it never stops the loop. A store behind a network (`Store.blocking`) always gets them from the thread.
Promises: every verb asked gets its answer, or the exception in its place, exactly once, in the loop; batches keep their
order; one is under way at a time; the thread is started with the object and never later.
Fails: an answer that is an exception. Does not: know what the verbs mean, or try one again.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
from collections import deque
from collections.abc import Callable
from typing import Any

from outmail.store import Store, Trouble, Verb
from outmail.worker import Then, Worker

log = logging.getLogger("outmail.engine")

SLOW = 0.003
HISTORY = 50
PATIENCE = 30.0


class Committer:
    """Everything a loop writes to one store."""

    def __init__(self, store: Store, loop: asyncio.AbstractEventLoop) -> None:
        self.store = store
        self._loop = loop
        self._asks: list[tuple[Verb[Any], Then]] = []
        self._contributors: list[Callable[[], None]] = []
        self._away = 0
        self._slow = store.blocking
        self._landings = 0
        self._times: deque[float] = deque(maxlen=HISTORY)
        self._timer: asyncio.Handle | None = None
        self._due = 0.0
        self._writer = Worker("writer")

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
            return
        for contribute in self._contributors:
            contribute()
        if not self._asks:
            return
        asks, self._asks = self._asks, []
        if self._slow:
            self._hand_over(asks)
            return
        try:
            answers = self.store.commit([verb for verb, _ in asks], wait=0)
        except Trouble as problem:
            if problem.kind == "busy":  # at BEGIN: no verb has run
                self._hand_over(asks)
                return
            answers = [problem] * len(asks)
        except Exception as problem:
            answers = [problem] * len(asks)
        self._landed(asks, answers)

    def call(self, function: Callable[[], Any], then: Then) -> None:
        """Run a blocking call on the writer thread; ``then`` gets its result or its exception, in the loop."""
        self._away += 1
        self._writer.call(function, lambda answer: self._called(then, answer))

    def close(self) -> None:
        """End the thread once it is through with what it has."""
        self._writer.close()

    # -- the writer thread ------------------------------------------------------------------------------------------

    def _hand_over(self, asks: list[tuple[Verb[Any], Then]]) -> None:
        self._away += 1
        verbs = [verb for verb, _ in asks]

        def landed(answers: Any) -> None:
            self._away -= 1
            self._landed(asks, [answers] * len(asks) if isinstance(answers, BaseException) else answers)

        self._writer.call(lambda: self.store.commit(verbs, wait=PATIENCE), landed)

    # -- answers ----------------------------------------------------------------------------------------------------

    def _called(self, then: Then, answer: Any) -> None:
        self._away -= 1
        _tell(then, answer)
        self._go_on()

    def _landed(self, asks: list[tuple[Verb[Any], Then]], answers: list[Any]) -> None:
        self._times.append(self.store.commit_seconds)
        self._landings += 1
        if not self.store.blocking and len(self._times) == HISTORY and self._landings % 10 == 0:
            slow = statistics.median(self._times) > SLOW
            if slow != self._slow:
                log.info("commits are %s: they are made %s", "slow" if slow else "fast again", "in a thread of their own" if slow else "in the loop")
                self._slow = slow
        for (_, then), answer in zip(asks, answers):
            _tell(then, answer)
        self._go_on()

    def _go_on(self) -> None:
        if self._asks and not self._away and self._timer is None:
            self.soon()


def _tell(then: Then, answer: Any) -> None:
    try:
        then(answer)
    except Exception:
        log.exception("a bug of outmail while it took an answer of the store")
