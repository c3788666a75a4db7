"""Times as people type them: ``18:00``, ``tomorrow 9:00``, ``friday 9am``, ``2026-12-24 18:00``.

Promises: pure; the present is passed in, and what comes out is on the same clock on the wall, without a zone:
a person at a terminal means the local time. A day alone means its beginning; a time alone is the next such
moment; a weekday is the next one that is not over. Fails: `ValueError` with a sentence for what looks like a
time and cannot be one. Does not: know spans (``2h``) and times with an offset (`clock.instant` does).
"""

from __future__ import annotations

import re
from datetime import date, datetime, time, timedelta

EXAMPLES = "2h, 18:00, tomorrow 9:00, friday, 2026-12-24 or 2026-12-24T18:00:00+01:00"
_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_TIME = re.compile(r"(\d{1,2})(?::(\d\d))?(?::(\d\d))?\s*(am|pm)?", re.ASCII)
_NAMED_TIMES = {"noon": time(12), "midnight": time(0)}
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)


def typed(text: str, now: datetime) -> datetime | None:
    """The moment that ``text`` means at ``now`` (both without a zone); None when it is no text of this
    kind.
    """
    words = re.sub(r"\bat\s+", "", text.strip().lower())
    words = re.sub(r"(\d)\s+([ap]m)\b", r"\1\2", words)
    words = re.sub(r"^(\d{4}-\d\d-\d\d)t(?=\d)", r"\1 ", words)
    parts = words.split()
    if not 1 <= len(parts) <= 2:
        return None
    days = [part for part in parts if _is_day(part)]
    times = [part for part in parts if part in _NAMED_TIMES or _is_time(part)]
    if len(days) + len(times) != len(parts) or len(days) > 1 or len(times) > 1:
        return None
    clock = _time(times[0]) if times else time(0)
    if not days:
        moment = datetime.combine(now.date(), clock)
        return moment if moment > now else moment + timedelta(days=1)
    if days[0] == "today" and not times:
        raise ValueError(f"{text!r} says no time: write such as today 18:00")
    return _on(days[0], clock, now)


def _is_day(word: str) -> bool:
    return word in ("today", "tomorrow") or _DATE.fullmatch(word) is not None or _weekday(word) is not None


def _is_time(word: str) -> bool:
    match = _TIME.fullmatch(word)
    return match is not None and (match[2] is not None or match[4] is not None)


def _weekday(word: str) -> int | None:
    found = [n for n, name in enumerate(_WEEKDAYS) if len(word) >= 3 and name.startswith(word)]
    return found[0] if len(found) == 1 else None


def _time(word: str) -> time:
    if word in _NAMED_TIMES:
        return _NAMED_TIMES[word]
    match = _TIME.fullmatch(word)
    assert match is not None
    hour, half = int(match[1]), match[4]
    if half and not 1 <= hour <= 12:
        raise ValueError(f"there is no {hour} {half}")
    if half:
        hour = hour % 12 + (12 if half == "pm" else 0)
    try:
        return time(hour, int(match[2] or 0), int(match[3] or 0))
    except ValueError:
        raise ValueError(f"there is no time {word}") from None


def _on(day: str, clock: time, now: datetime) -> datetime:
    if day in ("today", "tomorrow"):
        return datetime.combine(now.date() + timedelta(days=day == "tomorrow"), clock)
    if (weekday := _weekday(day)) is None:
        try:
            return datetime.combine(date.fromisoformat(day), clock)
        except ValueError:
            raise ValueError(f"there is no day {day}") from None
    ahead = (weekday - now.weekday()) % 7
    moment = datetime.combine(now.date() + timedelta(days=ahead), clock)
    return moment if moment > now else moment + timedelta(days=7)
