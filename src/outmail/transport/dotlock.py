"""``<mbox>.lock``, as mail readers and other deliverers know it, and who holds it.

Ours says who made it (pid, start of the process, boot, host), and is held by ``flock`` as long as its maker
lives; it has its name only when both is so. Promises: a lock of somebody else is never broken, whatever its
age; one of ours is taken over, name and all, when the kernel has let go of it and is the kernel that it was
made under (else: when the process it names is gone), so between the dead holder and the next one nobody else
gets in.
Fails: `Locked` at once when somebody holds it; this module does not wait. None where the folder is not ours
to write.
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

#: Locks that this process holds: a forked child closes its copies, or they would outlive their holder.
_held: set[int] = set()


class Locked(OSError):
    """Somebody else is writing there."""


def _after_fork() -> None:
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def take(folder: int, name: str) -> int | None:
    """Make the lock; returns its descriptor for `release`, or None where no lock can be made."""
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
    """The name first: whoever finds it finds it locked."""
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
    """The lock of a process of ours that is gone, now held by us; None when it has vanished.

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
            os.utime(fd)  # others judge by its age
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
    """What one of ours says; None for one of somebody else."""
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
    """Whether the maker of a lock that the kernel has let go of is gone. Of one kernel nothing else need be
    asked: a container's host name and process numbers are its own. Else: another boot of this host, no such
    process, or another one under its number.
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
