"""Dot locks: ``<mbox>.lock``, which mail readers and other delivery programs know, too.

Our own lock file says who made it (process number, start of the process, boot, host), and its maker holds
``flock`` on it as long as it lives. The file gets its name only when both is done.
Promises: a lock of another program is never broken, however old it is. A lock of ours is taken over, under
the same name, when the kernel has released its ``flock``, and either it was made under the same kernel (boot)
or its process is gone. So nobody else can get the lock in between.
Fails: `Locked` at once when somebody holds it; this module does not wait. `take` returns None where we may
not write into the folder.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from typing import Any

from outmail.system.host import hostname
from outmail.system.lockfile import boot_id, started_at, try_lock
from outmail.transport import places

#: Longer than any lock of ours, and than what other programs write into theirs.
_LONGEST = 4096

#: The locks that this process holds. A forked child closes its copies; otherwise they would stay locked when
#: the parent dies.
_held: set[int] = set()


class Locked(OSError):
    """Somebody else is writing to the mailbox."""


def _after_fork() -> None:
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def take(folder: int, name: str) -> int | None:
    """Make the lock. Returns its descriptor for `release`, or None where no lock can be made."""
    try:
        made = places.Unseen(folder, _who().encode())
    except OSError as problem:
        if problem.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        _nobody_holds(folder, name)
        return None
    with made:
        if not try_lock(made.fd):
            raise OSError(f"no lock can be held on files beside {name}: flock does not work there")
        for _ in range(3):
            try:
                made.appear(folder, name, contested=True)
            except FileExistsError:
                fd = _of_the_dead(folder, name)
                if fd is None:
                    continue
            else:
                fd = os.dup(made.fd)  # the same flock
            _held.add(fd)
            return fd
    raise Locked(errno.EAGAIN, f"another program holds {name}")


def release(folder: int, name: str, fd: int) -> None:
    """Remove the name first, so that nobody finds the file unlocked."""
    try:
        if places.names(folder, name, fd):
            places.remove(folder, name)
    except OSError as problem:
        places.stays(name, problem)
    finally:
        _held.discard(fd)
        os.close(fd)


def _nobody_holds(folder: int, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.stat(name, dir_fd=folder, follow_symlinks=False)
        raise Locked(errno.EAGAIN, f"another program holds {name}")


def _of_the_dead(folder: int, name: str) -> int | None:
    """Take over the lock of a dead process of ours. None when the file has vanished.

    Raises `Locked`.
    """
    taken = Locked(errno.EAGAIN, f"another program holds {name}; if none does, remove that file")
    try:
        fd = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        return None
    except OSError:
        raise taken from None
    try:
        found = os.fstat(fd)
        ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and _read(fd)
        if not ours or not try_lock(fd) or not _gone(ours):
            raise taken
        if places.names(folder, name, fd):
            os.utime(fd)  # other programs judge a lock by its age
            return fd
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def _who() -> str:
    pid = os.getpid()
    return (
        json.dumps(
            {
                "lock of": "outmail",
                "pid": pid,
                "started": started_at(pid),
                "boot": boot_id(),
                "host": hostname(),
            }
        )
        + "\n"
    )


def _read(fd: int) -> dict[str, Any] | None:
    """The contents of a lock of ours; None for another program's."""
    try:
        said = json.loads(os.pread(fd, _LONGEST, 0))
        return (
            said
            if said["lock of"] == "outmail"
            and isinstance(said["pid"], int)
            and {"started", "boot", "host"} <= said.keys()
            else None
        )
    except (ValueError, KeyError, TypeError):
        return None


def _gone(who: dict[str, Any]) -> bool:
    """True when the maker of a lock that the kernel has released is gone. Under the same kernel that is
    certain, because host names and process numbers of containers say nothing. Otherwise: the host is ours,
    and it was another boot, or the process does not exist, or its number belongs to another process.
    """
    if who["boot"] and who["boot"] == boot_id():
        return True
    if who["host"] != hostname():
        return False
    if who["boot"] != boot_id():
        return True
    try:
        os.kill(who["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return bool(started_at(who["pid"]) != who["started"])
