"""All bytes to a descriptor. Loads nothing: `sendmail` starts in milliseconds."""

from __future__ import annotations

import os


def write_all(fd: int, data: bytes, at: int | None = None) -> None:
    """One write, and more where the system takes less. ``at``: the place in the file, else where the
    descriptor stands. Raises OSError; part of it may be written then.
    """
    left = memoryview(data)
    while left:
        count = os.write(fd, left) if at is None else os.pwrite(fd, left, at)
        left = left[count:]
        at = None if at is None else at + count
