"""A file whose lock says that a run lives: the kernel lets go when the process dies, however it dies.

Promises: held by this process only (a forked child closes its copy); where ``fcntl`` does not exist runs are never taken for
dead. Fails: OSError from `Life`, e.g. on a read-only disk; the run goes on without. Does not: survive a copied folder.
"""

from __future__ import annotations

import os
import weakref

_open: weakref.WeakSet[Life] = weakref.WeakSet()


def _after_fork() -> None:
    for life in list(_open):
        life.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Life:
    """``<spool>/run.<id>``, locked as long as the run lives."""

    def __init__(self, folder: str, id: str) -> None:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        self.path = os.path.join(folder, f"run.{id}")
        made = os.path.join(folder, f"new-run.{id}")  # it gets its name locked: nobody can take the run for dead before
        self._fd = os.open(made, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        _lock(self._fd)
        os.rename(made, self.path)
        _open.add(self)

    def end(self) -> None:
        """The run is over and on record."""
        if self._fd >= 0:
            try:
                os.unlink(self.path)
            except FileNotFoundError:
                pass
            self.abandon()

    def abandon(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        _open.discard(self)


def dead(folder: str, id: str) -> bool:
    """True when the run had a file here and nobody holds it any more. The file is removed by `bury`."""
    try:
        fd = os.open(os.path.join(folder, f"run.{id}"), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return _lock(fd)
    finally:
        os.close(fd)


def bury(folder: str, id: str) -> None:
    """Remove the file of a dead run, once its death is on record."""
    try:
        os.unlink(os.path.join(folder, f"run.{id}"))
    except OSError:
        pass


def _lock(fd: int) -> bool:
    try:
        import fcntl
    except ImportError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
