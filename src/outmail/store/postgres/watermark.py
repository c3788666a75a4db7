"""Where scans of a PostgreSQL store begin.

Why: while a long foreign transaction is open, PostgreSQL keeps dead rows, and a scan from the beginning reads
all of them again each time.
Promises: due mail is found within `FullScanTimer.EVERY` seconds (later where a full scan takes long), because
a scan then begins at the beginning.
Does not: read the database, or outlive its process.
"""

from __future__ import annotations

import time
from collections import deque

from outmail.store.verbs.delivery import ScanStart


class FullScanTimer:
    """When to scan from the beginning: every `EVERY` seconds, or less often, so that such scans take at most
    one part in `SHARE` of all time.
    """

    EVERY = 60.0
    SHARE = 20

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._rest = 0.0

    def due(self) -> bool:
        """True when it is time for a full scan. It counts as begun."""
        now = time.monotonic()
        if now - self._began <= max(self.EVERY, self._rest):
            return False
        self._began = now
        return True

    def over(self, began: float) -> None:
        """The scan that began at ``began`` is over. If it was a full one, the next one comes after `SHARE`
        times its duration.
        """
        if self._began >= began:
            self._rest = self.SHARE * (time.monotonic() - began)


class Watermark(ScanStart):
    """For each destination and priority the newest due time that was seen, and the newest event with a
    cursor.

    Host clocks differ, so a scan for due recipients starts `MARGIN` ms before the newest due time seen.
    `next_due` scans from the beginning once a minute: this finds mail of a host with a slow clock, or of a
    lease that was never used. An event gets its id before its commit, so a scan for events without cursors
    starts `LATE` seconds back, and once a minute at the beginning, for a transaction that took longer. Used
    by one thread at a time; two at once do no harm.
    """

    MARGIN = 3_000
    LATE = 30.0

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int], int] = {}
        self.afresh, self.events_afresh = FullScanTimer(), FullScanTimer()
        #: (when, the newest event that had a cursor then), the oldest first.
        self._numbered: deque[tuple[float, int]] = deque()
        self._event = 0

    def of(self, destination: str, priority: int) -> int:
        return self._seen.get((destination, priority), 0)

    def seen(self, destination: str, priority: int, due: int) -> None:
        self._seen[destination, priority] = max(self.of(destination, priority), due - self.MARGIN)

    def found(self, destination: str, priority: int, due: int) -> None:
        self._seen[destination, priority] = min(self.of(destination, priority), due)

    def event(self) -> int:
        """The id from which on events may have no cursor."""
        if self.events_afresh.due():
            return 0
        before = time.monotonic() - self.LATE
        while self._numbered and self._numbered[0][0] < before:
            self._event = max(self._event, self._numbered.popleft()[1])
        return self._event

    def numbered(self, newest: int | None) -> None:
        """All visible events up to this one have cursors now."""
        if newest is not None:
            self._numbered.append((time.monotonic(), newest))
