"""When a queue is in trouble: limits as people type them, for the exit status of a check.

Promises: pure; a limit that cannot be meant raises ValueError with a sentence.
Does not: count anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from outmail.clock import human_span, parse_span


@dataclass(frozen=True, slots=True)
class Limit:
    """So many recipients may wait, or one of them for so long (ms)."""

    count: int | None = None
    age: int | None = None

    @classmethod
    def parse(cls, text: str) -> Limit:
        """``"500"`` (recipients) or ``"2h"`` (the oldest)."""
        if text.strip().isdecimal() and len(text) < 19:
            return cls(count=int(text))
        try:
            return cls(age=parse_span(text))
        except ValueError:
            raise ValueError(f"{text!r} is neither a number of recipients nor an age such as 2h") from None

    def broken(self, count: int, age: int) -> str:
        """Why, or "" while it is kept."""
        if self.count is not None and count > self.count:
            return f"{count} {'recipient waits' if count == 1 else 'recipients wait'}, more than {self.count}"
        if self.age is not None and age > self.age:
            return f"the oldest waits for {human_span(age)}, longer than {human_span(self.age)}"
        return ""


def broken(limits: Sequence[Limit], count: int, age: int) -> str:
    """The first limit that is broken, in words; "" for none."""
    return next(filter(None, (limit.broken(count, age) for limit in limits)), "")
