"""Leader and followers: threads that ask while another thread works share the next turn.

How: each thread puts its call on a list and waits for one lock. The thread that gets the lock leads: it takes
all calls from the list and does the work for all of them. The others find their answers when they get the
lock. Nothing but that lock wakes a thread.
Promises: each call is in exactly one turn that ends without an exception, and `share` returns its answer, or
raises its own exception, once. A call that was given up after a time-out was in no turn and never will be.
When the work raises (Ctrl-C, say), the exception belongs to the leading thread; calls without an answer go
back to the front of the list, in their order, and their threads lead themselves. After `begin_anew`, in a
forked child, nothing of the parent is left.
Fails: `Late`. Does not: know what the work is, or notice a fork by itself (the owner of the leader does).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar


class Late(Exception):
    """No thread has taken the call within the time-out."""


class Call:
    """What one thread asks for. A subclass adds what the work needs and sets ``done`` to False."""

    __slots__ = ("answer", "done")

    answer: Any
    done: bool

    def settle(self, answer: Any) -> None:
        """Set the answer, or the exception that `Leader.share` raises in the thread that asked."""
        self.answer, self.done = answer, True


C = TypeVar("C", bound=Call)
#: Settles all calls of a turn. The second argument is the leading thread's own call, which is one of them.
Work = Callable[[list[C], C], None]


class Leader(Generic[C]):
    """One turn at a time. Others may hold ``lock``, to keep all threads out; ``calls`` are waiting."""

    __slots__ = ("calls", "lock")

    def __init__(self) -> None:
        self.begin_anew()

    def begin_anew(self) -> None:
        """At the start, and in a forked child, where none of the parent's threads exist."""
        self.lock = threading.Lock()
        self.calls: list[C] = []

    @property
    def waiting(self) -> int:
        """About how many threads are working or waiting."""
        return len(self.calls) + self.lock.locked()

    def share(self, call: C, work: Work[C], wait: float | None = None) -> Any:
        """The answer to ``call``, from this thread's ``work`` or another thread's. Raises `Late` when no
        thread has taken the call within ``wait`` seconds; None waits as long as it takes.
        """
        self.calls.append(call)
        if wait is None:
            with self.lock:  # `with`, not acquire and `try`: Ctrl-C between those two would leave it locked
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
        """Raise `Late`, unless another thread has taken the call; then wait for its answer, which is near."""
        try:
            self.calls.remove(call)
        except ValueError:
            self.lock.acquire()
        else:
            raise Late

    def _lead(self, mine: C, work: Work[C]) -> None:
        found, self.calls = self.calls, []
        turn = list(found)  # a thread that still sees the old list leads after this turn
        if mine not in turn:
            turn.append(mine)
        try:
            work(turn, mine)
        except BaseException:
            self.calls[:0] = [call for call in turn if call is not mine and not call.done]
            raise
