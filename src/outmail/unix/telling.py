"""A line on stderr of sendmail and mail. Loads nothing."""

from __future__ import annotations

from outmail.system import streams


def tell(name: str, problem: str, status: int) -> int:
    """One line on stderr, safe for a terminal."""
    shown = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in problem)
    streams.say(f"{name}: {shown}")
    return status
