"""A clock that goes only when told."""

from __future__ import annotations

from datetime import timedelta

from outmail.clock import Clock, span


class FakeClock(Clock):
    """Starts at ``now`` (ms); `advance` moves wall and monotonic time, `set_back` and `jump` only the
    wall.
    """

    def __init__(self, now: int = 1_800_000_000_000) -> None:
        self._now = now
        self._monotonic = 1000.0

    def now(self) -> int:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def elapsed(self) -> float:
        return self._monotonic

    def advance(self, by: str | timedelta) -> None:
        """Time passes."""
        self._now += span(by)
        self._monotonic += span(by) / 1000

    def jump(self, by: str | timedelta, *, back: bool = False) -> None:
        """Somebody sets the clock."""
        self._now += -span(by) if back else span(by)
