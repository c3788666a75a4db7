"""Group commit for threads: verbs of threads that wait for a running commit share the next one.

How: leader and followers (`system.leader`). The first thread that gets the write lock commits for all threads
that ask at that moment; the others find their answers when they get the lock.
Promises: a verb has its answer, or its own exception, before `run` returns, exactly once. A verb runs only
once. So when Ctrl-C interrupts the thread that commits, the others do not know what happened: they get
`StoreError("io")`, "it may have happened".
Fails: `StoreError`. Does not: know what a transaction is (`_transaction` of the store does).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from outmail.store import StoreError, Verb
from outmail.system.leader import Call, Late, Leader

R = TypeVar("R")


class _Ask(Call):
    """One thread's verb, waiting for the next commit."""

    __slots__ = ("verb", "wait")

    def __init__(self, verb: Verb[Any], wait: float) -> None:
        self.verb, self.wait = verb, wait
        self.done = False


class GroupCommit:
    """The writing side of a store."""

    url: str

    def __init__(self) -> None:
        self._leader: Leader[_Ask] = Leader()
        self._begin_anew()

    def _begin_anew(self) -> None:
        """At the start, and in a forked child, where none of the parent's threads exist."""
        self._leader.begin_anew()
        self._write_lock = self._leader.lock

    @property
    def waiting(self) -> int:
        """About how many threads are committing or waiting."""
        return self._leader.waiting

    def _check_fork(self) -> None:
        raise NotImplementedError

    def _transaction(self, verbs: Sequence[Verb[Any]], wait: float) -> list[Any]:
        raise NotImplementedError

    def run(self, verb: Verb[R], wait: float = 30.0) -> R:
        """Run one verb; it is on disk when this returns. Threads that ask while another thread commits share
        the next commit.
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
        except BaseException:  # Ctrl-C belongs to the thread that it interrupted
            for ask in asks:
                if not ask.done:
                    ask.settle(StoreError("io", "the commit was interrupted; it may have happened"))
            raise

    def commit(self, verbs: Sequence[Verb[Any]], wait: float = 30.0) -> list[Any]:
        """Several verbs in one transaction. With ``wait`` 0: StoreError("busy") instead of waiting."""
        self._check_fork()
        if not self._write_lock.acquire(timeout=wait):
            raise StoreError("busy", f"{self.url} is busy")
        try:
            return self._transaction(verbs, wait)
        finally:
            self._write_lock.release()

    def begin(self, verbs: Sequence[Verb[Any]]) -> Callable[[], list[Any]]:
        """`commit` for event loops, in two parts: what need not wait is done now; the rest is the returned
        function, to be called once, on a thread.
        """
        return lambda: self.commit(verbs)

    def announce(self) -> None:
        """There is nobody elsewhere to tell."""

    def follow(self, wake: Callable[[], None]) -> None:
        """There is nobody elsewhere to listen to."""
