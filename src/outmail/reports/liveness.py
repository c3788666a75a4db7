"""``<spool>/run.<id>``: a file that is held as long as a run lives (`held`). Does not: import anything that
takes time.
"""

from __future__ import annotations

import os

from outmail.system.lockfile import LockFile, try_lock


def alive(folder: str, id: str, content: bytes = b"") -> LockFile:
    """Say that this run lives, until `LockFile.end`. Raises OSError, e.g. on a read-only disk; the run goes
    on without.
    """
    os.makedirs(folder, mode=0o700, exist_ok=True)
    return LockFile(os.path.join(folder, f"new-run.{id}"), os.path.join(folder, f"run.{id}"), content)


def dead(folder: str, id: str) -> bool:
    """True when the run had a file here and nobody holds it any more. The file is removed by `bury`."""
    try:
        fd = os.open(os.path.join(folder, f"run.{id}"), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return try_lock(fd)
    finally:
        os.close(fd)


def bury(folder: str, id: str) -> None:
    """Remove the file of a dead run, once its death is on record."""
    try:
        os.unlink(os.path.join(folder, f"run.{id}"))
    except OSError:
        pass
