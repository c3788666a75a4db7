"""How far a job is, how long it will take, and when that is worth a mail.

Promises: pure; time is passed in as monotonic seconds. The remaining time is a range between what the
smoothed recent rate (exponential mean, 0.3, as tqdm's) and the mean of the whole run say; while that would be
a guess it is said in words. A milestone is reached once, also when the counter stands still or jumps over
several: the last one counts.
Fails: `parse_every` raises ValueError with a sentence. Does not: read clocks, or know mail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from outmail.clock import parse_span

SMOOTHING = 0.3
UNKNOWN = "not known yet"

#: ``every=``: a count, "10%", a time ("2h"), a list of counts, or a function of the count that says True.
Every = int | str | Iterable[int] | Callable[[int], bool] | None


@dataclass(slots=True)
class Marks:
    """When the next milestone is. ``count`` is the count at which to ask `reached` again; None = by time or
    function.
    """

    step: float = 0.0
    marks: tuple[int, ...] = ()
    seconds: float = 0.0
    asks: Callable[[int], bool] | None = None
    done: int = 0
    at: float = 0.0

    def next_count(self) -> float:
        """The count at which something may be due; infinity when counts do not matter."""
        if self.asks is not None:
            return self.done + 1
        if self.step:
            return (int(self.done / self.step) + 1) * self.step
        return next((float(mark) for mark in self.marks if mark > self.done), float("inf"))

    def reached(self, done: int, now: float) -> bool:
        """True once for each milestone; remembers."""
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
    """Rate and remaining time of this run. ``initial`` is what an earlier run had done: it does not count for
    the rate.
    """

    total: int | None
    started: float
    initial: int = 0
    smoothed: float = 0.0
    _done: int = field(default=0)
    _at: float = field(default=0.0)
    samples: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._done, self._at = self.initial, self.started

    def sample(self, done: int, now: float) -> None:
        """A look at the counter, about once a second."""
        span = now - self._at
        if span <= 0:
            return
        rate = (done - self._done) / span
        self.smoothed = rate if not self.smoothed else SMOOTHING * rate + (1 - SMOOTHING) * self.smoothed
        self._done, self._at = done, now
        self.samples.append(rate)
        if len(self.samples) > 240:  # halve the resolution rather than forget the beginning
            self.samples = [(a + b) / 2 for a, b in zip(self.samples[::2], self.samples[1::2])]

    def mean(self, done: int, now: float) -> float:
        """Items a second over the whole of this run."""
        return (done - self.initial) / (now - self.started) if now > self.started else 0.0

    def remaining(self, done: int, now: float) -> tuple[float, float] | None:
        """Seconds at least and at most, or None while nobody can know."""
        if not self.total:
            return None
        left = self.total - done
        if left <= 0:
            return (0.0, 0.0)
        moved = done - self.initial
        if moved <= 0 or (now - self.started < 30 and moved < self.total / 100):
            return None
        rates = [rate for rate in (self.smoothed, self.mean(done, now)) if rate > 0]
        if not rates:
            return None
        return left / max(rates), left / min(rates)


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
    """How long something lasted: ``0.4 s``, ``42 s``, then as `span_in_words`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 60 else span_in_words(seconds)


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
