"""repoze.sendmail's queue directory: its files, their envelopes, its locks.

A Maildir: ``tmp`` (half written), ``new`` and ``cur`` (waiting). A file is a message with two fields more,
which are cut off before it is sent: ``X-Actually-From`` and ``X-Actually-To``. Whoever sends ``NAME`` has
made ``.sending-NAME`` beside it, for three hours at most; what the server refused for good becomes
``.rejected-NAME`` (repoze.sendmail 4.4.1 and 4.5, ``queue`` and ``delivery``).
How ours are locked: `flock` on the file, among our own processes, and a *folder* ``.sending-NAME``, which
every version takes for the lock of somebody else. Theirs is a hard link; version 4.5 also takes each for a
message to send, and cannot send a folder.
Promises: what somebody else may be sending is not claimed; a lock whose holder is dead is taken over, of our
own processes at once, of others after their three hours. What a killed process of ours had in its hands, and
what we have stored and cannot remove, is not sent by `qp`, however old it is. Names that begin with a dot are
never sent.
Fails: OSError. Does not: write messages, or deliver.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable

from outmail.compat.foreign_queue import Letter, Strange, content_of, locked
from outmail.mime import splice
from outmail.mime.encoded_words import decoded
from outmail.mime.mailboxes import addresses
from outmail.system.lockfile import same_file

PROGRAM = "repoze.sendmail"
#: Seconds after which the lock of a sender counts for nothing (``MAX_SEND_TIME``).
STALE = 3 * 3600.0
SENDING, REJECTED = ".sending-", ".rejected-"
_FROM, _TO = "x-actually-from", "x-actually-to"


def make(folder: str) -> None:
    """The directory and its three folders, for their owner alone."""
    for part in ("tmp", "new", "cur"):
        os.makedirs(os.path.join(folder, part), mode=0o700, exist_ok=True)


class RepozeQueue:
    """`outmail.compat.foreign_queue.ForeignQueue` of repoze.sendmail."""

    program = PROGRAM

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def waiting(self) -> Iterable[str]:
        """``new/NAME`` and ``cur/NAME``, the oldest first, as `qp` takes them."""
        os.stat(self.folder)
        found = []
        for part in ("new", "cur"):
            for name in self._names(part):
                if name[0] == ".":
                    self._sweep(part, name)
                else:
                    found.append((_changed(self._place(f"{part}/{name}")), name, f"{part}/{name}"))
        return [path for _, _, path in sorted(found)]

    def rejected(self) -> list[str]:
        """Files that `qp` has set aside because their server refused them."""
        return [f"{p}/{name}" for p in ("new", "cur") for name in self._names(p) if name.startswith(REJECTED)]

    def claim(self, path: str) -> Claimed | None:
        place = self._place(path)
        fd = locked(place)
        if fd is None:
            return None
        try:
            lock = os.path.join(os.path.dirname(place), SENDING + os.path.basename(place))
            if not _marked(lock):
                return None
            claimed, fd = Claimed(path, place, lock, fd), -1
            if same_file(place, claimed.fd):
                return claimed
            claimed.leave()  # somebody has sent it, and removed it, a moment ago
            return None
        finally:
            if fd >= 0:
                os.close(fd)

    def _place(self, path: str) -> str:
        return os.path.join(self.folder, path)

    def _names(self, part: str) -> list[str]:
        try:
            return os.listdir(self._place(part))
        except FileNotFoundError:
            return []

    def _sweep(self, part: str, name: str) -> None:
        """Remove a lock of ours whose message is gone: its holder was killed in between."""
        message = name.removeprefix(SENDING)
        if message != name and not os.path.lexists(self._place(f"{part}/{message}")):
            try:
                os.rmdir(self._place(f"{part}/{name}"))
            except OSError:  # a link of `qp`, or gone
                pass


def _changed(path: str) -> float:
    try:
        return os.lstat(path).st_mtime
    except FileNotFoundError:
        return 0.0


def _marked(lock: str) -> bool:
    """Make the lock of a message that we hold by `flock`; False when somebody else has made it."""
    for _ in range(2):
        try:
            os.mkdir(lock, 0o700)
            return True
        except FileExistsError:
            pass
        try:
            found = os.lstat(lock)
            if stat.S_ISDIR(found.st_mode):
                return True  # of a process of ours that is dead, as its `flock` is free
            if abs(time.time() - found.st_mtime) <= STALE:
                return False
            os.unlink(lock)
        except FileNotFoundError:
            pass
    return False


class Claimed:
    """A file that we hold (`outmail.compat.foreign_queue.Entry`)."""

    def __init__(self, path: str, place: str, lock: str, fd: int) -> None:
        self.path, self.fd = path, fd
        self._place, self._lock = place, lock
        self._stored = False

    def read(self, most: int) -> Letter:
        return letter_of(content_of(self.fd, most))

    def remove(self) -> None:
        self._stored = True
        try:
            os.unlink(self._place)
        except FileNotFoundError:
            pass
        self._stored = False

    def leave(self) -> None:
        """The lock stays if the message is stored and its file could not be removed: `qp` would send it."""
        if self.fd < 0:
            return
        try:
            if not self._stored:
                os.rmdir(self._lock)
        except OSError:  # the folder of the queue was removed, perhaps; a lock of ours holds nobody up
            pass
        os.close(self.fd)
        self.fd = -1


def letter_of(data: bytes) -> Letter:
    """The bytes of a file → envelope and message. Bcc is cut, as in `Outbox.send`; a bare CR is a line end,
    as for repoze.sendmail, which reads text. Raises `Strange`.
    """
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    try:
        content = splice.normalised(data)
        splice.check_first(content)
        splice.check_head(content)
    except splice.ContentError as problem:
        raise Strange(f"is no message of repoze.sendmail: {problem}") from None
    found: dict[str, str] = {}
    for name, field in splice.fields(content):
        if name in (_FROM, _TO):
            if name in found:
                raise Strange(f"has the field {name.title()} twice, and nobody knows which one is true")
            found[name] = _value(field)
    recipients, sender = addresses(found.get(_TO, "")), addresses(found.get(_FROM, ""))
    if not recipients:
        raise Strange("has no recipient in a field X-Actually-To")
    if len(sender) > 1:
        raise Strange("has several addresses in X-Actually-From")
    return Letter("".join(sender), recipients, splice.cut(content, _FROM, _TO, "bcc"))


def _value(field: bytes) -> str:
    """The text of a field; repoze.sendmail writes the addresses as encoded words (RFC 2047)."""
    text = field.partition(b":")[2].decode("utf-8", "surrogateescape").replace("\r\n", "").strip()
    try:
        return decoded(text)
    except ValueError as problem:
        raise Strange(str(problem)) from None
