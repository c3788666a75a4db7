"""The door for an asyncio loop: messages that are accepted in one turn share a commit with everything else
that the loop stores.

Promises: `AsyncAcceptance.accept` returns at once. Its callback is called exactly once for each message,
after the commit. A message whose next hop has room is leased in the same transaction and handed to the engine
of the same loop, which need not read it from the store.
Fails: `Refused` or `NotStored`, given to the callback as values. Does not: check messages (`acceptance`), or
commit (`store.commit_loop`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from outmail.accept.acceptance import Door, Draft, not_stored
from outmail.errors import NotStored, Refused
from outmail.model import Message
from outmail.store import StoreError, Verb
from outmail.store.commit_loop import Committer
from outmail.store.verbs.rows import LONG
from outmail.system.threads import CallThread

log = logging.getLogger("outmail")

R = TypeVar("R")


class HandOver(Protocol):
    """An engine in the same loop. It may take messages at the moment when they are accepted."""

    def offer(self, messages: Sequence[Message]) -> dict[str, tuple[int, int]]:
        """Called right before the commit. Returns (owner, lease) for each message that the engine takes, by
        id.
        """

    def taken(
        self, messages: Sequence[Message], leases: dict[str, tuple[int, int]], added: Sequence[Any] | None
    ) -> None:
        """Called after the commit, with what `verbs.add` answered for all messages, or None when nothing was
        stored.
        """


#: Seconds that a single message waits for others to share its commit.
GATHER = 0.001


class AsyncAcceptance:
    """The door for an asyncio loop. Messages of one turn share a commit; messages whose next hop has room go
    straight to the engine.

    `accept` returns at once. After the commit ``then`` gets the message's id, or a `Refused` or `NotStored`
    as a value.
    """

    def __init__(self, door: Door, commits: Committer, engine: HandOver | None = None) -> None:
        self.door = door
        self.in_flight = 0
        #: The listeners. They share one limit of memory.
        self.listeners: list[Any] = []
        #: When each unanswered acceptance began (monotonic seconds), oldest first.
        self._unanswered: dict[int, float] = {}
        self._commits = commits
        self._engine = engine
        self._waiting: list[tuple[Message, Callable[[str | Exception], None]]] = []
        self._helper = CallThread("intake")
        commits.contributor(self._contribute)

    def accept(self, draft: Draft, then: Callable[[str | Exception], None]) -> None:
        """Check now; store together with the other messages of this turn."""
        try:
            message = self.door.complete(draft)
        except Refused as refusal:
            then(refusal)
            return
        self.in_flight += len(message.content)
        self._unanswered[id(message)] = self.door.clock.monotonic()
        if len(message.content) > LONG:  # in pieces, on the writer's thread
            self._commits.call(
                lambda: self.door.keep([message])[0].id, lambda answer: self._answer(message, then, answer)
            )
            return
        self._waiting.append((message, then))
        self._commits.soon(GATHER if len(self._waiting) == 1 else 0.0)

    def ask(self, verb: Verb[Any], then: Callable[[Any], None]) -> None:
        """A verb in the commit of this moment, for intakes that keep something else than a message; ``then``
        gets its answer or an exception, after the commit.
        """
        self._commits.ask(verb, then)
        self._commits.soon(GATHER)

    def longest(self) -> float:
        """How many seconds the oldest unanswered acceptance has waited for its commit; 0 when there is
        none.
        """
        return (
            self.door.clock.monotonic() - next(iter(self._unanswered.values())) if self._unanswered else 0.0
        )

    def call(self, function: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """Run a blocking call on a thread: an intake wants to verify a password or write a mailbox, say."""
        self._helper.call(function, then)

    async def run(self, function: Callable[[], R]) -> R:
        """`call`, awaited."""
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
