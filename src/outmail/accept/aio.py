"""The one door for an asyncio loop: acceptances of one turn share a commit with all else the loop writes.

Promises: `AsyncAcceptance.accept` returns at once; its callback hears of each message exactly once, after the
commit; what has room at a next hop is leased in the same transaction and handed to the engine of the same
loop, which need not read it back.
Fails: `Refused` or `NotStored` as values. Does not: check messages (`acceptance`), or commit
(`store.commit_loop`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from outmail.accept.acceptance import Door, Draft, not_stored
from outmail.errors import NotStored, Refused
from outmail.model import Message
from outmail.store import StoreError
from outmail.store.commit_loop import Committer
from outmail.store.verbs.rows import LONG
from outmail.system.threads import CallThread

log = logging.getLogger("outmail")

R = TypeVar("R")


class HandOver(Protocol):
    """An engine in the same loop: it may take messages in the moment they are accepted."""

    def offer(self, messages: Sequence[Message]) -> dict[str, tuple[int, int]]:
        """(owner, lease) by id of those it takes; called right before the commit."""

    def taken(
        self, messages: Sequence[Message], leases: dict[str, tuple[int, int]], added: Sequence[Any] | None
    ) -> None:
        """After the commit: what `verbs.add` said of all messages, or None when nothing was stored."""


#: A lone acceptance waits this long for others to share its commit.
GATHER = 0.001


class AsyncAcceptance:
    """The same door for an asyncio loop: acceptances of one turn share a commit, and what has room goes
    straight to the engine.

    `accept` returns at once; ``then`` gets the message's id, or a `Refused` or `NotStored` as a value, after
    the commit.
    """

    def __init__(self, door: Door, commits: Committer, engine: HandOver | None = None) -> None:
        self.door = door
        self.in_flight = 0
        #: The listeners, which share one budget of memory.
        self.listeners: list[Any] = []
        #: When each acceptance without an answer began (monotonic), oldest first.
        self._unanswered: dict[int, float] = {}
        self._commits = commits
        self._engine = engine
        self._waiting: list[tuple[Message, Callable[[str | Exception], None]]] = []
        self._helper = CallThread("intake")
        commits.contributor(self._contribute)

    def accept(self, draft: Draft, then: Callable[[str | Exception], None]) -> None:
        """Check now, store with the others of this moment."""
        try:
            message = self.door.complete(draft)
        except Refused as refusal:
            then(refusal)
            return
        self.in_flight += len(message.content)
        self._unanswered[id(message)] = self.door.clock.monotonic()
        if len(message.content) > LONG:  # piece by piece, on the writer's thread
            self._commits.call(
                lambda: self.door.keep([message])[0].id, lambda answer: self._answer(message, then, answer)
            )
            return
        self._waiting.append((message, then))
        self._commits.soon(GATHER if len(self._waiting) == 1 else 0.0)

    def longest(self) -> float:
        """For how many seconds the oldest acceptance has been waiting for its commit; 0 when none is."""
        return (
            self.door.clock.monotonic() - next(iter(self._unanswered.values())) if self._unanswered else 0.0
        )

    def call(self, function: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """A blocking call on a thread of its own, for intakes that have one to make (a password to verify, a
        mailbox to write).
        """
        self._helper.call(function, then)

    async def run(self, function: Callable[[], R]) -> R:
        """The same, awaited."""
        return await self._helper.run(function)

    def _contribute(self) -> None:
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        messages = [message for message, _ in waiting]
        leases = self._engine.offer(messages) if self._engine is not None else {}
        verb = self.door._add(messages, (), None, None, leases)
        self._commits.ask(verb, lambda answer: self._landed(waiting, messages, leases, answer))

    def _landed(
        self,
        waiting: list[tuple[Message, Any]],
        messages: list[Message],
        leases: dict[str, tuple[int, int]],
        answer: Any,
    ) -> None:
        failed = isinstance(answer, BaseException)
        if not failed:
            self.door.fail("C2")
        if self._engine is not None and leases:
            self._engine.taken(messages, leases, None if failed else answer)
        if not failed and len(leases) < len(messages):
            self.door.wake()
            if self.door.store.blocking:
                self._helper.call(self.door.store.announce, lambda answer: None)
        for i, (message, then) in enumerate(waiting):
            self._answer(message, then, answer if failed else answer[i][0])

    def _answer(self, message: Message, then: Callable[[str | Exception], None], answer: Any) -> None:
        self.in_flight -= len(message.content)
        self._unanswered.pop(id(message), None)
        if isinstance(answer, StoreError):
            answer = not_stored(answer)
        elif isinstance(answer, BaseException) and not isinstance(answer, (Refused, NotStored)):
            log.error("a message could not be stored by a bug of outmail", exc_info=answer)
            answer = NotStored(f"internal error: {answer!r}")
        then(answer)
