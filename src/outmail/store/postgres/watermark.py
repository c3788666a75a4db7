"""Where scans of a PostgreSQL store begin, so that rows which a long foreign transaction keeps from being
cleaned up are not walked over again and again.

Promises: nothing due is missed for longer than `FullScanTimer.EVERY` seconds (longer where such a scan takes
long): then a scan goes from the beginning.
Does not: read the database, or outlive its process.
"""

from __future__ import annotations

import time
from collections import deque

from outmail.store.verbs.delivery import ScanStart


class FullScanTimer:
    """When a scan goes from the beginning: every `EVERY` seconds, or less often, so that such scans take at
    most one part in `SHARE` of all time.
    """

    EVERY = 60.0
    SHARE = 20

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._rest = 0.0

    def due(self) -> bool:
        """True when it is time for one; it counts as begun."""
        now = time.monotonic()
        if now - self._began <= max(self.EVERY, self._rest):
            return False
        self._began = now
        return True

    def over(self, began: float) -> None:
        """The scan that began then is over. If it went from the beginning, its duration sets the pause."""
        if self._began >= began:
            self._rest = self.SHARE * (time.monotonic() - began)


class Watermark(ScanStart):
    """The newest due time seen, for each destination and priority, and the newest event that has a cursor.

    Host clocks differ, so a scan for due recipients starts `MARGIN` ms before the newest due time seen.
    `next_due` scans from the beginning once a minute: it finds what a late clock, or a lease that was never
    used, left behind. An event gets its id before its commit, so a scan for events without cursors starts
    `LATE` seconds back, and once a minute at the beginning, for a transaction that took longer. Used by one
    thread at a time, or harmlessly by two.
    """

    MARGIN = 3_000
    LATE = 30.0

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int], int] = {}
        self.afresh, self.events_afresh = FullScanTimer(), FullScanTimer()
        #: (when, the newest event that had a cursor then), older first.
        self._numbered: deque[tuple[float, int]] = deque()
        self._event = 0

    def of(self, destination: str, priority: int) -> int:
        return self._seen.get((destination, priority), 0)

    def seen(self, destination: str, priority: int, due: int) -> None:
        self._seen[destination, priority] = max(self.of(destination, priority), due - self.MARGIN)

    def found(self, destination: str, priority: int, due: int) -> None:
        self._seen[destination, priority] = min(self.of(destination, priority), due)

    def event(self) -> int:
        """The id from which on there may be events without cursors."""
        if self.events_afresh.due():
            return 0
        before = time.monotonic() - self.LATE
        while self._numbered and self._numbered[0][0] < before:
            self._event = max(self._event, self._numbered.popleft()[1])
        return self._event

    def numbered(self, newest: int | None) -> None:
        """All events up to this one that could be seen have cursors now."""
        if newest is not None:
            self._numbered.append((time.monotonic(), newest))
