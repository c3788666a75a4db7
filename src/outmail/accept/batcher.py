"""Messages that several threads hand in at the same moment are stored by one `add`. This is leader and
followers as in `store.commit_threads`, but with one verb for all threads.

Promises: when the common `add` fails, each thread's messages are tried alone, so that a bad message harms
only its own caller. When the connection to the server is lost, the messages are offered once more; what was
stored the first time is not stored again, and the caller gets its receipt. Ctrl-C in the leading thread
concerns only that thread: the others store their messages, once.
Fails: `StoreError`. Does not: check messages (`acceptance`), know the store, or know event loops (`aio`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from outmail.model import Message
from outmail.store import StoreError, Uploads, forks
from outmail.system.leader import Call, Leader

#: Stores messages in one transaction and returns what `verbs.add` answers. With the last argument ("again")
#: messages that are known already are skipped.
Add = Callable[[Sequence[Message], Uploads, bool], Sequence[Any]]


class _Part(Call):
    """One thread's messages, waiting to be stored. The answer is what `verbs.add` answers for them."""

    __slots__ = ("add", "again", "messages", "unsure", "uploads")

    def __init__(self, add: Add, messages: Sequence[Message], uploads: Uploads, again: bool) -> None:
        self.add, self.again = add, again
        self.messages, self.uploads = messages, uploads or [None] * len(messages)
        #: True when these messages may have been stored without our knowing.
        self.unsure = False
        self.done = False

    def stored(self, found: Sequence[Any]) -> None:
        """Settle with the answer of `verbs.add`. A message without a key that existed already was stored by
        our first try: its caller is not told of a duplicate.
        """
        mine = self.unsure and not self.again
        self.answer = [
            (*one[:3], False, one[4]) if mine and not message.key else one
            for message, one in zip(self.messages, found)
        ]
        self.done = True


class Batcher:
    """Stores one batch at a time. A door has one batcher for each connection of its store. ``remote``: the
    store is behind a network, and what a lost connection left in doubt is offered again.
    """

    def __init__(self, *, remote: bool) -> None:
        self.leader: Leader[_Part] = Leader()
        self._again_after = ("conflict", "io") if remote else ("conflict",)
        forks.in_child(self, Batcher._begin_anew)

    def _begin_anew(self) -> None:
        self.leader.begin_anew()

    @property
    def waiting(self) -> int:
        """About how many threads are storing or waiting."""
        return self.leader.waiting

    def keep(self, add: Add, messages: Sequence[Message], uploads: Uploads, again: bool) -> Sequence[Any]:
        """What `verbs.add` answers for these messages, when they are on disk. The leading thread's ``add``
        stores the messages of all threads.
        """
        part = _Part(add, messages, uploads, again)
        return self.leader.share(part, self._store)  # type: ignore[no-any-return]

    def _store(self, parts: Sequence[_Part], mine: _Part) -> None:
        try:
            if len(parts) > 1 and self._merged(mine.add, parts):
                return
            for part in parts:
                self._by_itself(mine.add, part)
        except BaseException:  # Ctrl-C: the others store their messages, whether or not this commit happened
            for part in parts:
                if part is not mine and not part.done:
                    part.unsure = True
            raise

    def _merged(self, add: Add, parts: Sequence[_Part]) -> bool:
        """Store all parts in one transaction. False when each part must be tried alone."""
        messages = [message for part in parts for message in part.messages]
        uploads = [upload for part in parts for upload in part.uploads]
        try:
            added = add(messages, uploads, any(part.again or part.unsure for part in parts))
        except StoreError as problem:
            if problem.kind not in ("other", "conflict", "io"):  # a full disk concerns everybody
                for part in parts:
                    part.settle(problem)
                return True
            for part in parts:
                part.unsure = part.unsure or problem.kind == "io"
            return False
        except Exception:
            return False
        for part in parts:
            part.stored(added[: len(part.messages)])
            added = added[len(part.messages) :]
        return True

    def _by_itself(self, add: Add, part: _Part) -> None:
        for last in (False, False, True):
            try:
                part.stored(add(part.messages, part.uploads, part.again or part.unsure))
                return
            except StoreError as problem:
                # a conflict of two transactions: one of them tries again. A lost connection: the messages may
                # be stored already.
                if last or problem.kind not in self._again_after:
                    part.settle(problem)
                    return
                part.unsure = part.unsure or problem.kind == "io"
            except Exception as problem:
                part.settle(problem)
                return
