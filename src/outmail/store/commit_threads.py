"""Group commit for threads: who asks while another commits shares the next commit.

How: leader and followers (`system.leader`). The first thread that gets the write lock commits for all who ask
at that moment; the others find their answer when they get it. Promises: a verb has its answer, or its own
exception, before `run` returns, exactly once. A verb runs once, so Ctrl-C in the thread that commits leaves
the others in doubt: they hear `StoreError("io")`, "it may have happened".
Fails: `StoreError`. Does not: know what a transaction is (`_transaction` of the store does).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from outmail.store import StoreError, Verb
from outmail.system.leader import Call, Late, Leader

R = TypeVar("R")


class _Ask(Call):
    """One thread's verb, waiting for whoever commits next."""

    __slots__ = ("verb", "wait")

    def __init__(self, verb: Verb[Any], wait: float) -> None:
        self.verb, self.wait = verb, wait
        self.done = False


class GroupCommit:
    """A store's writing side."""

    url: str

    def __init__(self) -> None:
        self._leader: Leader[_Ask] = Leader()
        self._begin_anew()

    def _begin_anew(self) -> None:
        """At the start, and in a forked child: nobody of the parent's threads is here."""
        self._leader.begin_anew()
        self._write_lock = self._leader.lock

    @property
    def waiting(self) -> int:
        """How many are at it or wait, about."""
        return self._leader.waiting

    def _check_fork(self) -> None:
        raise NotImplementedError

    def _transaction(self, verbs: Sequence[Verb[Any]], wait: float) -> list[Any]:
        raise NotImplementedError

    def run(self, verb: Verb[R], wait: float = 30.0) -> R:
        """One verb, on disk when this returns. Threads that come while another commits are committed together
        next.
        """
        self._check_fork()
        try:
            return self._leader.share(_Ask(verb, wait), self._answer, wait)  # type: ignore[no-any-return]
        except Late:
            raise StoreError("busy", f"{self.url} was busy for {wait:.0f} s") from None

    def _answer(self, asks: list[_Ask], mine: _Ask) -> None:
        try:
            for ask, answer in zip(asks, self._transaction([ask.verb for ask in asks], mine.wait)):
                ask.settle(answer)
        except Exception as problem:
            for ask in asks:
                ask.settle(problem)
        except BaseException:  # Ctrl-C is for the thread it came to
            for ask in asks:
                if not ask.done:
                    ask.settle(StoreError("io", "the commit was interrupted; it may have happened"))
            raise

    def commit(self, verbs: Sequence[Verb[Any]], wait: float = 30.0) -> list[Any]:
        """Several verbs in one transaction; with ``wait`` 0 it raises StoreError("busy") rather than wait at
        all.
        """
        self._check_fork()
        if not self._write_lock.acquire(timeout=wait):
            raise StoreError("busy", f"{self.url} is busy")
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
