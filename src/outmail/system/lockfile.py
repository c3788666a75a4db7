"""A file whose lock proves that a process is alive: the kernel releases the lock when the process dies,
however it dies.

Engines, runs of jobs, and spools of log records are known to be alive or dead by such files.
Promises: a file gets its name only when it is locked. Only this process holds it (a forked child closes its
copy, and a new program inherits none: PEP 446). Where ``fcntl`` does not exist, files are made without a
lock, and nothing is ever found dead. Windows neither renames nor removes an open file, so without locks a
file gets its name at once and is closed before it is removed.
Fails: OSError. Does not: import slow modules (`outmail watch` uses it), or work on network file systems.
"""

from __future__ import annotations

import os
import time
import weakref

#: Seconds for which others may disturb the making of a file.
PATIENCE = 5.0

_open: weakref.WeakSet[LockFile] = weakref.WeakSet()


def _after_fork() -> None:
    for held in list(_open):
        held.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class LockFile:
    """``path`` is made as ``temporary`` and renamed when it is locked and has its ``content``. ``fd`` is -1
    when the file is no longer ours.
    """

    def __init__(self, temporary: str, path: str, content: bytes = b"", flags: int = 0) -> None:
        self.path = path
        temporary = temporary if can_lock() else path
        self.fd = _locked(temporary, flags)
        try:
            if content:
                os.write(self.fd, content)
            if temporary != path:
                os.rename(temporary, path)
        except OSError:
            os.close(self.fd)
            raise
        _open.add(self)

    def end(self) -> None:
        """What the file stood for has ended and is recorded: remove it."""
        if self.fd < 0:
            return
        if not can_lock():
            self.abandon()
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            pass
        self.abandon()

    def abandon(self) -> None:
        """Close the descriptor, and leave the file to whoever finds it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        _open.discard(self)


def clock_id() -> str:
    """Identifies the clock that counts from the machine's start: the boot, and, where containers have clocks
    of their own, the container.
    """
    try:
        return f"{boot_id()} {os.readlink('/proc/self/ns/time')}"
    except OSError:
        return boot_id()


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """When this returns, names that were made or changed in the folder are on disk. Windows opens no folders:
    there the file system's own journal has to do.
    """
    if not hasattr(os, "O_DIRECTORY"):
        return
    fd = os.open(folder or ".", os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_once(path: str, content: bytes, mode: int) -> None:
    """Write the content to disk, then give the file its name. A file that has that name already stays."""
    temporary = f"{path}.{os.getpid()}.{os.urandom(4).hex()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with open(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(fd)
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        sync_folder(os.path.dirname(path))
    finally:
        os.unlink(temporary)


def can_lock() -> bool:
    """True where the system has ``flock``."""
    try:
        import fcntl  # noqa: F401
    except ImportError:
        return False
    return True


def try_lock(fd: int) -> bool:
    """As `take_lock`; also False on a file system without locks."""
    try:
        return take_lock(fd)
    except OSError:
        return False


def take_lock(fd: int) -> bool:
    """Take the lock if nobody holds it. Raises OSError on a file system without locks; NFS locks only what is
    open for writing (flock(2)).
    """
    if not can_lock():
        return False
    import fcntl

    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def same_file(path: str, fd: int) -> bool:
    """True when the name still means this open file."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return False
    return (found.st_dev, found.st_ino) == (os.fstat(fd).st_dev, os.fstat(fd).st_ino)


def boot_id() -> str:
    """Identifies one boot of the machine; "" where the system does not say."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return ""


def started_at(pid: int) -> str:
    """When a process started, in the kernel's ticks. It distinguishes the process from a later one with the
    same number.

    "" means that the process is gone, or the system does not say.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state, *rest = file.read().rpartition(b")")[2].split()
    except (OSError, ValueError):
        return ""
    return "" if state in b"ZX" else rest[18].decode()


def _locked(temporary: str, flags: int) -> int:
    """A new locked file. Who clears up may lock or remove it between its making and its locking; then another
    one is made, after a moment in which they can go on.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | flags, 0o600)
        if not can_lock() or (try_lock(fd) and same_file(temporary, fd)):
            return fd
        os.close(fd)
        if time.monotonic() > deadline:
            raise OSError(f"others keep locking or removing {temporary}, or nothing can be locked there")
        time.sleep(0.001)
