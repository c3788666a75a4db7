"""Log records and values of programs as text, whatever they are.

Promises: never raises, whatever the record is: without a name, with arguments that do not fit, or with
attributes of any type. The text is bounded.
Does not: keep a reference to the record.
"""

from __future__ import annotations

import logging
import time
from types import TracebackType
from typing import Any

#: How many characters of one message are kept.
MESSAGE = 20_000
#: The last instant that a record may have: the year 9999.
_END = 253_402_300_000.0


def in_words(value: Any) -> str:
    """``str(value)``, even if that raises."""
    for made in (str, repr):
        try:
            return str(made(value))
        except Exception:  # the program's own __str__ raised: reporting goes on
            continue
    return f"<{type(value).__name__}>"


def ours(record: logging.LogRecord) -> bool:
    """True for outmail's own records. No handler of outmail takes them, because reporting would then cause
    reports.
    """
    name = name_of(record)
    return name == "outmail" or name.startswith("outmail.")


def name_of(record: logging.LogRecord) -> str:
    name = getattr(record, "name", None)
    return name if isinstance(name, str) else ""


def message_of(record: logging.LogRecord) -> str:
    """The message with its arguments, or both side by side when they do not fit together."""
    try:
        return str(record.getMessage())[:MESSAGE]
    except Exception:  # the program's mistake, which the reader should see
        return (
            f"{in_words(getattr(record, 'msg', ''))} with arguments that do not fit: "
            f"{in_words(getattr(record, 'args', None))}"
        )[:MESSAGE]


def level_of(record: logging.LogRecord) -> int:
    return whole(getattr(record, "levelno", 0))


def time_of(record: logging.LogRecord) -> float:
    return moment(getattr(record, "created", None))


def whole(value: Any) -> int:
    """A level; 0 when it is none."""
    return (
        value
        if isinstance(value, int) and not isinstance(value, bool) and -1_000_000 < value < 1_000_000
        else 0
    )


def moment(value: Any) -> float:
    """Seconds since 1970; now when no calendar can show the time."""
    if isinstance(value, (int, float)) and 0 <= value < _END:  # false for NaN, right for any int
        return float(value)
    return time.time()


def problem_of(record: logging.LogRecord) -> tuple[BaseException, TracebackType | None] | None:
    """The exception of a record, and its traceback."""
    info = getattr(record, "exc_info", None)
    if isinstance(info, tuple) and len(info) == 3 and isinstance(info[1], BaseException):
        return info[1], info[2] if isinstance(info[2], TracebackType) else None
    return None


def formatted(handler: logging.Handler, record: logging.LogRecord) -> str:
    """The record as the handler's formatter formats it; only the message when that fails."""
    try:
        return str(handler.format(record))
    except Exception:
        return message_of(record)
