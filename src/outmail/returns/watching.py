"""Mailboxes in which loopback copies arrive: a Maildir, an mbox, or one on an IMAP server. The service looks
at them.

How: `Watch.look` is called again and again, on a thread of its own, and records what is new. Messages of a
Maildir are moved from ``new`` to ``cur`` (flag S) when they are recorded. Of an mbox, a note says how far it
was read (length, inode, and a hash of the bytes before that place); the mbox is not changed. `imap` has the
third kind.
Promises: a mail is recorded before the mailbox is changed. After a crash in between it is recorded again, as
a duplicate. What cannot be read is named once in the log and skipped; nothing stops delivery. One look takes
at most `MOST` mails and reads only what is needed of each.
Fails: `OSError` and `StoreError` from `look`; the next look goes on.
Does not: delete mail, or lock an mbox. A mail that is being appended is read when it is complete: when
another one follows, or it has not grown since the last look.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import threading
from typing import Any, Protocol

from outmail.mime import trace
from outmail.returns.arrivals import Arrivals
from outmail.store import Store, StoreError

log = logging.getLogger("outmail.loopback")

#: How many mails one look takes, and how many bytes of an mbox it reads.
MOST = 1000
MOST_BYTES = 16 * 1024 * 1024
#: How many bytes before the present place identify an mbox.
_KNOWN = 64


class Watch(Protocol):
    """A mailbox in which copies arrive."""

    def look(self) -> int:
        """Record what is new. Returns how many mails."""


class Maildir:
    """A Maildir (``path`` has ``new`` and ``cur``)."""

    def __init__(self, path: str, arrivals: Arrivals) -> None:
        self.path = path
        self._arrivals = arrivals
        self._named: set[str] = set()

    def look(self) -> int:
        """Record what is in ``new``."""
        folder = os.path.join(self.path, "new")
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
        count = 0
        for name in names[:MOST]:
            content = self._read(os.path.join(folder, name))
            if content is None:
                continue
            self._arrivals.take(content)
            count += 1
            base = name.partition(":")[0]
            os.rename(os.path.join(folder, name), os.path.join(self.path, "cur", f"{base}:2,S"))
        return count

    def _read(self, path: str) -> bytes | None:
        """The beginning of a regular file; None for anything else, because that could block us."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(fd, "rb") as file:
                if stat.S_ISREG(os.fstat(fd).st_mode):
                    return file.read(trace.MOST)
            why = "it is no regular file"
        except FileNotFoundError:
            return None
        except OSError as problem:
            why = problem.strerror or str(problem)
        if path not in self._named:
            self._named.add(path)
            log.warning("%s is skipped: %s", path, why)
        return None


class Mbox:
    """An mbox to which others append, and which they may empty. A note in the store says how far it was
    read.
    """

    def __init__(self, path: str, arrivals: Arrivals, store: Store) -> None:
        self.path = path
        self._arrivals = arrivals
        self._store = store
        #: Its length at the last look.
        self._before = -1

    def look(self) -> int:
        """Record the mails after the place up to which it was read."""
        fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb"):
            here = os.fstat(fd)
            if not stat.S_ISREG(here.st_mode):
                raise OSError(0, "it is no regular file", self.path)
            at = self._place(fd, here)
            quiet, self._before = here.st_size == self._before, here.st_size
            data = os.pread(fd, MOST_BYTES, at)
            whole = quiet and at + len(data) == here.st_size
            mails, used = entries(data, last=whole)
            if not mails and len(data) == MOST_BYTES:  # one mail that is longer; its header is in the data
                mails, used = [data], len(data)
            for mail in mails[:MOST]:
                if mail.startswith(b"From "):
                    self._arrivals.take(mail.partition(b"\n")[2])
            if len(mails) > MOST:
                used = sum(map(len, mails[:MOST]))
            if used:
                self._note(fd, here, at + used)
        return len(mails[:MOST])

    def _place(self, fd: int, here: os.stat_result) -> int:
        """Where to go on. At the beginning, if it is another file, or was emptied or rewritten."""
        found = self._store.read(self._store.verbs.note_get("mbox", self.path))
        note: dict[str, Any] = found[0] if found else {}
        at = int(note.get("at", 0))
        same = (
            note.get("inode") == here.st_ino and at <= here.st_size and note.get("before") == _known(fd, at)
        )
        return at if same else 0

    def _note(self, fd: int, here: os.stat_result, at: int) -> None:
        note = {"at": at, "inode": here.st_ino, "before": _known(fd, at)}
        self._store.run(self._store.verbs.note_put("mbox", self.path, note))


def _known(fd: int, at: int) -> str:
    return hashlib.sha256(os.pread(fd, min(_KNOWN, at), max(0, at - _KNOWN))).hexdigest()


def entries(data: bytes, *, last: bool) -> tuple[list[bytes], int]:
    """(complete entries, the bytes that they take). An entry begins with a line ``From `` at the beginning or
    after an empty line. The last entry is complete only if the caller says so.
    """
    starts = [0]
    at = 0
    while (at := min(_found(data, b"\n\nFrom ", at, 2), _found(data, b"\r\n\r\nFrom ", at, 4))) < len(data):
        starts.append(at)
    ends = [*starts[1:], len(data)] if last and data else starts[1:]
    return [data[start:end] for start, end in zip(starts, ends)], ends[-1] if ends else 0


def _found(data: bytes, mark: bytes, after: int, skip: int) -> int:
    at = data.find(mark, max(0, after - skip + 1) if after else 0)
    return len(data) if at < 0 else at + skip


#: Seconds between two looks, and after a failed one.
POLL = 5.0
PAUSE = 30.0


class Idling(Watch, Protocol):
    """A mailbox that can wait for new mail."""

    def wait(self, seconds: float) -> bool:
        """Wait for new mail. False where that is not possible."""

    def wake(self) -> None:
        """Wake the thread that waits. May be called from another thread."""


class Watcher:
    """A thread for one mailbox."""

    def __init__(self, watch: Watch | Idling, name: str) -> None:
        self._watch = watch
        self._name = name
        self._over = threading.Event()
        self._told = ""
        self._thread = threading.Thread(target=self._work, name=f"outmail-watch-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end. It finishes what it has begun. Returns within seconds."""
        self._over.set()
        if hasattr(self._watch, "wake"):
            self._watch.wake()
        self._thread.join(5.0)

    def _work(self) -> None:
        while not self._over.is_set():
            pause = POLL if self._looked() else PAUSE
            self._over.wait(pause)

    def _looked(self) -> bool:
        """Record what is there, and wait for more where that is possible. False when the mailbox should be
        left alone for a while.
        """
        try:
            more = self._watch.look() == MOST
            self._told = ""
            while not more and hasattr(self._watch, "wait") and not self._over.is_set():
                if not self._watch.wait(PAUSE * 10):
                    break
                self._watch.look()
        except (OSError, StoreError) as problem:
            why = getattr(problem, "strerror", None) or str(problem)
            if why != self._told and not self._over.is_set():
                self._told = why
                log.warning(
                    "loopback copies cannot be fetched from %s (%s); it is tried again", self._name, why
                )
            return False
        except Exception:
            log.exception("a bug of outmail while it looked at %s", self._name)
            return False
        return True
