"""A folder in which every user of the machine may leave a file for one service, and read nobody else's.

The folder belongs to the service and has the mode 3777: sticky, so that only its owner and a file's owner
remove a file; setgid, so that files of mode 0640 can be read by the service's group and by nobody else.
Promises: `put` returns when the file is on disk under its name, whole; a file of another kind, with a second
name, or behind a link is never read (`take`), and whose it is says its owner in the file system, not its
content; names are random, so nobody can be in the way.
Fails: `OSError` from `put`; `Strange` from `take`. Does not: know what is in a file. Where ``os.O_NOFOLLOW``
does not exist there is no such folder.
"""

from __future__ import annotations

import os
import time

#: Where a machine's service has its own.
FOLDER = "/var/spool/outmail/drop"
_NAME = frozenset("0123456789abcdef")
_LENGTH = 12 + 1 + 24
_HALF = ".half"
#: Names of one user that one look brings; the rest comes with the next look.
PER_USER = 100
#: Milliseconds after which a half written file is nobody's any more.
STALE = 86_400_000


class Strange(Exception):
    """This is no file that `put` has made."""


def is_open(folder: str) -> bool:
    """True where this process may leave a file."""
    return hasattr(os, "O_NOFOLLOW") and os.access(folder, os.W_OK | os.X_OK)


def put(folder: str, data: bytes) -> str:
    """Leave a file; returns its name."""
    name = f"{time.time_ns() // 1_000_000:012x}-{os.urandom(12).hex()}"
    half = f"{folder}/{name}{_HALF}"
    fd = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
    try:
        try:
            os.fchmod(fd, 0o640)  # whatever the umask: the service's group must be able to read it
            _write(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(half, f"{folder}/{name}")
    except BaseException:
        os.unlink(half)
        raise
    folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder_fd)
    finally:
        os.close(folder_fd)
    return name


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def is_name(name: str) -> bool:
    """True for what `put` calls a file."""
    return len(name) == _LENGTH and name[12] == "-" and _NAME.issuperset(name.replace("-", "", 1))


def waiting(folder: str) -> list[str]:
    """Names of files that wait, the oldest of each user first, users in turns: nobody's flood delays others.
    What nobody can want any more is removed.
    """
    names: dict[int, list[str]] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_name(entry.name):
                try:
                    mine = names.setdefault(entry.stat(follow_symlinks=False).st_uid, [])
                except FileNotFoundError:
                    continue
                mine.append(entry.name)
                if len(mine) > 2 * PER_USER:
                    mine[:] = sorted(mine)[:PER_USER]
            elif entry.name.endswith(_HALF):
                _sweep(folder, entry.name)
    turns = [sorted(mine)[:PER_USER] for mine in names.values()]
    return [mine[i] for i in range(PER_USER) for mine in turns if i < len(mine)]


def _sweep(folder: str, half: str) -> None:
    """Remove what a killed process has left half written a day ago."""
    name = half.removesuffix(_HALF)
    if is_name(name) and int(name[:12], 16) < time.time_ns() // 1_000_000 - STALE:
        try:
            os.unlink(f"{folder}/{half}")
        except OSError:
            pass  # a folder of that name, or gone: harmless


def take(folder: str, name: str, most: int) -> tuple[int, bytes]:
    """A file's owner and content; FileNotFoundError when it is gone. ``most``: bytes that are read."""
    import stat

    try:
        fd = os.open(f"{folder}/{name}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as problem:
        raise Strange(f"cannot be opened ({problem.strerror})") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise Strange("is not a regular file")
        if status.st_nlink != 1:
            raise Strange("has a second name")
        if status.st_size > most:
            raise Strange(f"has {status.st_size} bytes, more than {most}")
        with open(fd, "rb", closefd=False) as file:
            return status.st_uid, file.read(most)
    finally:
        os.close(fd)


def remove(folder: str, name: str) -> None:
    """What is inside is safe elsewhere."""
    try:
        os.unlink(f"{folder}/{name}")
    except FileNotFoundError:
        pass
