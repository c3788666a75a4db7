"""Standard streams that the caller has closed, or that nobody reads. Loads nothing: `sendmail` starts in
milliseconds.
"""

from __future__ import annotations

import os
import sys


def complete() -> None:
    """Open those of 0, 1 and 2 that are closed: reading fails with EBADF, and what is written goes nowhere.
    So no file of ours gets such a number, and a closed stdin is no empty message.
    """
    for fd, how in enumerate((os.O_WRONLY, os.O_RDWR, os.O_RDWR)):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, how)  # the lowest number that is free
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)


def say(line: str) -> None:
    """A line on stderr. Where it cannot be written nobody can be told: what became of the mail is in the exit
    status, which must not change. So the rest goes nowhere, or Python would fail with it at its end (120).
    """
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
