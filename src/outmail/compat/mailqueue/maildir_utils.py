"""mailqueue-runner's functions for its queue directory: folders, locks, moving a file.

A lock is ``flock`` on the file itself, as in `spool`; a move never replaces a file. Where ``fcntl`` does not
exist nothing can be locked, so nothing is taken.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections.abc import Iterator
from typing import Any, BinaryIO

from outmail.compat.mailqueue import spool
from outmail.system.lockfile import same_file, take_lock

_PAUSE = 0.02


class LockedFile:
    """An open file whose lock this process holds until `close`. ``name``: where it is now."""

    def __init__(self, fp: BinaryIO, name: str) -> None:
        self.fp, self.name = fp, name

    def read(self, size: int = -1) -> bytes:
        return self.fp.read(size)

    def seek(self, at: int) -> None:
        self.fp.seek(at)

    def is_locked(self) -> bool:
        return not self.fp.closed

    def close(self) -> None:
        self.fp.close()


def create_maildir_directories(basedir: str | os.PathLike[str]) -> str:
    """Make the directory with tmp, new and cur; returns the path of new."""
    spool.make(os.fspath(basedir))
    return os.path.join(basedir, "new")


def find_messages(
    queue_basedir: str | os.PathLike[str], log: Any = None, queue_folder: str = "new"
) -> Iterator[str]:
    """The paths of the files in a folder of the queue, the oldest first."""
    folder = os.path.join(queue_basedir, queue_folder)
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        if not os.path.exists(queue_basedir):
            (log or logging.getLogger("mailqueue")).error("there is no queue directory %s", queue_basedir)
        return
    for name in sorted((name for name in names if name[0] != "."), key=spool.age_key):
        yield os.path.join(folder, name)


def lock_file(path: str | os.PathLike[str], timeout: float | None = None) -> LockedFile | None:
    """Open and lock a file; None when it is gone, or somebody else holds it for ``timeout`` seconds. Raises
    OSError, also on a file system without locks.
    """
    deadline = time.monotonic() + (timeout or 0.0)
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as problem:
            if problem.errno in (errno.ENOENT, errno.ELOOP, errno.EISDIR):
                return None
            raise
        try:
            if take_lock(fd) and same_file(os.fspath(path), fd):
                mine, fd = fd, -1
                return LockedFile(open(mine, "rb+"), os.fspath(path))
        finally:
            if fd >= 0:
                os.close(fd)
        if time.monotonic() >= deadline:
            return None
        time.sleep(_PAUSE)


def move_message(file_: Any, target_folder: str, open_file: bool = True) -> Any:
    """Move a file, given by path or locked, into another folder of its queue; returns it locked, or with
    ``open_file`` False its path. None when it is not there, locked by somebody else, or when a file of its
    name is there already.
    """
    locked = file_ if isinstance(file_, LockedFile) else None
    path = locked.name if locked is not None else os.fspath(getattr(file_, "name", file_))
    folder, name = os.path.split(path)
    target = os.path.join(os.path.dirname(folder), target_folder, name)
    mine = locked or lock_file(path)
    if mine is None:
        return None
    moved = path == target or _relinked(path, target)
    if moved:
        mine.name = target
    if locked is None and not (moved and open_file):
        mine.close()
    if not moved:
        return None
    return mine if open_file else target


def _relinked(path: str, target: str) -> bool:
    """Also where a program was killed after it had made the new name, and before it removed the old one."""
    try:
        os.link(path, target)
    except OSError:
        if not _is_one_file(path, target):
            return False
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    return True


def _is_one_file(path: str, other: str) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.lstat(other))
    except FileNotFoundError:
        return False
