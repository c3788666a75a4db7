"""Acceptances of several threads at one moment become one `add`: leader and followers, as in `store.group`, but one verb for all.

Promises: when the merged one fails, each is tried by itself, so that a bad one spoils only itself. A connection lost on the way (a store
behind a network) makes one more try, which adds nothing that is there already: the caller hears yes for what was stored.
Fails: `Trouble`. Does not: check messages (`accept`), or know an asyncio loop (`loopdoor`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from outmail.model import Message
from outmail.store import Trouble

if TYPE_CHECKING:
    from outmail.accept import Door


class _Wish:
    """One thread's messages, waiting to be stored."""

    __slots__ = ("added", "again", "messages", "problem", "uploads")

    def __init__(self, messages: Sequence[Message], uploads: dict[str, str], again: bool) -> None:
        self.messages, self.uploads, self.again = messages, uploads, again
        self.added: Sequence[Any] | None = None
        self.problem: BaseException | None = None


class Merger:
    """One for each store and process."""

    def __init__(self) -> None:
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._wishes: list[_Wish] = []

    def keep(self, door: Door, messages: Sequence[Message], uploads: dict[str, str], again: bool) -> Sequence[Any]:
        """What `verbs.add` says of these messages, once they are on disk."""
        if self._pid != os.getpid():
            self._begin_anew()
        wish = _Wish(messages, uploads, again)
        self._wishes.append(wish)
        with self._lock:
            if wish.added is None and wish.problem is None:
                wishes, self._wishes = self._wishes, []
                self._store(door, wishes)
        if wish.problem is not None:
            raise wish.problem
        assert wish.added is not None
        return wish.added

    def _store(self, door: Door, wishes: Sequence[_Wish]) -> None:
        if len(wishes) > 1:
            merged = [message for wish in wishes for message in wish.messages]
            uploads = {id: upload for wish in wishes for id, upload in wish.uploads.items()}
            try:
                added = door.store.run(door._add(merged, uploads, None, None, again=any(wish.again for wish in wishes)))
            except BaseException as problem:
                if isinstance(problem, Trouble) and problem.kind not in ("other", "conflict", "io"):
                    for wish in wishes:
                        wish.problem = problem
                    return
            else:
                for wish in wishes:
                    wish.added, added = added[: len(wish.messages)], added[len(wish.messages) :]
                return
        for wish in wishes:
            self._store_one(door, wish)

    def _store_one(self, door: Door, wish: _Wish) -> None:
        again = wish.again
        for last in (False, False, True):
            try:
                found = door.store.run(door._add(wish.messages, wish.uploads, None, None, again=again, alone=True))
                wish.added = [self._ours(message, one) for message, one in zip(wish.messages, found)] if again and not wish.again else found
                return
            except Trouble as problem:
                # two that were in each other's way: one of them goes again; a lost connection: it may be there already
                if last or problem.kind not in (("conflict", "io") if door.store.blocking else ("conflict",)):
                    wish.problem = problem
                    return
                again = again or problem.kind == "io"
            except BaseException as problem:
                wish.problem = problem
                return

    @staticmethod
    def _ours(message: Message, added: Any) -> Any:
        """A message without a key that is there already was stored by the try before."""
        return added if message.key else (*added[:3], False, added[4])
