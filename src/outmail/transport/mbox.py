"""Appends to an mbox so that a crash leaves no half message in it.

How: both locks are held (`dotlock`, and fcntl's on the file). Before anything is appended, a journal file
beside the mbox (``.<mbox>.outmail``) gets the mbox's inode, its length and the whole entry, and is flushed.
Where we may not write into that folder, the journal is in ``$XDG_STATE_HOME/outmail/mbox``
(``~/.local/state``). The next delivery that finds a journal cuts the mbox back to that length, but only if
the inode is the same and what follows is an incomplete beginning of the entry.
Promises: an entry is there whole or not at all. If another program has broken the lock and written behind a
half entry, nothing is cut, and the next entry still begins on its own line after a blank one.
Fails: `OSError`, and nothing is there; `places.Unsettled`; `Locked` at once when somebody else writes. Does
not: wait, or know users.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import stat
import threading
from collections.abc import Iterator

from outmail.system.writing import write_all
from outmail.transport import dotlock, places
from outmail.transport.dotlock import Locked

log = logging.getLogger("outmail.mailbox")

_MARK = b"outmail mbox journal 1\n"
#: One thread of this process writes a mailbox at a time, because fcntl's locks do not exclude threads of one
#: process. Two mailboxes may share one of these locks.
_threads = tuple(threading.Lock() for _ in range(64))
#: Seconds that one of our threads may take to write a message.
_WRITING = 30.0


def _after_fork() -> None:
    global _threads
    _threads = tuple(threading.Lock() for _ in range(64))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def append(folder: int, name: str, where: str, entry: bytes, owner: places.Owner) -> None:
    """Append one entry (From line to blank line) to ``name`` in ``folder``. ``where`` is its path, for
    people.
    """
    with _only_thread(where), _locked(folder, name):
        for _ in range(10):
            fd, made = places.open_file(folder, name, where, owner)
            try:
                _lock(fd, where)
                if not places.names(folder, name, fd):
                    continue  # a mail reader has put another file in its place
                if made:
                    os.fsync(folder)
                with _journal_folder(folder, name, where) as (place, journal):
                    _recover(fd, place, journal, where)
                    _append(fd, place, journal, entry)
                return
            finally:
                os.close(fd)
    raise Locked(errno.EAGAIN, "another program keeps replacing the mailbox")


@contextlib.contextmanager
def _only_thread(where: str) -> Iterator[None]:
    lock = _threads[hash(where) % len(_threads)]
    if not lock.acquire(timeout=_WRITING):
        raise Locked(errno.EAGAIN, "another delivery of this program to the mailbox takes very long")
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _locked(folder: int, name: str) -> Iterator[None]:
    lock = dotlock.take(folder, f"{name}.lock")
    try:
        yield
    finally:
        if lock is not None:
            dotlock.release(folder, f"{name}.lock", lock)


def _lock(fd: int, where: str) -> None:
    import fcntl

    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        if problem.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        raise Locked(errno.EAGAIN, f"another program has locked {where}") from None


def _append(fd: int, place: int, journal: str, entry: bytes) -> None:
    size = os.fstat(fd).st_size
    entry = _separator(fd, size) + entry
    _write_journal(place, journal, os.fstat(fd).st_ino, size, entry)
    os.lseek(fd, size, os.SEEK_SET)
    whole = False
    try:
        write_all(fd, entry)
        whole = True
        os.fsync(fd)
    except OSError as problem:
        try:
            os.ftruncate(fd, size)
        except OSError:  # the journal stays: the next delivery cuts off a part, but never a whole entry
            if whole:
                raise places.Unsettled(
                    problem.errno, f"it is written, but may not be on disk: {problem.strerror}"
                ) from problem
            raise problem from None
        os.fsync(fd)
        places.remove(place, journal)
        raise
    places.remove(place, journal)


def _separator(fd: int, size: int) -> bytes:
    """The line ends that make the next line the first one after a blank line, whatever the file ends with."""
    end = os.pread(fd, 2, max(0, size - 2))
    if not end or end == b"\n\n":
        return b""
    return b"\n" if end.endswith(b"\n") else b"\n\n"


# -- the journal ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _journal_folder(folder: int, name: str, where: str) -> Iterator[tuple[int, str]]:
    """(folder, name) of the journal of an mbox."""
    if os.access(".", os.W_OK, dir_fd=folder, effective_ids=os.access in os.supports_effective_ids):
        yield folder, f".{name}.outmail"
        return
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    kept = os.path.join(state, "outmail", "mbox")
    try:
        place = places.open_folder(kept, make=True)
    except OSError as problem:
        raise OSError(
            problem.errno,
            f"neither its folder nor {kept} may be written ({problem.strerror}), so an interrupted write "
            "could not be undone",
        ) from None
    try:
        yield place, hashlib.sha256(os.path.realpath(where).encode()).hexdigest()
    finally:
        os.close(place)


def _write_journal(place: int, journal: str, inode: int, length: int, entry: bytes) -> None:
    head = json.dumps({"inode": inode, "length": length, "entry": len(entry)}).encode()
    with places.Unseen(place, _MARK + head + b"\n" + entry) as file:
        file.appear(place, journal)
    os.fsync(place)


def _recover(fd: int, place: int, journal: str, where: str) -> None:
    """Undo what a killed process of ours began to append."""
    try:
        inode, length, entry = _read_journal(place, journal, where)
    except FileNotFoundError:
        return
    cut = partial(os.fstat(fd).st_ino == inode, os.pread(fd, len(entry) + 1, length), entry)
    if cut:
        os.ftruncate(fd, length)
        os.fsync(fd)
        log.warning(
            "%s: removed %d bytes of a message whose delivery was interrupted; it is delivered again",
            where,
            cut,
        )
    os.unlink(journal, dir_fd=place)


def partial(same: bool, behind: bytes, entry: bytes) -> int:
    """How many bytes an incomplete entry has; 0 when the entry is whole, or something else is there."""
    return len(behind) if same and len(behind) < len(entry) and entry.startswith(behind) else 0


def _read_journal(place: int, journal: str, where: str) -> tuple[int, int, bytes]:
    """(inode, length, entry). The entry is empty when the journal is incomplete; then nothing was
    appended.
    """
    try:
        fd = os.open(journal, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=place)
    except FileNotFoundError:
        raise
    except OSError as problem:
        raise places.Unsafe(
            f"the journal {journal} of {where} cannot be read ({problem.strerror}): see who made it, and "
            "remove it"
        ) from None
    with open(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise places.Unsafe(
                f"the journal {journal} of {where} is not a file of outmail's (uid {found.st_uid}): see who "
                "made it, and remove it"
            )
        mark, head, entry = file.readline(len(_MARK)), file.readline(200), file.read()
    try:
        said = json.loads(head)
        whole = mark == _MARK and said["entry"] == len(entry)
        return (int(said["inode"]), int(said["length"]), entry) if whole else (0, 0, b"")
    except (ValueError, KeyError, TypeError):
        return 0, 0, b""
