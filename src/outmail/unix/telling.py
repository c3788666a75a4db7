"""A line on stderr of sendmail and mail. Loads nothing."""

from __future__ import annotations

import sys


def tell(name: str, problem: str, status: int) -> int:
    """One line on stderr, safe for a terminal."""
    shown = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in problem)
    try:
        print(f"{name}: {shown}", file=sys.stderr, flush=True)
    except OSError:
        pass  # nobody can be told; what became of the mail is in the status
    return status
