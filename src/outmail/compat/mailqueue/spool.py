"""mailqueue-runner's queue directory: its files, their envelopes, its locks.

A Maildir with ``tmp``, ``new`` (waiting) and ``cur`` (in progress). A file begins with header fields for the
envelope, of which ``X-Queue-Meta-End`` is the last one; the message follows, unchanged. Whoever works on a
file holds ``flock`` on it; a file in ``cur`` that nobody has touched for 30 minutes is stale, and waits again
(mailqueue-runner 1.0.0, ``maildir_utils`` and ``queue_runner``).
While we have a file it is in a folder of ours, ``taking``: what we were killed over is not sent by
mailqueue-runner, too, and the next run goes on with it.
Promises: `put` returns when the file is on disk under its name, whole. Neither a file that is locked nor one
that is fresh in ``cur`` is claimed. Loads neither `re` nor the email package until an envelope is read:
`mq-sendmail` starts in milliseconds.
Fails: OSError; `ValueError` from `packed`, and from `unpacked` for what is no such file. Does not: deliver.
"""

from __future__ import annotations

import os
import time

from outmail.system.writing import write_all

TYPE_CHECKING = False  # as in typing, without the price of importing it

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from outmail.compat.foreign_queue import Letter

PROGRAM = "mailqueue-runner"
#: Seconds without a change after which a file in ``cur`` is nobody's any more.
STALE = 30 * 60.0
#: Seconds after which a file in ``tmp`` was left half written by a killed program, as in every Maildir.
LEFT = 36 * 3600.0
FOLDERS = ("tmp", "cur", "new")
TAKING = "taking"

_END = b"X-Queue-Meta-End"
_KNOWN = ("return-path", "envelope-to", "x-queue-date", "x-last-attempt", "x-retries", "x-queue-meta-end")
_count = 0


class Envelope:
    """The fields in front of the message. Dates as they are written (RFC 5322), "" where there is none."""

    def __init__(
        self, sender: str, recipients: Sequence[str], queued: str = "", last: str = "", retries: int = 0
    ) -> None:
        self.sender, self.recipients = sender, tuple(recipients)
        self.queued, self.last, self.retries = queued, last, retries


def packed(envelope: Envelope, content: bytes) -> bytes:
    """The bytes of a file. Raises ValueError for an address that would add a line or a recipient."""
    for address in (envelope.sender, *envelope.recipients):
        if any(letter in address for letter in "\r\n\0"):
            raise ValueError("an address contains a line break")
    if any("," in address for address in envelope.recipients):
        raise ValueError("mailqueue-runner's queue cannot hold an address with a comma")
    lines = [
        f"Return-path: <{envelope.sender}>",
        f"Envelope-to: {','.join(envelope.recipients)}",
        f"X-Queue-Date: {envelope.queued}",
    ]
    if envelope.last:
        lines.append(f"X-Last-Attempt: {envelope.last}")
    if envelope.retries:
        lines.append(f"X-Retries: {envelope.retries}")
    lines.append("X-Queue-Meta-End: end")
    return "".join(line + "\r\n" for line in lines).encode("utf-8", "surrogateescape") + content


def unpacked(data: bytes) -> tuple[Envelope, bytes]:
    """The bytes of a file → its envelope and the message. Raises ValueError with a clause."""
    fields, content = _fields(data)
    for name in ("return-path", "envelope-to"):
        if name not in fields:
            raise ValueError(f"has no field {name.title()}")
    sender = _words(fields["return-path"])
    if "<" in sender:
        sender = sender.partition("<")[2].rpartition(">")[0]
    retries = fields.get("x-retries", b"0").strip()
    if not retries.isdigit():
        raise ValueError("has an X-Retries field that is no number")
    return (
        Envelope(
            sender.strip(),
            _listed(_words(fields["envelope-to"])),
            _words(fields.get("x-queue-date", b"")),
            _words(fields.get("x-last-attempt", b"")),
            int(retries),
        ),
        content,
    )


def _fields(data: bytes) -> tuple[dict[str, bytes], bytes]:
    """(name in lower case → value, the rest)."""
    fields: dict[str, bytes] = {}
    at, last = 0, ""
    while at < len(data):
        end = data.find(b"\n", at) + 1
        if not end:
            break
        line = data[at:end]
        at = end
        if line[:1] in (b" ", b"\t") and last:
            fields[last] += b" " + line.strip()
            continue
        name, colon, value = line.partition(b":")
        last = name.decode("ascii", "replace").lower()
        if not colon or last not in _KNOWN:
            raise ValueError("does not begin with the envelope of mailqueue-runner")
        if last in fields:
            raise ValueError(f"has the field {last.title()} twice")
        fields[last] = value.strip()
        if name.lower() == _END.lower():
            return fields, data[at:]
    raise ValueError("ends before X-Queue-Meta-End: it is not whole")


def _words(value: bytes) -> str:
    """The text of a field; encoded words (RFC 2047) are decoded."""
    from outmail.mime.encoded_words import decoded

    return decoded(value.decode("utf-8", "surrogateescape"))


def _listed(text: str) -> list[str]:
    return [address for part in text.split(",") if (address := part.strip().strip("<>"))]


# -- the directory -------------------------------------------------------------------------------------------


def own_folder() -> str:
    """This user's queue directory, for a configuration that names none."""
    data = os.environ.get("XDG_DATA_HOME")
    if not data:
        data = "/var/lib" if os.geteuid() == 0 else os.path.expanduser("~/.local/share")
    return os.path.join(data, "outmail", "mailqueue")


def make(folder: str) -> None:
    """The directory and its three folders, for their owner alone. Raises `NotStored` when root would make
    them in another user's directory.
    """
    from outmail.system import rights

    rights.refuse(folder, "run this as {user}")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    rights.refuse(folder, "run this as {user}")  # somebody may have made it in between
    for name in FOLDERS:
        os.makedirs(os.path.join(folder, name), mode=0o700, exist_ok=True)


def put(folder: str, data: bytes, part: str = "new") -> str:
    """Leave a file in ``new`` or ``cur``; returns its name. The directory is made where it is missing. In
    another user's directory the file is one that its owner can read. Raises `NotStored` as `make` does.
    """
    make(folder)
    name = _unique()
    half, whole = os.path.join(folder, "tmp", name), os.path.join(folder, part, name)
    mode = 0o600 if os.stat(folder).st_uid == os.geteuid() else 0o644
    fd = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        try:
            write_all(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.link(half, whole)
    finally:
        os.unlink(half)
    _sync(os.path.join(folder, part))
    return name


def _unique() -> str:
    """A name as Python's `mailbox` makes them, which sorts by time."""
    global _count
    _count += 1
    now = time.time()
    return f"{int(now)}.M{int(now % 1 * 1e6)}P{os.getpid()}Q{_count}R{os.urandom(6).hex()}.outmail"


def _sync(folder: str) -> None:
    """The names in the folder are on disk. Where we may write but not read, the whole system is asked."""
    if not os.access(folder, os.R_OK, effective_ids=True):
        os.sync()
        return
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Mailqueue:
    """`outmail.compat.foreign_queue.ForeignQueue` of mailqueue-runner."""

    program = PROGRAM

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def waiting(self) -> Iterable[str]:
        """``new/NAME``, stale ``cur/NAME``, what a killed run of ours had, and what was left in ``tmp``; the
        oldest first.
        """
        os.stat(self.folder)
        found = [f"{part}/{name}" for part in (TAKING, "new") for name in self._names(part)]
        for part, age in (("cur", STALE), ("tmp", LEFT)):
            found += [path for name in self._names(part) if self._is_older(path := f"{part}/{name}", age)]
        return sorted(found, key=lambda path: age_key(os.path.basename(path)))

    def _names(self, part: str) -> list[str]:
        try:
            return [name for name in os.listdir(os.path.join(self.folder, part)) if name[0] != "."]
        except FileNotFoundError:
            return []

    def _changed(self, path: str) -> float:
        """When the file was changed last; now for one that is gone."""
        try:
            status = os.lstat(os.path.join(self.folder, path))
        except FileNotFoundError:
            return time.time()
        return max(status.st_mtime, status.st_ctime)

    def _is_older(self, path: str, age: float) -> bool:
        """A time far in the future is from before a clock was set back."""
        return abs(time.time() - self._changed(path)) > age

    def claim(self, path: str) -> Claimed | None:
        from outmail.compat.foreign_queue import Strange, locked
        from outmail.system.lockfile import same_file

        if path.startswith("tmp/"):
            raise Strange("was left half written by a program that was killed")
        place = os.path.join(self.folder, path)
        fd = locked(place)
        if fd is None:
            return None
        try:
            # Whoever had it may have moved it to cur and back, or removed it, before we got the lock.
            if not same_file(place, fd) or not self._takes(path):
                return None
            claimed, fd = Claimed(self.folder, f"{TAKING}/{os.path.basename(path)}", fd), -1
            return claimed
        finally:
            if fd >= 0:
                os.close(fd)

    def _takes(self, path: str) -> bool:
        """Move a locked file where its program does not look. Not one that has just been touched in ``cur``,
        and not while one of that name is there.
        """
        part, _, name = path.partition("/")
        if part == TAKING:
            return True
        if part == "cur" and not self._is_older(path, STALE):
            return False
        target = os.path.join(self.folder, TAKING, name)
        os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
        if os.path.lexists(target):
            return False
        os.rename(os.path.join(self.folder, path), target)
        return True


def age_key(name: str) -> tuple[float, str]:
    """Sorts names by age: they begin with the second, and ``M`` with the microsecond."""
    second, _, rest = name.partition(".")
    micro = rest[1:].partition("P")[0] if rest[:1] == "M" else ""
    at = int(second) + int(micro or 0) / 1e6 if second.isdecimal() and (micro or "0").isdecimal() else 0.0
    return at, name


class Claimed:
    """A file whose lock we hold (`outmail.compat.foreign_queue.Entry`)."""

    def __init__(self, folder: str, path: str, fd: int) -> None:
        self.path = path
        self._place = os.path.join(folder, path)
        self._fd = fd

    def read(self, most: int) -> Letter:
        from outmail.compat.foreign_queue import Letter, Strange, content_of

        data = content_of(self._fd, most)
        try:
            envelope, content = unpacked(data)
        except ValueError as problem:
            raise Strange(str(problem)) from None
        if content.count(b"\r") != content.count(b"\r\n"):  # mailqueue-runner sends each as a line end
            content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return Letter(envelope.sender, envelope.recipients, content)

    def remove(self) -> None:
        try:
            os.unlink(self._place)
        except FileNotFoundError:
            pass

    def leave(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
