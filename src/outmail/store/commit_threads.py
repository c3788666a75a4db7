"""Group commit for threads: who asks while another commits shares the next commit.

How: leader and followers. The first thread that gets the write lock commits for all who ask at that moment;
the others find their answer when they get it. Promises: a verb has its answer, or its own exception, before
`run` returns, exactly once.
Fails: `Trouble`. Does not: know what a transaction is (`_transaction` of the store does).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from outmail.store import Trouble, Verb

R = TypeVar("R")


class _Ask:
    """One thread's verb, waiting for whoever commits next."""

    __slots__ = ("answer", "done", "verb")

    def __init__(self, verb: Verb[Any]) -> None:
        self.verb = verb
        self.answer: Any = None
        self.done = False


class GroupCommit:
    """A store's writing side."""

    url: str

    def __init__(self) -> None:
        self._begin_anew()

    def _begin_anew(self) -> None:
        """At the start, and in a forked child: nobody of the parent's threads is here."""
        self._write_lock = threading.Lock()
        self._asks: list[_Ask] = []

    @property
    def waiting(self) -> int:
        """How many are at it or wait, about."""
        return len(self._asks) + self._write_lock.locked()

    def _check_fork(self) -> None:
        raise NotImplementedError

    def _transaction(self, verbs: Sequence[Verb[Any]], wait: float) -> list[Any]:
        raise NotImplementedError

    def run(self, verb: Verb[R], wait: float = 30.0) -> R:
        """One verb, on disk when this returns. Threads that come while another commits are committed together
        next.
        """
        self._check_fork()
        ask = _Ask(verb)
        self._asks.append(ask)
        if not self._write_lock.acquire(timeout=wait):
            with contextlib.suppress(ValueError):
                self._asks.remove(ask)
                raise Trouble("busy", f"{self.url} was busy for {wait:.0f} s")
            self._write_lock.acquire()  # somebody took it up: the answer is near
        try:
            if not ask.done:
                asks, self._asks = self._asks, []
                if ask not in asks:
                    asks.append(ask)
                self._answer(asks, ask, wait)
        finally:
            self._write_lock.release()
        if isinstance(ask.answer, BaseException):
            raise ask.answer
        return ask.answer  # type: ignore[no-any-return]

    def _answer(self, asks: list[_Ask], mine: _Ask, wait: float) -> None:
        try:
            answers: Sequence[Any] = self._transaction([ask.verb for ask in asks], wait)
        except Exception as problem:
            answers = [problem] * len(asks)
        except BaseException as problem:  # Ctrl-C is for the thread it came to
            answers = [
                problem if ask is mine else Trouble("io", "the commit was interrupted; it may have happened")
                for ask in asks
            ]
        for ask, answer in zip(asks, answers):
            ask.answer, ask.done = answer, True

    def commit(self, verbs: Sequence[Verb[Any]], wait: float = 30.0) -> list[Any]:
        """Several verbs in one transaction; with ``wait`` 0 it raises Trouble("busy") rather than wait at
        all.
        """
        self._check_fork()
        if not self._write_lock.acquire(timeout=wait):
            raise Trouble("busy", f"{self.url} is busy")
        try:
            return self._transaction(verbs, wait)
        finally:
            self._write_lock.release()

    def begin(self, verbs: Sequence[Verb[Any]]) -> Callable[[], list[Any]]:
        """`commit` in two parts, for loops: what need not wait now, the rest by calling what this returns,
        once, on a thread.
        """
        return lambda: self.commit(verbs)

    def announce(self) -> None:
        """Nobody elsewhere need be told."""

    def follow(self, wake: Callable[[], None]) -> None:
        """Nobody tells."""
