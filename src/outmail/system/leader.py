"""Leader and followers: threads that ask while another one works share the next turn.

How: each thread puts its call on a list and waits for one lock. Whoever gets the lock first leads: it takes
all calls of the list and does the work for all of them; the others find their answers when the lock comes to
them. Nobody is woken through anything but that lock.
Promises: each call is in exactly one turn that ends in order, and `share` returns its answer, or raises its
own exception, once. A call given up by a time-out has not been in a turn and never will be. An exception that
the work lets through, such as Ctrl-C, is the leading thread's: those without an answer go back to the front
of the list, in their order, and lead themselves. After `begin_anew`, in a forked child, nothing of the
parent's is left.
Fails: `Late`. Does not: know what the work is, or see a fork by itself (whoever owns the leader does).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar


class Late(Exception):
    """Nobody took the call up in time."""


class Call:
    """What one thread asks for. A subclass adds what the work needs, and sets ``done`` to False."""

    __slots__ = ("answer", "done")

    answer: Any
    done: bool

    def settle(self, answer: Any) -> None:
        """The answer, or the exception that `Leader.share` raises in the thread that asked."""
        self.answer, self.done = answer, True


C = TypeVar("C", bound=Call)
#: Settles all calls of a turn; the second argument is the leading thread's own, which is one of them.
Work = Callable[[list[C], C], None]


class Leader(Generic[C]):
    """One turn at a time. ``lock`` may be held by others, to keep everybody out; ``calls`` are waiting."""

    __slots__ = ("calls", "lock")

    def __init__(self) -> None:
        self.begin_anew()

    def begin_anew(self) -> None:
        """At the start, and in a forked child: nobody of the parent's threads is here."""
        self.lock = threading.Lock()
        self.calls: list[C] = []

    @property
    def waiting(self) -> int:
        """How many are at it or wait, about."""
        return len(self.calls) + self.lock.locked()

    def share(self, call: C, work: Work[C], wait: float | None = None) -> Any:
        """The answer to ``call``, which this thread's ``work`` gives or another's. Raises `Late` when nobody
        has taken it up within ``wait`` seconds; None waits for as long as it takes.
        """
        self.calls.append(call)
        if wait is None:
            with self.lock:  # not acquire: between that and a `try`, Ctrl-C would leave it locked
                if not call.done:
                    self._lead(call, work)
        else:
            if not self.lock.acquire(timeout=wait):
                self._give_up(call)
            try:
                if not call.done:
                    self._lead(call, work)
            finally:
                self.lock.release()
        if isinstance(call.answer, BaseException):
            raise call.answer
        return call.answer

    def _give_up(self, call: C) -> None:
        """Raise `Late`, unless somebody has taken the call up: then the answer is near, and waited for."""
        try:
            self.calls.remove(call)
        except ValueError:
            self.lock.acquire()
        else:
            raise Late

    def _lead(self, mine: C, work: Work[C]) -> None:
        found, self.calls = self.calls, []
        turn = list(found)  # whoever still reaches the old list leads after us
        if mine not in turn:
            turn.append(mine)
        try:
            work(turn, mine)
        except BaseException:
            self.calls[:0] = [call for call in turn if call is not mine and not call.done]
            raise
