"""Log lines that other people can cause: each kind is logged at once, and then at most once a minute with a
count.

Promises: the first line of a kind is logged at once. No kind is logged more often than every `EVERY` seconds.
How many lines were left out is said with the next one, or by `tell`; they are not even formatted. Does not:
suppress a kind completely, or remember more than the kinds that the code names.
"""

from __future__ import annotations

import logging
from time import monotonic
from typing import Any

EVERY = 60.0
#: Kinds may contain the name of a relay; this many are kept apart.
MOST = 1000


class Throttle:
    """The throttled lines for one logger."""

    def __init__(self, log: logging.Logger, every: float = EVERY) -> None:
        self._log = log
        self._every = every
        #: kind → (since when, level, how many were left out since, the last one of them and its values)
        self._said: dict[str, tuple[float, int, int, str, tuple[Any, ...]]] = {}

    def say(self, level: int, kind: str, text: str, *values: Any, exc_info: Any = None) -> None:
        """Log it, or count it."""
        now = monotonic()
        since, _, count, _, _ = self._said.get(kind, (now - self._every, 0, 0, "", ()))
        if now - since < self._every:
            # an exception would keep alive what its frames hold
            kept = tuple(str(value) if isinstance(value, BaseException) else value for value in values)
            self._said[kind] = (since, level, count + 1, text, kept)
            return
        if len(self._said) >= MOST:
            self._said.clear()
        self._said[kind] = (now, level, 0, "", ())
        self._log.log(
            level, text + (f" (and {count} more like this)" if count else ""), *values, exc_info=exc_info
        )

    def tell(self) -> None:
        """Log what was left out, for kinds whose time is over."""
        now = monotonic()
        for kind, (since, level, count, text, values) in list(self._said.items()):
            if now - since >= self._every:
                del self._said[kind]
                if count:
                    self._log.log(
                        level, f"%d more like this in the last %.0f s: {text}", count, now - since, *values
                    )
