"""How far a job is, how long it will take, and when that is worth a mail.

Promises: pure; time is passed in as monotonic seconds. The remaining time is a range between what the recent
rate (exponential mean, 0.3, as in tqdm) and the mean rate of the whole run predict; while that would be a
guess, it says so in words. A milestone is reached once, even when the counter stands still; when the counter
jumps over several, only the last one counts.
Fails: `parse_every` raises ValueError with a sentence. Does not: read clocks, or know mail.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from outmail.clock import parse_span

#: Seconds that the rate "now" looks back.
RECENT = 60.0
#: Fewer items, or fewer seconds, make no rate.
ITEMS, SECONDS = 5, 5.0
#: Looks at the counter that are kept: the older ones are thinned out.
LOOKS = 600
UNKNOWN = "not known yet"

#: ``every=``: a count, "10%", a time ("2h"), a list of counts, or a function of the count that says True.
Every = int | str | Iterable[int] | Callable[[int], bool] | None


@dataclass(slots=True)
class Marks:
    """When the next milestone is due. ``count``: the count at which to call `reached` again; None: milestones
    by time or function.
    """

    step: float = 0.0
    marks: tuple[int, ...] = ()
    seconds: float = 0.0
    asks: Callable[[int], bool] | None = None
    done: int = 0
    at: float = 0.0

    def next_count(self) -> float:
        """The count at which a milestone may be due; infinity when counts do not matter."""
        if self.asks is not None:
            return self.done + 1
        if self.step:
            return (int(self.done / self.step) + 1) * self.step
        return next((float(mark) for mark in self.marks if mark > self.done), float("inf"))

    def reached(self, done: int, now: float) -> bool:
        """True once for each milestone; it is remembered."""
        if self.asks is not None:
            hit = done > self.done and bool(self.asks(done))
        elif self.seconds:
            hit = now - self.at >= self.seconds
        else:
            hit = done >= self.next_count()
        if hit or self.asks is not None:
            self.done = max(self.done, done)
        if hit:
            self.at = now
        return hit


def parse_every(every: Every, total: int | None) -> Marks | None:
    """``every=`` → Marks, or None for no milestones."""
    if every is None or every is False:
        return None
    if isinstance(every, bool):
        raise ValueError(
            'every=True says nothing: write a count, "10%", a time such as "2h", or a list of counts'
        )
    if isinstance(every, int):
        if every < 0:
            raise ValueError(f"every={every} must not be negative")
        return Marks(step=every) if every else None
    if isinstance(every, str):
        return _parse_text(every, total)
    if callable(every):
        return Marks(asks=every)
    try:
        marks = tuple(sorted({int(mark) for mark in every}))
    except (TypeError, ValueError):
        raise ValueError(
            f'every={every!r} is not a count, "10%", a time such as "2h", a list of counts or a function'
        ) from None
    return Marks(marks=marks) if marks else None


def _parse_text(text: str, total: int | None) -> Marks:
    if text.strip().endswith("%"):
        try:
            percent = float(text.strip()[:-1])
        except ValueError:
            raise ValueError(f"every={text!r} is not a percentage") from None
        if not 0 < percent <= 100:
            raise ValueError(f"every={text!r} must be between 0% and 100%")
        if not total:
            raise ValueError(f"every={text!r} needs total=")
        return Marks(step=total * percent / 100)
    try:
        seconds = parse_span(text) / 1000
    except ValueError:
        raise ValueError(
            f'every={text!r}: write a count, "10%", a time such as "2h", a list of counts or a function'
        ) from None
    if seconds <= 0:
        raise ValueError(f"every={text!r} must be longer than nothing")
    return Marks(seconds=seconds)


@dataclass(slots=True)
class Estimate:
    """Rate and remaining time of this run. ``initial``: what an earlier run had done; it does not count for
    the rate.
    """

    total: int | None
    started: float
    initial: int = 0
    #: When the counter was looked at, and what it said: the start is the first.
    _at: list[float] = field(default_factory=list)
    _done: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._at.append(self.started)
        self._done.append(self.initial)

    def sample(self, done: int, now: float) -> bool:
        """A look at the counter, about once a second; True when it has moved since the last one."""
        if now < self._at[-1]:
            return False
        moved = done != self._done[-1]
        self._at.append(now)
        self._done.append(done)
        if len(self._at) > LOOKS:
            old = bisect_left(self._at, now - RECENT)
            self._at = self._at[:old:2] + self._at[old:]
            self._done = self._done[:old:2] + self._done[old:]
        return moved

    def mean(self, done: int, now: float) -> float:
        """Items a second over the whole run."""
        return (done - self.initial) / (now - self.started) if now > self.started else 0.0

    def recent(self, done: int, now: float) -> float:
        """Items a second in the last minute; 0.0 where too few were done to tell."""
        then = min(bisect_left(self._at, now - RECENT), len(self._at) - 1)
        return rate(done - self._done[then], now - self._at[then])

    def course(self, done: int, now: float, most: int = 40) -> list[float]:
        """Rates of equal parts of the run, at most ``most``; none where the parts would be too small to say
        anything.
        """
        span = now - self.started
        if not math.isfinite(done) or span <= 0:
            return []
        parts = int(min(most, span / (SECONDS / 2), (done - self.initial) / (2 * ITEMS)))
        if parts < 3:
            return []
        at, counts = [*self._at, now], [*self._done, done]
        edges = [_between(at, counts, self.started + span * i / parts) for i in range(parts + 1)]
        return [max(0.0, (b - a) * parts / span) for a, b in pairwise(edges)]

    def remaining(self, done: int, now: float) -> tuple[float, float] | None:
        """(least, most) seconds that are left, or None while that cannot be known."""
        if not self.total:
            return None
        left = self.total - done
        if left <= 0:
            return (0.0, 0.0)
        moved = done - self.initial
        if moved <= 0 or (now - self.started < 30 and moved < self.total / 100):
            return None
        rates = [rate for rate in (self.recent(done, now), self.mean(done, now)) if rate > 0]
        if not rates:
            return None
        return left / max(rates), left / min(rates)


def rate(items: float, seconds: float) -> float:
    """Items a second; 0.0 where there were too few, or too little time, to tell."""
    return items / seconds if items >= ITEMS and seconds >= SECONDS else 0.0


def _between(at: Sequence[float], counts: Sequence[float], moment: float) -> float:
    """The counter at a moment between two looks."""
    i = min(max(bisect_left(at, moment), 1), len(at) - 1)
    before, after = at[i - 1], at[i]
    share = (moment - before) / (after - before) if after > before else 1.0
    return counts[i - 1] + (counts[i] - counts[i - 1]) * share


def rate_in_words(rate: float) -> str:
    """``12/s``, ``3.2/s``, ``14 a minute``, ``5 an hour``; "" for 0."""
    if rate <= 0 or not math.isfinite(rate):
        return ""
    if rate >= 1:
        return f"{rate:,.0f}/s" if rate >= 100 else f"{rate:.1f}/s"
    return f"{rate * 60:.1f} a minute" if rate * 60 >= 1 else f"{rate * 3600:.1f} an hour"


def percent(done: float, total: float | None) -> int | None:
    """How much of the whole, rounded down: 100 is said when it is reached. None where nobody can know."""
    if not total or not math.isfinite(done):
        return None
    return math.floor(100 * done / total)


def span_in_words(seconds: float) -> str:
    """``under a minute``, ``3 min``, ``2 h 05 min``, ``3 days 4 h``."""
    if seconds < 60:
        return "under a minute"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} days {hours} h" if hours else f"{days} days"


def took(seconds: float) -> str:
    """How long something lasted: ``0.4 s``, ``42 s``, ``1 min 40 s``; from ten minutes on as
    `span_in_words`.
    """
    if seconds < 0.1:
        return "under 0.1 s"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 600:
        return f"{whole // 60} min {whole % 60:02d} s" if whole % 60 else f"{whole // 60} min"
    return span_in_words(whole)


def remaining_in_words(span: tuple[float, float] | None) -> str:
    """A range for people."""
    if span is None:
        return UNKNOWN
    low, high = map(span_in_words, span)
    return low if low == high else f"{low} to {high}"


_BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Iterable[float], width: int = 40) -> str:
    """A row of bars, the highest value full; longer series are averaged into ``width`` bars."""
    series = list(values)
    if not series:
        return ""
    if len(series) > width:
        edges = [round(i * len(series) / width) for i in range(width + 1)]
        series = [sum(series[a:b]) / max(1, b - a) for a, b in pairwise(edges)]
    top = max(series)
    if top <= 0:
        return _BARS[0] * len(series)
    return "".join(_BARS[min(7, max(0, int(value / top * 7.999)))] for value in series)
