"""Starts threads, also near the end of the program.

Fails: as ``Thread.start``. Does not: load asyncio, as `threads` does.
"""

from __future__ import annotations

import threading


def started(thread: threading.Thread) -> bool:
    """Start the thread. False when the program is ending and CPython refuses (3.12 and later)."""
    try:
        thread.start()
    except RuntimeError as refusal:
        if "shutdown" not in str(refusal):
            raise
        return False
    return True
