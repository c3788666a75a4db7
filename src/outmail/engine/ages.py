"""The age of mail in one store: signs of the time, what is too old, and clocks that were set.

The rules are in `policy.age`. This module reads the clocks, keeps the signs in notes of the store, and asks
for the verbs that follow from the rules. `begin` and `sweep` write, and run on the writer's thread; the rest
runs in the loop.
Promises: setting a clock makes no mail older. Mail that became too old while no engine ran gets one attempt
before it fails, if that can be made within one hour.
Fails: `StoreError` from `begin` and `sweep`; the next sweep tries again. Until the first sign is stored,
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

#: How long (ms) mail that became too old while no engine ran may wait for its one attempt.
GRACE = HOUR
#: The clocks are read again when reading them took longer than this (seconds): the process may have been
#: stopped between two lines.
ONE_MOMENT = 0.1
#: How long (ms) signs of other boots and machines are kept.
KEPT = 90 * DAY


class Ages:
    """One engine's view of the age of mail. ``life``: how long (ms) mail usually waits at most."""

    def __init__(self, store: Store, clock: Clock, life: int) -> None:
        self._store = store
        self._clock = clock
        #: Changes when the configuration does.
        self.life = life
        #: The last two signs, the older one first; None where there was none.
        self._before: Sign | None = None
        self._seen: Sign | None = None
        #: From when to when no engine ran. Mail that became too old in this time gets one attempt.
        self._unattended = 0, 0
        self._spare_until = 0

    def begin(self) -> None:
        """Leave the first sign, on the writer's thread. Between the sign before and this one no engine
        ran.
        """
        last = self._sign()
        assert self._seen is not None
        self._before = last
        self._unattended = (last.age if last is not None else 0), self._seen.age
        self._spare_until = self._seen.age + GRACE

    def now(self) -> Sign | None:
        """The present time, computed from the last sign; None before the first one."""
        return self._seen and self._seen.later(self._clock.elapsed())

    def too_old(self, delivery: Delivery, now: Sign | None) -> bool:
        """True when the delivery is too old to be sent. A message that is younger than its dates say gets a
        later expiry first.
        """
        if now is None or delivery.expires_at > (time := now.time_of(delivery.seq)):
            return False
        number, ago = self._mark(now)
        if delivery.seq > number and delivery.life > ago:
            delivery.expires_at = time + delivery.life - ago
        return delivery.expires_at <= time

    def expiry(self, *, later: bool = False) -> Any:
        """The verb that fails what is too old. With ``later`` it is for messages that were accepted after the
        clock was set and carry its new time.
        """
        now = self.now()
        if now is None:
            return self._store.verbs.expire(0)
        spared = self._unattended if now.age < self._spare_until else (0, 0)
        if later:
            return self._store.verbs.expire(now.at, spared, self._mark(now), above=now.since, after=now.age)
        return self._store.verbs.expire(now.age, spared, self._mark(now))

    def sweep(self) -> None:
        """On the writer's thread: correct the dates of messages that are younger than they say, fail what is
        too old, and leave a sign.
        """
        now = self.now()
        if now is None:  # `begin` has failed because the store was in trouble
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
        self._sign()  # last: what was accepted since the previous sign had to be checked with that one

    def _mark(self, now: Sign) -> Mark:
        return NO_MARK if self._before is None else mark_of(self._before, now)

    # -- signs -----------------------------------------------------------------------------------------------

    def _sign(self) -> Sign | None:
        """Leave a sign of the time. Returns the sign before it."""
        verbs, name = self._store.verbs, clock_id()
        written = False
        while not written:
            found = self._store.read(verbs.note_get("clock", name))
            here, version = (Sign.of(found[0]), found[1]) if found else (None, 0)
            wall, at, up = self._times()
            same = here is not None and here.up <= up
            before = here if same else self._elsewhere(name, at)
            newest = self._store.read(verbs.newest())
            seen = following(before, same, wall, at, up, newest, self.life)
            written = self._store.run(verbs.note_put("clock", name, asdict(seen), version))
        if before is not None and not same and at < before.at + JUMP:
            self._store.run(verbs.shorten(at, self.life))
        for own, by in zip((True, False), was_set(before, same, seen)):
            if by and (own or seen.at != seen.wall):
                self._clock_was_set(by, own, wall if own else at)
        self._before, self._seen = self._seen, seen
        return before

    def _elsewhere(self, name: str, at: int) -> Sign | None:
        """The last sign of other boots and machines. Old and impossible signs are removed."""
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
        """Read at one moment: the machine's clock, the clock that ages go by, and the time since the
        machine's start.
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
            "the clock %s was set %s by %s, to %s; waiting mail does not get older by that",
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
        self._store.run(verbs.shorten(to, self.life))
