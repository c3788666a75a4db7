"""Acceptances of several threads at one moment become one `add`: leader and followers, as in
`store.commit_threads`, but one verb for all.

Promises: when the merged one fails, each is tried by itself, so that a bad one spoils only itself. A
connection lost on the way (a store behind a network) makes one more try, which adds nothing that is there
already: the caller hears yes for what was stored. Ctrl-C in the leading thread is that thread's: the others
store theirs, and once.
Fails: `StoreError`. Does not: check messages (`acceptance`), know the store, or know an asyncio loop (`aio`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from outmail.model import Message
from outmail.store import StoreError, Uploads, forks
from outmail.system.leader import Call, Leader

#: Stores messages in one transaction and says what `verbs.add` says of each. The last argument, "again":
#: those that are there already are left out.
Add = Callable[[Sequence[Message], Uploads, bool], Sequence[Any]]


class _Part(Call):
    """One thread's messages, waiting to be stored. Its answer is what `verbs.add` says of them."""

    __slots__ = ("add", "again", "messages", "unsure", "uploads")

    def __init__(self, add: Add, messages: Sequence[Message], uploads: Uploads, again: bool) -> None:
        self.add, self.again = add, again
        self.messages, self.uploads = messages, uploads or [None] * len(messages)
        #: It may have been stored without our hearing so.
        self.unsure = False
        self.done = False

    def stored(self, found: Sequence[Any]) -> None:
        """Settle it with what `verbs.add` said. A message without a key that is there already was stored by
        the try before: its caller is not told of a duplicate.
        """
        mine = self.unsure and not self.again
        self.answer = [
            (*one[:3], False, one[4]) if mine and not message.key else one
            for message, one in zip(self.messages, found)
        ]
        self.done = True


class Batcher:
    """One batch at a time; a door has one for each of its store's lanes. ``remote``: the store is behind a
    network, and what a lost connection left in doubt is tried again.
    """

    def __init__(self, *, remote: bool) -> None:
        self.leader: Leader[_Part] = Leader()
        self._again_after = ("conflict", "io") if remote else ("conflict",)
        forks.in_child(self, Batcher._begin_anew)

    def _begin_anew(self) -> None:
        self.leader.begin_anew()

    @property
    def waiting(self) -> int:
        """How many are at it or wait, about."""
        return self.leader.waiting

    def keep(self, add: Add, messages: Sequence[Message], uploads: Uploads, again: bool) -> Sequence[Any]:
        """What `verbs.add` says of these messages, once they are on disk. The leading thread's ``add`` stores
        those of all.
        """
        part = _Part(add, messages, uploads, again)
        return self.leader.share(part, self._store)  # type: ignore[no-any-return]

    def _store(self, parts: Sequence[_Part], mine: _Part) -> None:
        try:
            if len(parts) > 1 and self._merged(mine.add, parts):
                return
            for part in parts:
                self._by_itself(mine.add, part)
        except BaseException:  # Ctrl-C: the others store theirs, whether or not this had happened
            for part in parts:
                if part is not mine and not part.done:
                    part.unsure = True
            raise

    def _merged(self, add: Add, parts: Sequence[_Part]) -> bool:
        """All in one transaction; False when each must be tried by itself."""
        messages = [message for part in parts for message in part.messages]
        uploads = [upload for part in parts for upload in part.uploads]
        try:
            added = add(messages, uploads, any(part.again or part.unsure for part in parts))
        except StoreError as problem:
            if problem.kind not in ("other", "conflict", "io"):  # a full disk is everybody's
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
                # two that were in each other's way: one of them goes again; a lost connection: it may be
                # there already
                if last or problem.kind not in self._again_after:
                    part.settle(problem)
                    return
                part.unsure = part.unsure or problem.kind == "io"
            except Exception as problem:
                part.settle(problem)
                return
