"""Log records with attributes that nobody expects, for handlers that must take them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any


class Rude:
    """Has no text: every way to get one raises."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Wrong:
    """Its text is no text."""

    def __str__(self) -> str:
        return 5  # type: ignore[return-value]

    def __repr__(self) -> str:
        return "<wrong>"


def _raised() -> Any:
    try:
        raise ValueError("\udc80 caught")
    except ValueError as problem:
        return (type(problem), problem, problem.__traceback__)


_LOOP: list[Any] = []
_LOOP.append(_LOOP)
NAMES = (
    "name", "msg", "args", "levelname", "levelno", "pathname", "filename", "module", "exc_info", "exc_text",
    "stack_info", "lineno", "funcName", "created", "msecs", "relativeCreated", "thread", "threadName",
    "processName", "process", "taskName", "key", "extra", "message", "asctime",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, "", "text", "%d %s %(x)s", "\0\r\n\x1b[31m\u202e", "\ud800", "x" * 30_000, b"\xff", 0, -1, 10**400,
    True, float("nan"), float("inf"), -1e308, (), ("a", "b"), (None, None, None), (1, 2, 3), [], _LOOP, {},
    {"key": 1}, {"key": None}, Rude(), (Rude(),), Wrong(), Rude, ValueError("v"), _raised(),
    _raised()[1], object(), 1j,
)  # fmt: skip


def odd_record(choose: Callable[[int], int]) -> logging.LogRecord:
    """A record with up to six odd or missing attributes; ``choose(n)`` picks a number below n."""
    record = logging.makeLogRecord({"msg": "usual"} if choose(2) else {})
    for _ in range(choose(7)):
        name = NAMES[choose(len(NAMES))]
        if choose(4):
            record.__dict__[name] = VALUES[choose(len(VALUES))]
        else:
            record.__dict__.pop(name, None)
    return record
