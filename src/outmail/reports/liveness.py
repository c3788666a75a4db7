"""``<spool>/run.<id>``: a file that is locked as long as a run is alive, and says what is running and how far
it is.

Promises: what was written survives the death of the process (but not a power cut: there is no fsync).
Fails: OSError from `alive`. Does not: import slow modules, or know what a run is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from outmail.system.lockfile import LockFile, try_lock


def alive(folder: str, id: str, content: bytes = b"") -> LockFile:
    """Declare that this run is alive, until `LockFile.end`. Raises OSError, on a read-only disk for example;
    the run goes on without the file.
    """
    os.makedirs(folder, mode=0o700, exist_ok=True)
    return LockFile(os.path.join(folder, f"new-run.{id}"), os.path.join(folder, f"run.{id}"), content)


def write(life: LockFile, content: bytes) -> None:
    """Replace the content of the file by one write; white space covers the rest of longer content. Raises
    OSError.
    """
    if life.fd >= 0:
        os.pwrite(life.fd, content.ljust(os.fstat(life.fd).st_size), 0)


def dead(folder: str, id: str) -> bool:
    """True when the run had a file here and nobody holds it any more. `bury` removes the file."""
    try:
        fd = os.open(os.path.join(folder, f"run.{id}"), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return try_lock(fd)
    finally:
        os.close(fd)


def living(folder: str, but: str = "") -> Iterator[tuple[str, str]]:
    """(id, path) of the runs that are alive, except one."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return
    for name in names:
        id = name.removeprefix("run.")
        if name != id and id != but and not dead(folder, id):
            yield id, os.path.join(folder, name)


def bury(folder: str, id: str) -> None:
    """Remove the file of a dead run, when its death is recorded."""
    try:
        os.unlink(os.path.join(folder, f"run.{id}"))
    except OSError:
        pass
