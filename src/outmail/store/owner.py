"""An engine's file beside the store: proof that it lives, and its record of final dots.

``<store>.engine.<uuid>``: the engine holds ``flock`` on it as long as it lives, whatever its pid becomes; the kernel
lets go when it dies. The content is the dot record: 16 bytes (message, recipient, lease) per final dot about to be
sent, written by one ``write`` before the dots of a turn. It needs no fsync: it must survive a killed process, and after
a power cut (another boot id) all leases of the engine count as noted anyway.
Promises: the file appears under its name only when locked; only who holds the lock unlinks it; a forked child closes
its copy of the descriptor, so that the lock dies with the engine.
Fails: `OSError` from `note`: then no dot may be sent. Does not: exist where ``fcntl`` does not (an engine needs it).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from glob import escape, glob
from typing import Any

from outmail.errors import ConfigError
from outmail.held import HeldFile, can_lock, same_file, try_lock
from outmail.model import Delivery, Leased
from outmail.store import Trouble

_NOTE = struct.Struct("<QII")
#: Where compaction starts: live notes are written again at the front once all of them lie behind it.
_FRONT = 512 * 1024

Note = tuple[int, int, int]


class OwnerFile:
    """The file of a living engine."""

    def __init__(self, store_path: str, uuid: str) -> None:
        if not can_lock():
            raise ConfigError("an engine needs file locks (fcntl), which this system does not have; use deliver='never' here")
        self._held = HeldFile(f"{store_path}.engine-new.{uuid}", f"{store_path}.engine.{uuid}")
        self.path = self._held.path
        self._offset = 0
        self._live: dict[Note, int] = {}

    def note(self, notes: Iterable[Note]) -> None:
        """Record final dots that are about to be sent."""
        fresh = list(notes)
        data = b"".join([_NOTE.pack(*note) for note in fresh])
        if self._held.fd < 0 or os.pwrite(self._held.fd, data, self._offset) != len(data):
            raise OSError("the record of final dots could not be written whole")
        for i, note in enumerate(fresh):
            self._live[note] = self._offset + i * _NOTE.size
        self._offset += len(data)

    def forget(self, notes: Iterable[Note]) -> None:
        """These were settled."""
        for note in notes:
            self._live.pop(note, None)
        if self._offset > 2 * _FRONT:
            self._compact()

    def _compact(self) -> None:
        """Begin the file anew. While the live notes lie behind the front, both copies exist until the cut."""
        data = b"".join([_NOTE.pack(*note) for note in self._live])
        if len(data) > _FRONT or min(self._live.values(), default=_FRONT) < _FRONT:
            return
        if os.pwrite(self._held.fd, data, 0) == len(data):
            os.ftruncate(self._held.fd, len(data))
            self._live = {note: i * _NOTE.size for i, note in enumerate(self._live)}
            self._offset = len(data)

    def close(self) -> None:
        """Say goodbye: only when nothing is leased any more."""
        self._held.end()

    def abandon(self) -> None:
        """Let go of the descriptor and leave the file to whoever reclaims it."""
        self._held.abandon()


class Owner:
    """An engine's registration: its number in the store and its locked file."""

    def __init__(self, store: Any, id: int, file: OwnerFile) -> None:
        self.id = id
        self.uuid = file.path.rpartition(".")[2]
        self.file = file
        self._store = store

    def note(self, notes: Iterable[tuple[Delivery, Sequence[Leased]]]) -> None:
        """Put final dots on record: one write."""
        self.file.note([(delivery.seq, r.n, delivery.lease) for delivery, recipients in notes for r in recipients])

    def forget(self, deliveries: Iterable[Delivery]) -> None:
        """These leases are over."""
        self.file.forget([(delivery.seq, r.n, delivery.lease) for delivery in deliveries for r in delivery.recipients])

    def close(self) -> None:
        """Leave in order. With leases still out the file stays, and its dot record with it, for whoever takes them back."""
        try:
            left = self._store.run(self._store.verbs.forget_owner(self.id), wait=2.0)
        except Trouble:
            left = False
        if left:
            self.file.close()
        else:
            self.file.abandon()


class DeadFile:
    """The file of a dead engine or upload, locked by us until its work is taken back."""

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.uuid = path.rpartition(".")[2]
        self._fd = fd

    def notes(self) -> set[Note]:
        """What it had on record; a torn last note counts as none, because its dot was not sent."""
        data = os.pread(self._fd, os.fstat(self._fd).st_size, 0)
        return set(_NOTE.iter_unpack(data[: len(data) - len(data) % _NOTE.size]))

    def remove(self) -> None:
        os.unlink(self.path)
        self.close()

    def close(self) -> None:
        os.close(self._fd)


def dead_files(store_path: str, kind: str = "engine") -> Iterator[DeadFile]:
    """The files of this kind nobody holds a lock on. The caller closes or removes each."""
    for path in sorted(glob(f"{escape(store_path)}.{kind}.*") + glob(f"{escape(store_path)}.{kind}-new.*")):
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        if not try_lock(fd) or not same_file(path, fd):
            os.close(fd)
        elif f".{kind}-new." in path:
            os.unlink(path)  # its maker was killed, or sees that it is gone and makes another
            os.close(fd)
        else:
            yield DeadFile(path, fd)
