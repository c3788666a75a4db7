"""Log lines that somebody else can cause: one of a kind at once, then one a minute with a count.

Promises: the first of a kind is said at once, and no kind oftener than every `EVERY` seconds, however often
it happens; how many were left out is said with the next one, or by `tell`. Does not: leave out kinds, or
remember more than the kinds that the code names.
"""

from __future__ import annotations

import logging
from time import monotonic
from typing import Any

EVERY = 60.0
#: Kinds may hold a relay's name; so many are kept apart.
MOST = 1000


class Throttle:
    """Complaints to one logger."""

    def __init__(self, log: logging.Logger, every: float = EVERY) -> None:
        self._log = log
        self._every = every
        #: kind → since when, level, how many were left out since, the last of them
        self._said: dict[str, tuple[float, int, int, str]] = {}

    def say(self, level: int, kind: str, text: str, *values: Any, exc_info: Any = None) -> None:
        """Log it, or count it."""
        now = monotonic()
        since, _, count, _ = self._said.get(kind, (now - self._every, 0, 0, ""))
        if now - since < self._every:
            self._said[kind] = (since, level, count + 1, text % values)
            return
        if len(self._said) >= MOST:
            self._said.clear()
        self._said[kind] = (now, level, 0, "")
        self._log.log(
            level, text + (f" (and {count} more like this)" if count else ""), *values, exc_info=exc_info
        )

    def tell(self) -> None:
        """Say what was left out, once its time is over."""
        now = monotonic()
        for kind, (since, level, count, last) in list(self._said.items()):
            if now - since >= self._every:
                del self._said[kind]
                if count:
                    self._log.log(level, "%d more like this in the last %.0f s: %s", count, now - since, last)
