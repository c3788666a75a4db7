"""An engine's file beside the store: the proof that the engine is alive, and its record of what it had begun.

``<store>.engine.<uuid>``: the engine holds ``flock`` on this file as long as it lives; the kernel releases
the lock when it dies. The file has a head of 16 bytes, then notes of 16 bytes (message, recipient, lease).
There is a note for each final dot that is about to be sent; all notes of a turn are one ``write`` before its
dots. Where the transaction has a loopback copy, its number stands above the recipient's (`PART`). And there
is a note for each delivery before a session works on it; its recipient is `BEGUN`. The file need not be
flushed: it must survive a killed process, and after a power cut (another boot id) all leases of the engine
count as noted anyway.
Promises: the file appears under its name only when it is locked. Only the holder of the lock removes it. A
forked child closes its copy of the descriptor, so that the lock ends with the engine. A file that cannot be
read does not prove a death; it is named in the log once and does not hinder other engines. If a file contains
anything but notes, every lease of its engine counts as noted.
Fails: `OSError` from `note`: then no dot may be sent. Does not: work where ``fcntl`` does not exist (an
engine needs it).
"""

from __future__ import annotations

import logging
import os
import stat
import struct
from collections.abc import Iterable, Iterator, Sequence
from glob import escape, glob

from outmail.errors import ConfigError
from outmail.model import Delivery, Leased
from outmail.store import Store, StoreError
from outmail.store.verbs.delivery import BEGUN, HARMLESS
from outmail.store.verbs.loopback import PART, is_part
from outmail.system.lockfile import LockFile, can_lock, same_file, try_lock

log = logging.getLogger("outmail")

_NOTE = struct.Struct("<QII")
_HEAD = b"outmail engine 1"
#: No message has such a high number, and no note so many recipients. A file that says so was not written by
#: an engine.
_MESSAGES, _RECIPIENTS = 1 << 56, 1 << PART
#: When the live notes begin behind this many bytes, they are written again at the front (compaction).
_FRONT = 512 * 1024

Note = tuple[int, int, int]
#: Files that have been named in the log because they cannot be read.
_named: set[str] = set()


class OwnerFile:
    """The file of a living engine."""

    def __init__(self, store_path: str, uuid: str) -> None:
        if not can_lock():
            raise ConfigError(
                "an engine needs file locks (fcntl), which this system does not have; use deliver='never' "
                "here"
            )
        self._held = LockFile(f"{store_path}.engine-new.{uuid}", f"{store_path}.engine.{uuid}", _HEAD)
        self.path = self._held.path
        self._offset = len(_HEAD)
        self._live: dict[Note, int] = {}

    def note(self, notes: Iterable[Note]) -> None:
        """Record what is about to be done."""
        fresh = list(notes)
        data = b"".join([_NOTE.pack(*note) for note in fresh])
        if self._held.fd < 0 or os.pwrite(self._held.fd, data, self._offset) != len(data):
            raise OSError("the record of final dots could not be written whole")
        for i, note in enumerate(fresh):
            self._live[note] = self._offset + i * _NOTE.size
        self._offset += len(data)

    def forget(self, notes: Iterable[Note]) -> None:
        """These are settled: their notes are not needed any more."""
        for note in notes:
            self._live.pop(note, None)
        if self._offset > 2 * _FRONT:
            self._compact()

    def _compact(self) -> None:
        """Write the live notes at the front and cut the file behind them. Until the cut both copies exist."""
        data = b"".join([_NOTE.pack(*note) for note in self._live])
        if len(_HEAD) + len(data) > _FRONT or min(self._live.values(), default=_FRONT) < _FRONT:
            return
        if os.pwrite(self._held.fd, data, len(_HEAD)) == len(data):
            os.ftruncate(self._held.fd, len(_HEAD) + len(data))
            self._live = {note: len(_HEAD) + i * _NOTE.size for i, note in enumerate(self._live)}
            self._offset = len(_HEAD) + len(data)

    def close(self) -> None:
        """End in order. Only when nothing is leased any more."""
        self._held.end()

    def abandon(self) -> None:
        """Close the descriptor and leave the file to whoever reclaims it."""
        self._held.abandon()


class Owner:
    """An engine's registration: its number in the store and its locked file."""

    #: True when others may have taken what it had leased. Then its leases are void, and the engine registers
    #: again.
    lost = False

    def __init__(self, store: Store, id: int, file: OwnerFile) -> None:
        self.id = id
        self.uuid = file.path.rpartition(".")[2]
        self.file = file
        self._store = store

    def stands(self) -> bool:
        """True while nobody else can have taken what it leased. Here: as long as it holds its file, however
        long it is stopped.
        """
        return True

    def begin(self, delivery: Delivery) -> None:
        """A session is about to work on this. If the note cannot be written the session goes on all the same:
        the note only serves to find suspects.
        """
        try:
            self.file.note([(delivery.seq, BEGUN, delivery.lease)])
        except OSError:
            pass

    def harmless(self, delivery: Delivery) -> None:
        """A session has worked on this for a while and the engine is still alive: it is no suspect."""
        try:
            self.file.note([(delivery.seq, HARMLESS, delivery.lease)])
        except OSError:
            pass

    def note(self, notes: Iterable[tuple[Delivery, Sequence[Leased]]]) -> None:
        """Record final dots, by one write."""
        self.file.note(
            [
                (delivery.seq, r.n | r.copy << PART, delivery.lease)
                for delivery, recipients in notes
                for r in recipients
            ]
        )

    def forget(self, deliveries: Iterable[Delivery]) -> None:
        """These leases have ended."""
        notes: list[Note] = []
        for delivery in deliveries:
            notes += [
                (delivery.seq, n, delivery.lease)
                for n in (BEGUN, HARMLESS, *[r.n | r.copy << PART for r in delivery.recipients])
            ]
        self.file.forget(notes)

    def close(self) -> None:
        """End in order. While leases are left the file stays, with its record of dots, for whoever takes them
        back.
        """
        try:
            left = self._store.run(self._store.verbs.forget_owner(self.id), wait=2.0)
        except StoreError:
            left = False
        if left:
            self.file.close()
        else:
            self.file.abandon()


class DeadFile:
    """The file of a dead engine or upload. We hold its lock until its work is taken back."""

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.uuid = path.rpartition(".")[2]
        self._fd = fd

    def notes(self) -> set[Note] | None:
        """The notes in it. None when they cannot be read: then every lease counts as noted."""
        try:
            data = os.pread(self._fd, os.fstat(self._fd).st_size, 0)
        except OSError as problem:
            _name(
                self.path,
                f"cannot be read ({problem.strerror})",
                "what that engine had leased counts as sent",
            )
            return None
        if data[: len(_HEAD)] == _HEAD and len(data) % _NOTE.size == 0:
            notes = set(_NOTE.iter_unpack(data[len(_HEAD) :]))
            if all(
                0 < message < _MESSAGES
                and (n in (BEGUN, HARMLESS) or (n % _RECIPIENTS and is_part(n >> PART)))
                and lease
                for message, n, lease in notes
            ):
                return notes
        _name(self.path, "does not hold what an engine writes", "what that engine had leased counts as sent")
        return None

    def remove(self) -> None:
        _unlink(self.path)
        self.close()

    def close(self) -> None:
        os.close(self._fd)


def dead_files(store_path: str, kind: str = "engine") -> Iterator[DeadFile]:
    """The files of this kind that nobody has locked. The caller closes or removes each. Files that cannot be
    opened are skipped.
    """
    for path in sorted(glob(f"{escape(store_path)}.{kind}.*") + glob(f"{escape(store_path)}.{kind}-new.*")):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            continue
        except OSError as problem:
            _name(path, f"cannot be opened ({problem.strerror})", _UNKNOWN)
            continue
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            _name(path, "is no file", _UNKNOWN)
            os.close(fd)
        elif not try_lock(fd) or not same_file(path, fd):
            os.close(fd)
        elif f".{kind}-new." in path:
            _unlink(path)  # its maker was killed, or will notice that the file is gone and make another
            os.close(fd)
        else:
            _named.discard(path)
            yield DeadFile(path, fd)


def gone(store_path: str, uuid: str) -> bool:
    """True when an engine has no file any more. A folder that cannot be read is no proof of that."""
    try:
        os.lstat(f"{store_path}.engine.{uuid}")
    except FileNotFoundError:
        return True
    except OSError as problem:
        _name(f"{store_path}.engine.{uuid}", f"cannot be looked at ({problem.strerror})", _UNKNOWN)
    return False


_UNKNOWN = (
    "whether that engine lives cannot be known, so what it had leased stays with it; mend the file, "
    "or remove it when the engine has ended"
)


def _name(path: str, what: str, then: str) -> None:
    """Name a file in the log, once and not at each look."""
    if path not in _named:
        _named.add(path)
        log.warning("%s %s: %s", path, what, then)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as problem:
        _name(
            path, f"cannot be removed ({problem.strerror})", "its engine is dead and taken care of; remove it"
        )
