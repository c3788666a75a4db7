"""How much a next hop may be given: sessions at once, messages a second, and a circuit breaker.

Promises: pure arithmetic on numbers that are passed in (``now`` is monotonic seconds). The number of sessions
starts small and grows by one for each round of successes (the idea of Postfix's SCHEDULER_README). Only
trouble with the *connection* halves it, never a refused recipient. After `TRIP` such faults in a row the
breaker opens: nothing is tried until a pause is over, then one session probes. A success closes the breaker;
a fault doubles the pause, up to five minutes. A next hop that refuses what is sent ahead gets a note (times
in milliseconds UTC), and is tried again later.
Does not: count by destination (each fallback relay of a route has its own pace), sleep, or open connections.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from outmail.clock import DAY, HOUR
from outmail.model import Reply

INITIAL = 5
TRIP = 3
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 300.0
#: With a fast next hop it is better to give several messages to one session than one each to several
#: sessions: together they share round trips. At most this many, and only while the last one does not wait
#: longer (seconds) than this.
BUNCH = 6
BUNCH_WAIT = 0.02
#: How long nothing is sent ahead to a next hop that refused it, and to one that only ended the session
#: because of it.
AHEAD_REFUSED = 7 * DAY
AHEAD_BROKE_OFF = HOUR


@dataclass(slots=True)
class Pace:
    """The pace of one next hop. ``rate`` is messages per second, 0 for no limit."""

    ceiling: int = 20
    rate: float = 0.0
    limit: float = INITIAL
    faults: int = 0
    open_until: float = 0.0
    pause: float = 0.0
    probing: bool = False
    tokens: float = 1.0
    filled: float = 0.0
    trouble: str = ""
    #: How long a message takes in its session (seconds, smoothed); 0 = not known yet.
    took: float = 0.0

    def __post_init__(self) -> None:
        self.limit = float(min(self.limit, self.ceiling))

    @property
    def tripped(self) -> bool:
        return self.pause > 0

    def divide(self, ceiling: int, rate: float, engines: int) -> None:
        """This engine's share when so many engines share one limit; at least one session each."""
        self.ceiling = max(1, ceiling // engines)
        self.limit = min(self.limit, float(self.ceiling))
        self.rate = rate / engines

    def may_open(self, sessions: int, now: float) -> bool:
        """True when one more session may be opened beside ``sessions`` open ones."""
        if self.tripped:
            return not self.probing and now >= self.open_until
        return sessions < int(self.limit)

    def has_room(self, now: float) -> bool:
        """True when it makes sense to lease mail for this next hop."""
        return not self.tripped or (not self.probing and now >= self.open_until)

    def opening(self) -> None:
        """A session is being opened; with an open breaker it is the probe."""
        if self.tripped:
            self.probing = True

    def success(self) -> None:
        """A dialogue worked, whatever was said in it."""
        self.faults = 0
        self.pause = self.open_until = 0.0
        self.probing = False
        self.trouble = ""
        if self.limit < self.ceiling:
            self.limit = min(self.ceiling, self.limit + 1 / self.limit)

    def lasted(self, seconds: float) -> None:
        """A message took so long in its session."""
        self.took += (seconds - self.took) / 8 if self.took else seconds

    @property
    def bunch(self) -> int:
        """How many messages must wait before one more idle session is woken."""
        return max(1, min(BUNCH, int(BUNCH_WAIT / self.took))) if self.took else 1

    def fault(self, now: float, trouble: str, *, fatal: bool = False) -> bool:
        """Connecting or a handshake failed. ``fatal`` (wrong password, bad certificate) opens the breaker at
        once.

        Returns True when this fault has opened the breaker: the moment to log it, once.
        """
        self.faults += 1
        self.trouble = trouble
        self.limit = max(1.0, self.limit / 2)
        was_open = self.tripped
        if was_open and not self.probing:
            return False  # a session that began before the breaker opened tells nothing new
        if was_open or fatal or self.faults >= TRIP:
            self.pause = min(LONGEST_PAUSE, max(FIRST_PAUSE, self.pause * 2))
            self.open_until = now + self.pause
            self.probing = False
        return self.tripped and not was_open

    def take(self, now: float) -> float:
        """Take one message out of the rate limit. Returns how many seconds to wait first (0 = go)."""
        if not self.rate:
            return 0.0
        burst = max(1.0, self.rate)
        if self.filled:
            self.tokens = min(burst, self.tokens + (now - self.filled) * self.rate)
        self.filled = now
        self.tokens -= 1.0
        return max(0.0, -self.tokens / self.rate)


def ahead_note(reply: Reply, now: int) -> dict[str, Any]:
    """The note about a next hop that refused what was sent ahead. ``reply`` has code 0 when it said nothing.

    421 may also be about the number of messages in a connection, so it counts no more than a session that was
    ended.
    """
    return {
        "since": now,
        "until": now + (AHEAD_BROKE_OFF if reply.code in (0, 421) else AHEAD_REFUSED),
        "reply": str(reply),
    }


def may_send_ahead(note: Mapping[str, Any] | None, now: int) -> bool:
    """True without a note, when its time is over, and when it comes from the future of a clock that
    jumped.
    """
    return note is None or not note["since"] <= now < note["until"]


def shares(n: int, waiting: tuple[int, int, int], turn: int) -> tuple[int, int, int]:
    """How many of (high, normal, low) a lease of ``n`` takes, when ``waiting`` of each wait.

    High goes first at any age, but n/8 places are kept for normal and n/16 for low where they wait. Below 16
    these places rotate with ``turn``, so that even leases of one message starve nobody.
    """
    high, normal, low = waiting
    seats = (n // 8, n // 16)
    if n < 16:
        slot = turn % 16
        seats = (1 if slot % 8 == 7 and n else 0, 1 if slot == 14 and n else 0)
    kept_normal = min(normal, seats[0])
    kept_low = min(low, seats[1], n - kept_normal)
    took_high = min(high, n - kept_normal - kept_low)
    took_normal = min(normal, n - took_high - kept_low)
    return took_high, took_normal, min(low, n - took_high - took_normal)
