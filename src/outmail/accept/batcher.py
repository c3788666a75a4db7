"""Acceptances of several threads at one moment become one `add`: leader and followers, as in `store.group`,
but one verb for all.

Promises: when the merged one fails, each is tried by itself, so that a bad one spoils only itself. A
connection lost on the way (a store behind a network) makes one more try, which adds nothing that is there
already: the caller hears yes for what was stored. Ctrl-C in the leading thread is that thread's: the others
store theirs, and once.
Fails: `Trouble`. Does not: check messages (`accept`), or know an asyncio loop (`loopdoor`).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from outmail.model import Message
from outmail.store import Trouble, forks
from outmail.store.verbs import Uploads

if TYPE_CHECKING:
    from outmail.accept.acceptance import Door


class _Wish:
    """One thread's messages, waiting to be stored."""

    __slots__ = ("added", "again", "messages", "problem", "unsure", "uploads")

    def __init__(self, messages: Sequence[Message], uploads: Uploads, again: bool) -> None:
        self.messages, self.uploads, self.again = messages, uploads or [None] * len(messages), again
        self.added: Sequence[Any] | None = None
        self.problem: BaseException | None = None
        #: It may have been stored without our hearing so.
        self.unsure = False

    @property
    def settled(self) -> bool:
        return self.added is not None or self.problem is not None

    def take(self, found: Sequence[Any]) -> None:
        """What `verbs.add` said. A message without a key that is there already was stored by the try
        before.
        """
        mine = self.unsure and not self.again
        self.added = [
            (*one[:3], False, one[4]) if mine and not message.key else one
            for message, one in zip(self.messages, found)
        ]


class Merger:
    """One leader at a time; a door has one for each of its store's lanes."""

    def __init__(self) -> None:
        self._begin_anew()
        forks.in_child(self, Merger._begin_anew)

    def _begin_anew(self) -> None:
        self._lock = threading.Lock()
        self._wishes: list[_Wish] = []

    @property
    def waiting(self) -> int:
        """How many are at it or wait, about."""
        return len(self._wishes) + self._lock.locked()

    def keep(self, door: Door, messages: Sequence[Message], uploads: Uploads, again: bool) -> Sequence[Any]:
        """What `verbs.add` says of these messages, once they are on disk."""
        wish = _Wish(messages, uploads, again)
        self._wishes.append(wish)
        with self._lock:
            if not wish.settled:
                found, self._wishes = self._wishes, []
                wishes = list(found)  # whoever still reaches the old list leads after us
                if wish not in wishes:
                    wishes.append(wish)
                try:
                    self._store(door, wishes)
                except BaseException:  # Ctrl-C
                    left = [other for other in wishes if other is not wish and not other.settled]
                    for other in left:
                        other.unsure = True
                    self._wishes = left + self._wishes
                    raise
        if wish.problem is not None:
            raise wish.problem
        assert wish.added is not None
        return wish.added

    def _store(self, door: Door, wishes: Sequence[_Wish]) -> None:
        if len(wishes) > 1:
            merged = [message for wish in wishes for message in wish.messages]
            uploads = [upload for wish in wishes for upload in wish.uploads]
            try:
                added = door.store.run(
                    door._add(
                        merged,
                        uploads,
                        None,
                        None,
                        again=any(wish.again or wish.unsure for wish in wishes),
                        alone=True,
                    )
                )
            except Exception as problem:
                if isinstance(problem, Trouble) and problem.kind not in ("other", "conflict", "io"):
                    for wish in wishes:
                        wish.problem = problem
                    return
                for wish in wishes:
                    wish.unsure = wish.unsure or (isinstance(problem, Trouble) and problem.kind == "io")
            else:
                for wish in wishes:
                    wish.take(added[: len(wish.messages)])
                    added = added[len(wish.messages) :]
                return
        for wish in wishes:
            self._store_one(door, wish)

    def _store_one(self, door: Door, wish: _Wish) -> None:
        for last in (False, False, True):
            try:
                wish.take(
                    door.store.run(
                        door._add(
                            wish.messages,
                            wish.uploads,
                            None,
                            None,
                            again=wish.again or wish.unsure,
                            alone=True,
                        )
                    )
                )
                return
            except Trouble as problem:
                # two that were in each other's way: one of them goes again; a lost connection: it may be
                # there already
                if last or problem.kind not in (("conflict", "io") if door.store.blocking else ("conflict",)):
                    wish.problem = problem
                    return
                wish.unsure = wish.unsure or problem.kind == "io"
            except Exception as problem:
                wish.problem = problem
                return
