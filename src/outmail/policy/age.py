"""How old mail is although somebody sets clocks: ages count the time that engines have seen pass.

Mail is dated by a clock that somebody may set. So every half minute an engine leaves a `Sign` in the store:
what the clocks showed, and the number of the newest message. Within one boot of the machine, a second clock
that nobody can set says how much time has passed between two signs. If the first clock says more than that,
somebody set it, and the difference does not count.
Promises: setting a clock ahead makes no mail older. Setting it back makes new mail no older. A life that has
really passed does end, at the latest one life after the clock was set.
Does not: read a clock or write a sign (the engine does), or know how much time passed between two boots.
There the clock is believed, and the engine gives mail that became too old in between one attempt.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

#: Milliseconds that a clock may be off without counting as set.
JUMP = 5_000

#: (message, milliseconds): messages with a higher number are not older than that, whatever the clock said
#: that dated them.
Mark = tuple[int, int]
NO_MARK: Mark = (1 << 62, 0)


@dataclass(frozen=True, slots=True)
class Sign:
    """What an engine saw at one moment. Times are milliseconds, except ``up``."""

    #: The machine's clock.
    wall: int
    #: The clock that ages go by: the store's own if it has one, else the machine's.
    at: int
    #: Seconds since the machine's start. They go on while a process is stopped or the machine sleeps.
    up: float
    #: The highest number of a message.
    newest: int
    #: The time by which messages up to ``since`` are aged: ``at`` minus what the clock was set ahead.
    age: int
    #: Until this time (by ``at``) ``age`` may be behind ``at``.
    until: int = 0
    #: The highest number when the clock was last set ahead. Later messages are dated by the clock as it is
    #: now.
    since: int = 0

    @classmethod
    def of(cls, note: Any) -> Sign | None:
        """A sign from a stored note, also from a version that stores more; None when the note is no sign."""
        names = {field.name for field in fields(cls)}
        if not isinstance(note, dict) or not names <= note.keys():
            return None
        values = {name: note[name] for name in names}
        if not all(isinstance(n, (int, float)) and abs(n) < _MOST for n in values.values()):
            return None
        kept: dict[str, Any] = {name: float(n) if name == "up" else int(n) for name, n in values.items()}
        return cls(**kept)

    def later(self, up: float) -> Sign:
        """What the engine would see when the machine has been up for so long, if nobody had set a clock."""
        passed = int((up - self.up) * 1000)
        return Sign(
            self.wall + passed, self.at + passed, up, self.newest, self.age + passed, self.until, self.since
        )

    def time_of(self, message: int) -> int:
        """The time by which this message is aged."""
        return self.at if message > self.since else self.age


def mark_of(sign: Sign, now: Sign) -> Mark:
    """What an earlier sign says about the age of messages now."""
    return sign.newest, max(0, now.age - sign.age)


def following(
    before: Sign | None, same_boot: bool, wall: int, at: int, up: float, newest: int, life: int
) -> Sign:
    """The next sign. ``life``: how long mail usually waits at most; after that time, all mail that was dated
    before a jump is gone.
    """
    if before is None or (not same_boot and at < before.at):
        return Sign(wall, at, up, newest, at)
    age, until, since = before.age + at - before.at, before.until, before.since
    if same_boot:
        age = before.later(up).age
        off = at - before.at - (age - before.age)
        if off > JUMP:
            until, since = at + life, newest
        elif off < -JUMP:
            until += off
    if at >= until or at <= age + JUMP:
        age = at
    return Sign(wall, at, up, newest, age, until, since)


def was_set(before: Sign | None, same_boot: bool, after: Sign) -> tuple[int, int]:
    """By how much the machine's clock, and the clock that ages go by, were set between two signs; 0 where
    neither jumped.
    """
    if before is None or not same_boot:
        return 0, 0
    expected = before.later(after.up)
    by = after.wall - expected.wall, after.at - expected.at
    return (by[0] if abs(by[0]) > JUMP else 0), (by[1] if abs(by[1]) > JUMP else 0)


def latest(signs: Iterable[Sign], at: int) -> Sign | None:
    """The last sign of other boots and machines. A sign from the future comes from a clock that was ahead; it
    is ignored.
    """
    return max((sign for sign in signs if sign.at <= at + JUMP), key=lambda sign: sign.at, default=None)


#: No clock and no number goes beyond this.
_MOST = 1 << 62
