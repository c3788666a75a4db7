"""How output looks on a terminal: columns that fit its width, colour, and local times.

Promises: when stdout is no terminal there is no colour and nothing is cut. ``NO_COLOR`` and TERM=dumb turn
colour off. Times are local, with the zone's name. (JSON has RFC 3339 times in UTC, which are made elsewhere.)
Does not: print, or know what a column means. Why it does not use rich: docs/decisions/0014.
"""

from __future__ import annotations

import os
import sys
import time
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from outmail.policy.plain import plain_line

_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "blue": "34", "cyan": "36"}
#: What is left of a column that is cut on a narrow terminal.
_NARROW = 5


class Column(NamedTuple):
    """``least``: the width that it keeps where there is room; 0 for a column that is never cut."""

    title: str
    least: int = 0
    right: bool = False


def columns() -> int:
    """The width of the terminal; 0 when stdout is none."""
    if not sys.stdout.isatty():
        return 0
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given):
        return int(given)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or 80
    except (ValueError, OSError):
        return 80


def coloured() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def painted(text: str, style: str) -> str:
    """The text in colour, where there is colour. ``style`` may be ""."""
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if style and text and coloured() else text


def when(ms: int, *, utc: bool = False) -> str:
    """``2026-11-28 09:15:02 CET``."""
    moment = time.gmtime(ms / 1000) if utc else time.localtime(ms / 1000)
    return time.strftime("%Y-%m-%d %H:%M:%S ", moment) + ("UTC" if utc else moment.tm_zone)


def size(n: int) -> str:
    """Bytes for people, in powers of ten."""
    for unit, one in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n >= one:
            return f"{n / one:.{0 if n >= 10 * one else 1}f} {unit}"
    return f"{n} B"


def cells(text: str) -> int:
    """How many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def cut(text: str, width: int) -> str:
    """At most ``width`` columns; an ellipsis replaces what was cut."""
    if cells(text) <= width:
        return text
    kept = ""
    for char in text:
        if cells(kept + char) > width - 1:
            break
        kept += char
    return kept + "…"


def table(
    head: Sequence[Column], rows: Sequence[Sequence[str]], styles: Sequence[Sequence[str]], width: int
) -> list[str]:
    """Lines with a header. ``styles``: one for each cell. When all columns together are wider than ``width``,
    the widest are cut first: each down to its ``least``, and where that is not enough, further.
    """
    clean = [[plain_line(cell) for cell in row] for row in rows]
    wide = [max([cells(c.title), *(cells(row[i]) for row in clean)]) for i, c in enumerate(head)]
    room = width - 2 * (len(head) - 1)
    for least in ([c.least for c in head], [min(c.least, _NARROW) for c in head]):
        while sum(wide) > room:
            most, i = max((w - least[i] if least[i] else 0, i) for i, w in enumerate(wide))
            if most <= 0:
                break
            wide[i] -= 1
    title = _line([c.title for c in head], head, wide, ["bold"] * len(head))
    return [title, *(_line(row, head, wide, style) for row, style in zip(clean, styles))]


def _line(row: Sequence[str], head: Sequence[Column], wide: Sequence[int], styles: Sequence[str]) -> str:
    parts = []
    for text, column, width, style in zip(row, head, wide, styles):
        shown = cut(text, width)
        blank = " " * (width - cells(shown))
        parts.append(blank + painted(shown, style) if column.right else painted(shown, style) + blank)
    return "  ".join(parts).rstrip()
