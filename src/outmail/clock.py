"""Time: instants are whole milliseconds since 1970 UTC, spans are whole milliseconds.

A machine has two clocks: one that somebody may set (the wall clock), and one that only goes on (`elapsed`);
see `policy.age`.
Promises: this is the only place that reads the system's clocks, so a test can use `outmail.testing.FakeClock`
instead. Parsing what people write ("2h", "5d", an ISO date) raises `ValueError` with a sentence.
Does not: know time zones other than UTC. Naive datetimes are refused, because with them mail goes out an hour
late.
"""

from __future__ import annotations

import re
import sys
import time
from datetime import UTC, datetime, timedelta

SECOND = 1_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
#: Characters of a time or span that people write.
LONGEST = 100
#: The first instant that no date can express: the year 10000.
END = 253_402_300_800 * SECOND

_UNITS = {"ms": 1, "s": SECOND, "m": MINUTE, "h": HOUR, "d": DAY, "w": 7 * DAY}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)", re.ASCII)


#: The clock that also goes on while the machine sleeps, where there is one.
_AWAKE = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC if sys.platform == "darwin" else None)


def elapsed() -> float:
    """Seconds from an arbitrary start, including times when the process was stopped or the machine slept."""
    return time.monotonic() if _AWAKE is None else time.clock_gettime(_AWAKE)


class Clock:
    """The system's clocks. ``now`` may jump; ``monotonic`` and ``elapsed`` never do."""

    def now(self) -> int:
        """Milliseconds since 1970 UTC."""
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        """Seconds from an arbitrary start."""
        return time.monotonic()

    def elapsed(self) -> float:
        """See the function `elapsed`."""
        return elapsed()


def parse_span(text: str) -> int:
    """``"90s"``, ``"2h"``, ``"1d12h"`` → milliseconds. A number without a unit is refused."""
    if len(text) > LONGEST:
        raise ValueError(f"{text[:40]!r}… is too long for a span of time: write such as 90s, 15m, 2h or 5d")
    compact = text.strip()
    total, at = 0.0, 0
    for match in _SPAN.finditer(compact):
        if compact[at : match.start()].strip():
            break
        total += float(match[1]) * _UNITS[match[2]]
        at = match.end()
    if not compact or compact[at:].strip() or at == 0:
        raise ValueError(
            f"{text!r} is not a span of time: write a number with its unit, such as 90s, 15m, 2h or 5d"
        )
    if total >= END:
        raise ValueError(f"{text[:40]!r} is longer than any time there is")
    return int(total)


def span(value: str | timedelta) -> int:
    """A span as text or timedelta → milliseconds."""
    if isinstance(value, timedelta):
        return int(value.total_seconds() * 1000)
    return parse_span(value)


def instant(value: str | datetime | timedelta, now: int) -> int:
    """An aware datetime, a timedelta from now, ``"2h"`` from now, or an ISO 8601 time with its offset, as
    milliseconds.
    """
    if isinstance(value, timedelta):
        return now + span(value)
    if isinstance(value, datetime):
        return _from_datetime(value)
    if not isinstance(value, str):
        raise ValueError(
            f"{repr(value)[:80]} is not a time: give an aware datetime, a timedelta, or text such as '2h'"
        )
    if len(value) > LONGEST:
        raise ValueError(f"{value[:40]!r}… is too long for a time")
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return now + parse_span(value)
    return _from_datetime(moment)


def _from_datetime(moment: datetime) -> int:
    if moment.tzinfo is None:
        raise ValueError(
            f"{moment.isoformat()} has no time zone: write it with an offset, such as {moment.isoformat()}Z"
        )
    return int(moment.timestamp() * 1000)


def as_datetime(ms: int) -> datetime:
    """Milliseconds → aware datetime in UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC)


def rfc3339(ms: int | None) -> str | None:
    """Milliseconds → ``2026-11-21T09:15:02.123Z``; None stays None."""
    if ms is None:
        return None
    whole, rest = divmod(ms, 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{rest:03d}Z"


def human_span(ms: int) -> str:
    """A span for people: ``42s``, ``10m``, ``2h05m``, ``1d3h``."""
    seconds = max(0, ms) // 1000
    if seconds < 60:
        return f"{seconds}s"
    minutes = seconds // 60
    if minutes < 60:
        return f"{minutes}m"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}h{minutes:02d}m" if minutes else f"{hours}h"
    days, hours = divmod(hours, 24)
    return f"{days}d{hours}h" if hours else f"{days}d"
