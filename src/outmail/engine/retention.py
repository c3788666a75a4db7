"""Retention: which parts of finished mail are removed, when, and how much time that may take.

How: each kind (bodies, transcripts, records) has its own age. A walk removes page after page, the oldest
messages first, until a page is too young. The store keeps a note of where the next walk begins, so that no
engine walks again over messages of which nothing is left to remove.
Promises: a turn ends after about its time. Mail that waits, or became final too recently, keeps everything.
Fails: `StoreError`; the next turn goes on. Does not: decide when it is its turn (`maintenance`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from outmail.store import Store
from outmail.store.verbs.upkeep import KINDS


@dataclass(slots=True)
class _Walk:
    """Where the walk for one kind is. ``done``: up to this number nothing is left to remove. ``whole``:
    ``done`` has kept up with the walk so far.
    """

    at: int
    done: int
    whole: bool = True


class Retention:
    """The retention of one store. ``ages``: for each of `KINDS`, ms since the last recipient became final."""

    def __init__(self, store: Store, ages: Mapping[str, int]) -> None:
        self._store = store
        self._records = ages["records"]
        self._ages = {**ages, "records": store.kept(ages["records"])}
        self._walks: dict[str, _Walk] = {}
        self._left: list[str] = []

    def turn(self, now: int, seconds: float) -> bool:
        """Work for about ``seconds``. True when there is more to do at once."""
        until = time.monotonic() + seconds
        while (more := self._store.drop_history(now, self._records)) and time.monotonic() < until:
            pass
        if not self._left:
            self._begin(now)
        before = {kind: walk.done for kind, walk in self._walks.items()}
        while self._left:
            kind = self._left[0]
            if not self._page(kind, now - self._ages[kind]):
                self._left.pop(0)
            if time.monotonic() >= until:
                break
        if not self._left:
            self._store.run(self._store.verbs.forget_copies(now - self._records))
        self._note(before)
        self._store.give_space_back()
        return more or bool(self._left)

    def _begin(self, now: int) -> None:
        verbs = self._store.verbs
        done = self._store.read(verbs.note_list("retention"))
        self._walks = {kind: _Walk(done.get(kind, 0), done.get(kind, 0)) for kind in KINDS}
        self._left = list(KINDS)
        self._store.sweep_uploads()

    def _note(self, before: Mapping[str, int]) -> None:
        for kind, walk in self._walks.items():
            if walk.done != before[kind]:
                self._store.run(self._store.verbs.note_put("retention", kind, walk.done))

    def _page(self, kind: str, before: int) -> bool:
        """Remove one page. False at the end of the walk."""
        walk = self._walks[kind]
        at, done, more = self._store.run(self._store.verbs.purge(kind, before, walk.at))
        if walk.whole and kind != "records":  # records are gone, or may have become removable meanwhile
            walk.done = done
        walk.whole = walk.whole and done == at
        walk.at = at
        return bool(more)
