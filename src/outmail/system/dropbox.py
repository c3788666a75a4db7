"""A folder in which every user of the machine may leave a file for one service, and read nobody else's.

The folder belongs to the service and has the mode 3777: sticky, so that only its owner and a file's owner
remove a file; setgid, so that files of mode 0640 can be read by the service's group and by nobody else.
Promises: `put` returns when the file is on disk under its name, whole; when it raises, there is no such file.
Of what lies in the folder only regular files with one name are read (`Folder.take`), which were made there
and are no larger than was asked for; nothing is followed, waited for, or believed: whose a file is, says its
owner in the file system. Names are random, so nobody can be in the way. What is changed, moved or removed
while it is read harms its owner at most. Who is looking holds the folder itself, not its name.
Fails: `OSError` from `put`, and from what looks, where the trouble is not one file's; `Strange` and `Later`
for one file. Does not: know what is in a file. Where ``os.O_NOFOLLOW`` does not exist there is no such
folder.
"""

from __future__ import annotations

import os
import time

from outmail.system.writing import write_all

#: Where a machine's service has its own.
FOLDER = "/var/spool/outmail/drop"
_NAME = frozenset("0123456789abcdef")
_LENGTH = 12 + 1 + 24
_HALF = ".half"
#: Milliseconds after which a half written file is nobody's any more.
STALE = 86_400_000
#: Of a file that is too large so much is read, to know what it was.
PREFIX = 64 * 1024


class Strange(Exception):
    """This is no file that `put` has made, and never will be one."""


class TooLarge(Strange):
    """It has more bytes than were asked for. ``prefix`` are its first ones."""

    def __init__(self, size: int, most: int, uid: int, prefix: bytes) -> None:
        super().__init__(f"has {size} bytes, more than {most}")
        self.uid = uid
        self.prefix = prefix


class Later(Exception):
    """The file cannot be read now, and others can."""


def is_open(folder: str) -> bool:
    """True where this process may leave a file."""
    return hasattr(os, "O_NOFOLLOW") and os.access(folder, os.W_OK | os.X_OK)


def put(folder: str, data: bytes) -> str:
    """Leave a file; returns its name."""
    name = f"{time.time_ns() // 1_000_000:012x}-{os.urandom(12).hex()}"
    half, whole = f"{folder}/{name}{_HALF}", f"{folder}/{name}"
    fd = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
    made = half
    try:
        try:
            os.fchmod(fd, 0o640)  # whatever the umask: the service's group must be able to read it
            write_all(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(half, whole)
        made = whole
        _sync(folder)
    except BaseException:
        if not _unmade(made) and made is whole:
            return name  # the service has it already
        raise
    return name


def key_of(uid: int, name: str) -> str:
    """What identifies the message in the service's store, so that it is taken once."""
    return f"drop:{uid}:{name}"


def _unmade(path: str) -> bool:
    """Remove it. False when it is gone."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def _sync(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def is_name(name: str) -> bool:
    """True for what `put` calls a file."""
    return len(name) == _LENGTH and name[12] == "-" and _NAME.issuperset(name.replace("-", "", 1))


def left(folder: str) -> list[tuple[str, int, int, int]]:
    """(name, userid, bytes, Unix ms) of each file that waits. Nothing is opened. Whoever owns a file sets its
    date: one that lies in the future counts as now. Raises OSError.
    """
    import stat

    found, now = [], time.time_ns() // 1_000_000
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:  # it has vanished
                continue
            if is_name(entry.name) and stat.S_ISREG(status.st_mode):
                at = max(0, min(status.st_mtime_ns // 1_000_000, now))
                found.append((entry.name, status.st_uid, status.st_size, at))
    return sorted(found)


def doubts(folder: str) -> str:
    """What is wrong with the folder's mode, as a sentence; "" for nothing. Raises OSError."""
    import stat

    status = os.stat(folder)
    wanted = stat.S_ISVTX | stat.S_ISGID | 0o777
    if stat.S_IMODE(status.st_mode) == wanted:
        return ""
    return (
        f"{folder} has the mode {stat.S_IMODE(status.st_mode):04o} instead of 3777, so that users may remove "
        f"or read each other's mail, or leave none: chmod 3777 {folder}"
    )


class Folder:
    """The folder as its owner sees it, open until `close`. Raises OSError where it is not this process's."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        status = os.fstat(self._fd)
        self._gid = status.st_gid if status.st_mode & 0o2000 else -1
        if status.st_uid != os.geteuid():
            self.close()
            raise PermissionError(1, f"it belongs to userid {status.st_uid} now", path)

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def changed(self) -> int:
        """When its list of names was changed last, in ns of the file system's clock."""
        return os.fstat(self._fd).st_mtime_ns

    def waiting(self, most: int) -> dict[int, list[str]]:
        """Userid → names of files that wait, the oldest first and at most so many. What nobody can want any
        more is removed.
        """
        names: dict[int, list[str]] = {}
        with os.scandir(self._fd) as entries:
            for entry in entries:
                if is_name(entry.name):
                    try:
                        mine = names.setdefault(entry.stat(follow_symlinks=False).st_uid, [])
                    except OSError:  # it has vanished; or its disk is in trouble, and others are not
                        continue
                    mine.append(entry.name)
                    if len(mine) > 2 * most:
                        mine[:] = sorted(mine)[:most]
                elif entry.name.endswith(_HALF):
                    self._sweep(entry.name)
        return {uid: sorted(mine)[:most] for uid, mine in names.items()}

    def _sweep(self, half: str) -> None:
        """Remove what a killed process has left half written a day ago."""
        name = half.removesuffix(_HALF)
        if is_name(name) and int(name[:12], 16) < time.time_ns() // 1_000_000 - STALE:
            try:
                os.unlink(half, dir_fd=self._fd)
            except OSError:
                pass  # a folder of that name, or gone: harmless

    def take(self, name: str, most: int) -> tuple[int, bytes]:
        """A file's owner and content; FileNotFoundError when it is gone. ``most``: bytes that are read."""
        import errno
        import stat

        if not stat.S_ISREG(os.stat(name, dir_fd=self._fd, follow_symlinks=False).st_mode):
            raise Strange("is not a regular file")  # and not opened: opening a device may act
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(name, flags, dir_fd=self._fd)
        except FileNotFoundError:
            raise
        except OSError as problem:
            if problem.errno in (errno.ELOOP, errno.ENXIO, errno.EACCES, errno.EPERM):
                raise Strange(f"cannot be opened ({problem.strerror})") from None
            raise _judged(problem) from None
        try:
            self._check(os.fstat(fd))
            return _content(fd, most)
        except OSError as problem:
            raise _judged(problem) from None
        finally:
            os.close(fd)

    def _check(self, status: os.stat_result) -> None:
        import stat

        if not stat.S_ISREG(status.st_mode):
            raise Strange("is not a regular file")
        if status.st_nlink != 1:
            raise Strange("has a second name")
        if self._gid not in (-1, status.st_gid):
            raise Strange("was made elsewhere and moved here: its group is not the folder's")

    def remove(self, name: str) -> None:
        """What is inside is safe elsewhere."""
        try:
            os.unlink(name, dir_fd=self._fd)
        except FileNotFoundError:
            pass

    def put_aside(self, name: str) -> str:
        """Give it the name `aside`, which nobody takes; returns that. Where something has that name already,
        random letters are added. So no file of another user is replaced: not even by a user who makes one
        under that name at this moment, because the name has the owner's number.
        """
        uid = os.stat(name, dir_fd=self._fd, follow_symlinks=False).st_uid
        new = aside(name, uid)
        if self._has(new):
            new = aside(name, uid, f".{os.urandom(6).hex()}")
        os.rename(name, new, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        return new

    def _has(self, name: str) -> bool:
        try:
            os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True


def aside(name: str, uid: int, more: str = "") -> str:
    """What a file of this user is called when it is put aside."""
    return f"{name}.{uid}{more}.bad"


def _content(fd: int, most: int) -> tuple[int, bytes]:
    status = os.fstat(fd)
    with open(fd, "rb", closefd=False) as file:
        if status.st_size > most:
            raise TooLarge(status.st_size, most, status.st_uid, file.read(PREFIX))
        return status.st_uid, file.read(most)


def _judged(problem: OSError) -> Exception:
    """This process's own trouble concerns all files; any other one this file only."""
    import errno

    if problem.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        return problem
    return Later(problem.strerror or str(problem))
