"""How old mail is although clocks are set: ages count the time that engines have seen pass.

Mail is dated by a clock that somebody may set. So engines leave a `Sign` in the store every half minute: what the
clocks said, and the newest message. From one sign to the next, in one boot of the machine, a second clock that nobody
sets says how much time has passed. What the first one says beyond that was set, and does not count.
Promises: a clock set ahead makes nothing older; a clock set back makes new mail no older; a life that has truly passed
ends, at the latest one life after the clock was set.
Does not: read a clock or write a sign (`engine` does), or know how much time passed between two boots: then the clock
is believed, and the engine gives what became too old meanwhile one attempt.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

#: Milliseconds that a clock may be off without anybody calling it a jump.
JUMP = 5_000

#: (message, time): all with a higher number were accepted later than that, whatever the clock said that dated them.
Mark = tuple[int, int]


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
    #: What ages are counted by: ``at``, less what it was set ahead.
    age: int
    #: By ``at``: until then ``age`` may stay behind it.
    until: int = 0

    @classmethod
    def of(cls, note: Any) -> Sign | None:
        """As it was kept; None for what is no sign."""
        names = {field.name for field in fields(cls)}
        if not isinstance(note, dict) or note.keys() != names or not all(isinstance(n, (int, float)) for n in note.values()):
            return None
        return cls(**note)

    @property
    def mark(self) -> Mark:
        return self.newest, self.age

    def aged(self, up: float) -> int:
        """What ages are counted by when the machine has been up for so long."""
        return self.age + int((up - self.up) * 1000)


def following(before: Sign | None, same_boot: bool, wall: int, at: int, up: float, newest: int, life: int) -> Sign:
    """The next sign. ``life``: the longest that mail usually has; then what was dated before a jump is over."""
    if before is None:
        return Sign(wall, at, up, newest, at)
    age, until = before.age + at - before.at, before.until
    if same_boot:
        age = before.aged(up)
        off = at - before.at - (age - before.age)
        if off > JUMP:
            until = at + life
        elif off < -JUMP:
            until += off
    if at >= until or at <= age + JUMP:
        age = at
    return Sign(wall, at, up, newest, age, until)


def was_set(before: Sign | None, same_boot: bool, after: Sign) -> tuple[int, int]:
    """By how much the machine's clock, and the one that ages go by, were set between two signs; 0 for what is no jump."""
    if before is None or not same_boot:
        return 0, 0
    passed = int((after.up - before.up) * 1000)
    by = after.wall - before.wall - passed, after.at - before.at - passed
    return (by[0] if abs(by[0]) > JUMP else 0), (by[1] if abs(by[1]) > JUMP else 0)
