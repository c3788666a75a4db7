"""Ages of mail on one store: signs of the time, what is too old, and clocks that were set.

The rules are in `policy.age`; this module reads the clocks, keeps the signs in the store's notes, and asks
for what follows from them. `begin` and `sweep` write and run on the writer's thread; the rest runs in the
loop.
Promises: a clock that is set makes nothing older. What became too old while no engine ran gets one attempt
before it fails, for one hour.
Fails: `StoreError` out of `begin` and `sweep`; the next sweep goes on. Until the first sign is written,
nothing is too old.
Does not: decide when a sweep is due (`maintenance`).
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

from outmail.clock import DAY, HOUR, Clock, human_span, rfc3339
from outmail.model import Delivery
from outmail.policy.age import JUMP, NO_MARK, Mark, Sign, following, latest, mark_of, was_set
from outmail.store import Store
from outmail.system.lockfile import clock_id

log = logging.getLogger("outmail.engine")

#: How long (ms) what became too old while no engine ran may wait for one attempt before it fails.
GRACE = HOUR
#: The clocks are read again when reading them took longer than this (seconds): the process may have been
#: stopped between two lines.
ONE_MOMENT = 0.1
#: How long (ms) signs of other boots and machines are kept.
KEPT = 90 * DAY


class Ages:
    """One engine's view of how old mail is. ``life``: the longest (ms) that mail usually waits."""

    def __init__(self, store: Store, clock: Clock, life: int) -> None:
        self._store = store
        self._clock = clock
        self._life = life
        #: The last two signs of the time, the older one first; None before there was one.
        self._before: Sign | None = None
        self._seen: Sign | None = None
        #: The time in which no engine ran, from and to: what became too old in it gets one attempt.
        self._unattended = 0, 0
        self._spare_until = 0

    def begin(self) -> None:
        """On the writer's thread: the first sign. Since the sign before it no engine ran."""
        last = self._sign()
        assert self._seen is not None
        self._before = last
        self._unattended = (last.age if last is not None else 0), self._seen.age
        self._spare_until = self._seen.age + GRACE

    def now(self) -> Sign | None:
        """The time, as carried on from the last sign; None before the first."""
        return self._seen and self._seen.later(self._clock.elapsed())

    def too_old(self, delivery: Delivery, now: Sign | None) -> bool:
        """One that is younger than its dates say gets the end of its true life."""
        if now is None or delivery.expires_at > (time := now.time_of(delivery.seq)):
            return False
        number, ago = self._mark(now)
        if delivery.seq > number and delivery.life > ago:
            delivery.expires_at = time + delivery.life - ago
        return delivery.expires_at <= time

    def expiry(self, *, later: bool = False) -> Any:
        """The verb that fails what is too old. With ``later``: of the messages that are dated by the clock as
        it was set.
        """
        now = self.now()
        if now is None:
            return self._store.verbs.expire(0)
        spared = self._unattended if now.age < self._spare_until else (0, 0)
        if later:
            return self._store.verbs.expire(now.at, spared, self._mark(now), above=now.since, after=now.age)
        return self._store.verbs.expire(now.age, spared, self._mark(now))

    def sweep(self) -> None:
        """On the writer's thread: mend the dates of what is younger than they say, fail what is too old, and
        leave a sign.
        """
        now = self.now()
        if now is None:  # the store was in trouble when we began
            self.begin()
            return
        verbs = self._store.verbs
        number, ago = self._mark(now)
        imported = self._store.read(verbs.note_get("imported", "newest"))
        number = max(number, imported[0] if imported else 0)
        if number < now.since:
            self._store.run(verbs.rejuvenate(now.age, number, now.since, ago))
        if number < NO_MARK[0]:
            self._store.run(verbs.rejuvenate(now.at, max(number, now.since), NO_MARK[0], ago))
        for later in (False, True) if now.at > now.age + JUMP else (False,):
            while self._store.run(self.expiry(later=later)) >= 2000:
                pass
        self._sign()  # afterwards: what came since the last one has been looked at by its mark

    def _mark(self, now: Sign) -> Mark:
        return NO_MARK if self._before is None else mark_of(self._before, now)

    # -- signs -----------------------------------------------------------------------------------------------

    def _sign(self) -> Sign | None:
        """Leave a sign of the time; returns the one before it."""
        verbs, name = self._store.verbs, clock_id()
        written = False
        while not written:
            found = self._store.read(verbs.note_get("clock", name))
            here, version = (Sign.of(found[0]), found[1]) if found else (None, 0)
            wall, at, up = self._times()
            same = here is not None and here.up <= up
            before = here if same else self._elsewhere(name, at)
            newest = self._store.read(verbs.newest())
            seen = following(before, same, wall, at, up, newest, self._life)
            written = self._store.run(verbs.note_put("clock", name, asdict(seen), version))
        if before is not None and not same and at < before.at + JUMP:
            self._store.run(verbs.shorten(at, self._life))
        for own, by in zip((True, False), was_set(before, same, seen)):
            if by and (own or seen.at != seen.wall):
                self._clock_was_set(by, own, wall if own else at)
        self._before, self._seen = self._seen, seen
        return before

    def _elsewhere(self, name: str, at: int) -> Sign | None:
        """The last sign of other boots and machines; what is old, or cannot be, is dropped."""
        verbs = self._store.verbs
        signs = {
            key: Sign.of(note)
            for key, note in self._store.read(verbs.note_list("clock")).items()
            if key != name
        }
        for key, sign in signs.items():
            if sign is None or not at - KEPT <= sign.at <= at + JUMP:
                self._store.run(verbs.note_drop("clock", key))
        return latest((sign for sign in signs.values() if sign is not None), at)

    def _times(self) -> tuple[int, int, float]:
        """The machine's clock, the one that ages go by, and the machine's time since its start, in one
        moment.
        """
        for _ in range(10):
            before = self._clock.elapsed()
            wall = self._clock.now()
            at = self._store.time()
            up = self._clock.elapsed()
            if up - before < ONE_MOMENT:
                break
        return wall, wall if at is None else at, up

    def _clock_was_set(self, by: int, own: bool, to: int) -> None:
        whose, way = "of this machine" if own else "of the store", "ahead" if by > 0 else "back"
        log.warning(
            "the clock %s was set %s by %s, to %s: nothing that waits grows older by that",
            whose,
            way,
            human_span(abs(by)),
            rfc3339(to),
        )
        if by > 0 or (own and self._store.time() is not None):
            return
        verbs = self._store.verbs
        for destination in self._store.read(verbs.destinations()) if own else ():
            self._store.run(verbs.earlier(-by, to, destination))
        self._store.run(verbs.shorten(to, self._life))
