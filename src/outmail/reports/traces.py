"""A traceback for people: lines of the program's own code are marked, others indented; no local variables.

Does not: mask secrets (`mail.safe` does) or keep references to frames.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import traceback

_FOREIGN = tuple(
    {
        os.path.realpath(path)
        for path in (*sysconfig.get_paths().values(), sys.prefix, sys.base_prefix)
        if path
    }
)


def is_own(filename: str) -> bool:
    """True for code that is neither in the standard library nor installed."""
    if filename.startswith("<"):
        return False
    path = os.path.realpath(filename)
    return (
        "site-packages" not in path
        and not path.startswith(_FOREIGN)
        and f"{os.sep}outmail{os.sep}reports{os.sep}" not in path
    )


def uncaught() -> BaseException | None:
    """The exception that is ending the program, or None."""
    return getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)


def last_line(problem: BaseException) -> str:
    """``ValueError: no such feed``, in one line."""
    return " ".join(
        "".join(traceback.format_exception_only(type(problem), problem)).strip().splitlines()[-1:]
    )


def formatted(problem: BaseException, limit: int = 60) -> str:
    """The traceback. ``→`` marks lines of the program's own code."""
    lines: list[str] = []
    for part in traceback.TracebackException.from_exception(problem, limit=-limit).format():
        head = part.split("\n", 1)[0]
        own = head.startswith('  File "') and is_own(head.split('"')[1])
        for line in part.rstrip("\n").split("\n"):
            lines.append("→" + line[1:] if own and line.startswith("  ") else line)
    return "\n".join(lines)
