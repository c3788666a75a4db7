"""How old mail is although clocks are set: ages count the time that engines have seen pass.

Mail is dated by a clock that somebody may set. So engines leave a `Sign` in the store every half minute: what
the clocks said, and the newest message. From one sign to the next, in one boot of the machine, a second clock
that nobody sets says how much time has passed. What the first one says beyond that was set, and does not
count.
Promises: a clock set ahead makes nothing older; a clock set back makes new mail no older; a life that has
truly passed ends, at the latest one life after the clock was set.
Does not: read a clock or write a sign (`engine` does), or know how much time passed between two boots: then
the clock is believed, and the engine gives what became too old meanwhile one attempt.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

#: Milliseconds that a clock may be off without anybody calling it a jump.
JUMP = 5_000

#: (message, milliseconds): all with a higher number are not older than that, whatever the clock said that
#: dated them.
Mark = tuple[int, int]
NO_MARK: Mark = (1 << 62, 0)


@dataclass(frozen=True, slots=True)
class Sign:
    """What an engine saw in one moment. Milliseconds, but for ``up``."""

    #: The machine's clock.
    wall: int
    #: The clock that ages go by: the store's own where it has one, else the machine's.
    at: int
    #: Seconds since the machine's start; they go on while a process is stopped or the machine sleeps.
    up: float
    #: The highest number of a message.
    newest: int
    #: What ages of messages up to ``since`` are counted by: ``at``, less what it was set ahead.
    age: int
    #: By ``at``: until then ``age`` may stay behind it.
    until: int = 0
    #: The highest number when the clock was last set ahead: later messages are dated by the clock as it is.
    since: int = 0

    @classmethod
    def of(cls, note: Any) -> Sign | None:
        """As it was kept, also by a version that keeps more; None for what is no sign."""
        names = {field.name for field in fields(cls)}
        if not isinstance(note, dict) or not names <= note.keys():
            return None
        values = {name: note[name] for name in names}
        if not all(isinstance(n, (int, float)) and abs(n) < _MOST for n in values.values()):
            return None
        kept: dict[str, Any] = {name: float(n) if name == "up" else int(n) for name, n in values.items()}
        return cls(**kept)

    def later(self, up: float) -> Sign:
        """What would be seen when the machine has been up for so long, had nobody set a clock."""
        passed = int((up - self.up) * 1000)
        return Sign(
            self.wall + passed, self.at + passed, up, self.newest, self.age + passed, self.until, self.since
        )

    def time_of(self, message: int) -> int:
        """What a message's age is counted by."""
        return self.at if message > self.since else self.age


def mark_of(sign: Sign, now: Sign) -> Mark:
    """What an earlier sign says of messages, now."""
    return sign.newest, max(0, now.age - sign.age)


def following(
    before: Sign | None, same_boot: bool, wall: int, at: int, up: float, newest: int, life: int
) -> Sign:
    """The next sign. ``life``: the longest that mail usually has; then what was dated before a jump is
    over.
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
    """By how much the machine's clock, and the one that ages go by, were set between two signs; 0 for what is
    no jump.
    """
    if before is None or not same_boot:
        return 0, 0
    expected = before.later(after.up)
    by = after.wall - expected.wall, after.at - expected.at
    return (by[0] if abs(by[0]) > JUMP else 0), (by[1] if abs(by[1]) > JUMP else 0)


def latest(signs: Iterable[Sign], at: int) -> Sign | None:
    """The last one of other boots and machines. One from the future was left by a clock that was ahead, and
    says nothing.
    """
    return max((sign for sign in signs if sign.at <= at + JUMP), key=lambda sign: sign.at, default=None)


#: No clock and no number goes further.
_MOST = 1 << 62
