"""Between SQLite and the disk: a VFS that tells of every write before it is done, and a disk that forgets
what was not flushed.

`Shim` becomes SQLite's default VFS (apsw). Its observer hears of each call by name before it is done, may
raise instead, and hears of it again once it is done. `Log` is an observer that writes all of it down, in one
order for all threads, with what the caller says of its own (`note`). `Disk` replays such a log up to a moment
at which the power goes. What is lost there: of all that was written since a file's last finished flush any
sectors of 512 bytes, in any order; names made or removed since the folder's last flush. Sectors behind the
old end of a file may then hold anything. The -shm file is memory: SQLite makes it anew.
"""

from __future__ import annotations

import itertools
import os
import pickle
import random
import threading
from pathlib import Path
from typing import Any

import apsw

SECTOR = 512


class Half(Exception):
    """Raised by an observer of a write: half of it is done, then the error comes."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


class Observer:
    """Hears of (call, file name, offset, data). Calls: open, write, truncate, sync, delete."""

    def before(self, call: str, name: str, offset: int = 0, data: bytes = b"") -> None:
        """It may raise instead of letting the call be done."""

    def after(
        self, call: str, name: str, offset: int = 0, data: bytes = b"", *, folder: bool = False
    ) -> None:
        """The call is done; ``folder``: the folder was flushed with it."""


class _File(apsw.VFSFile):  # type: ignore[misc,unused-ignore]
    def __init__(self, shim: Shim, name: Any, flags: list[int]) -> None:
        self._name = os.path.basename(
            (name.filename() if isinstance(name, apsw.URIFilename) else name) or "temporary"
        )
        self._observer = shim.observer
        there = bool(self._name) and shim.there(name)
        super().__init__(shim.base, name, flags)
        #: As unixSync does: the first flush of a new journal or log flushes its folder too.
        self._new = not there and bool(flags[0] & (apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_MAIN_JOURNAL))
        if not there:
            self._observer.after("open", self._name)

    def xWrite(self, data: bytes, offset: int) -> None:
        try:
            self._observer.before("write", self._name, offset, data)
        except Half as half:
            super().xWrite(data[: len(data) // 2], offset)
            raise half.error from None
        super().xWrite(data, offset)
        self._observer.after("write", self._name, offset, bytes(data))

    def xTruncate(self, size: int) -> None:
        self._observer.before("truncate", self._name, size)
        super().xTruncate(size)
        self._observer.after("truncate", self._name, size)

    def xSync(self, flags: int) -> None:
        self._observer.before("sync", self._name)
        super().xSync(flags)
        self._observer.after("sync", self._name, folder=self._new)
        self._new = False


_registered: list[Any] = []


class Shim(apsw.VFS):  # type: ignore[misc,unused-ignore]
    """The system's own VFS, with an observer; the default of this process from now on."""

    def __init__(self, observer: Observer, base: str = "unix") -> None:
        self.observer = observer
        self.base = base
        super().__init__("watched", base, makedefault=True)
        _registered.append(self)  # it is one as long as it is referred to

    def there(self, name: Any) -> bool:
        return os.path.exists(name.filename() if isinstance(name, apsw.URIFilename) else name or "")

    def xOpen(self, name: Any, flags: list[int]) -> Any:
        return _File(self, name, flags)

    def xDelete(self, name: str, flush: bool) -> None:
        self.observer.before("delete", os.path.basename(name))
        super().xDelete(name, flush)
        self.observer.after("delete", os.path.basename(name), folder=flush)

    def excepthook(self, *_: Any) -> bool:
        """A fault that was made on purpose is no news."""
        return True


class Log(Observer):
    """Everything in one order. ``syncs`` False leaves flushes out, done and noted alike: a program that
    forgot them.
    """

    def __init__(self, path: Path, *, syncs: bool = True) -> None:
        self._file = open(path, "wb")
        self._guard = threading.Lock()
        self._syncs = syncs
        self._begun: dict[tuple[str, int], int] = {}
        self._count = 0

    def before(self, call: str, name: str, offset: int = 0, data: bytes = b"") -> None:
        if call == "sync":
            self._begun[name, threading.get_ident()] = self._count

    def after(
        self, call: str, name: str, offset: int = 0, data: bytes = b"", *, folder: bool = False
    ) -> None:
        if call == "sync":
            if not self._syncs:
                return
            # what was written until it began is safe now
            offset = self._begun.pop((name, threading.get_ident()))
        self.note(call, name, offset, data, folder)

    def note(self, *what: Any) -> None:
        """Anything, at this place of the order."""
        with self._guard:
            pickle.dump(what, self._file, protocol=5)
            self._count += 1

    def close(self) -> None:
        with self._guard:
            self._file.close()


def read(path: Path) -> list[tuple[Any, ...]]:
    """What a `Log` has written."""
    found = []
    with open(path, "rb") as file:
        while True:
            try:
                found.append(pickle.load(file))
            except EOFError:
                return found


class _Kept:
    """One file: what is on disk for sure, and what may be."""

    def __init__(self) -> None:
        self.safe = bytearray()
        #: (place in the log, call, offset, data)
        self.pending: list[tuple[int, str, int, bytes]] = []

    def flush(self, until: int) -> None:
        rest = []
        for one in self.pending:
            if one[0] < until:
                _apply(self.safe, *one[1:])
            else:
                rest.append(one)
        self.pending = rest


def _apply(content: bytearray, call: str, offset: int, data: bytes) -> None:
    if call == "truncate":
        del content[offset:]
        content.extend(bytes(offset - len(content)))
        return
    content.extend(bytes(max(0, offset - len(content))))
    content[offset : offset + len(data)] = data


class Disk:
    """The files of one folder as a power cut leaves them."""

    def __init__(self) -> None:
        self._files: dict[str, _Kept] = {}
        #: Names that exist for sure, and names that came or went since the folder was flushed.
        self._names: dict[str, _Kept] = {}

    def replay(self, log: list[tuple[Any, ...]], start: int, end: int) -> None:
        """Go on from ``start`` to ``end``."""
        for place in range(start, end):
            call, name, *rest = log[place]
            if call == "open":
                self._files.setdefault(name, _Kept())
            elif call in ("write", "truncate"):
                self._files.setdefault(name, _Kept()).pending.append((place, call, rest[0], rest[1]))
            elif call == "sync":
                self._files.setdefault(name, _Kept()).flush(rest[0])
            elif call == "delete":
                self._files.pop(name, None)
            if call in ("sync", "delete") and rest[2]:
                self._names = dict(self._files)

    def cut(self, folder: Path, chance: random.Random) -> str:
        """Write what is left into a folder; returns in what manner."""
        manner = chance.choice(("nothing", "everything", "whole writes", "sectors", "sectors"))
        names = dict(self._names)
        for name in {*self._names, *self._files}:
            if self._names.get(name) is not self._files.get(name) and chance.random() < 0.5:
                if name in self._files:
                    names[name] = self._files[name]
                else:
                    names.pop(name, None)
        for name, file in names.items():
            if not name.endswith("-shm"):
                (folder / name).write_bytes(_left(file, manner, chance))
        return manner


def _left(file: _Kept, manner: str, chance: random.Random) -> bytes:
    content = bytearray(file.safe)
    pieces: list[tuple[str, int, bytes]] = []
    for _, call, offset, data in file.pending:
        if manner == "sectors" and call == "write":
            first = SECTOR - offset % SECTOR
            edges = [0, *range(first, len(data), SECTOR), len(data)] if first < len(data) else [0, len(data)]
            pieces += [(call, offset + a, data[a:b]) for a, b in itertools.pairwise(edges)]
        else:
            pieces.append((call, offset, data))
    if manner == "nothing":
        return bytes(content)
    if manner != "everything":
        odds = chance.choice((0.1, 0.5, 0.9))
        pieces = [piece for piece in pieces if chance.random() < odds]
        if chance.random() < 0.5:
            chance.shuffle(pieces)
    old = len(content)
    for piece in pieces:
        _apply(content, *piece)
    if manner == "sectors" and chance.random() < 0.3:
        _spoil(content, old, pieces, chance)
    return bytes(content)


def _spoil(content: bytearray, old: int, pieces: list[tuple[str, int, bytes]], chance: random.Random) -> None:
    """Sectors behind the old end that nothing was written to hold what was there before: anything."""
    written = {offset // SECTOR for call, offset, _ in pieces if call == "write"}
    for sector in range(-(-old // SECTOR), len(content) // SECTOR):
        if sector not in written:
            content[sector * SECTOR : (sector + 1) * SECTOR] = chance.randbytes(SECTOR)


class Folder:
    """A folder that files are written to by name: flush of the file, rename, flush of the folder (the writers
    of file: and maildir:).

    `watch` notes what this process does there; `missing` says which names, after a cut, are not there or not
    whole for sure.
    """

    def __init__(self) -> None:
        self._flushed: set[str] = set()
        self._named: set[str] = set()
        self.safe: set[str] = set()

    def replay(self, log: list[tuple[Any, ...]], start: int, end: int) -> None:
        """Go on from ``start`` to ``end``."""
        for call, *rest in log[start:end]:
            if call == "file flushed":
                self._flushed.add(rest[0])
            elif call == "renamed":
                if rest[0] in self._flushed:
                    self._flushed.add(rest[1])
                self._named.add(rest[1])
            elif call == "folder flushed":
                self.safe |= {
                    name for name in self._named & self._flushed if os.path.dirname(name) == rest[0]
                }


def watch_folders(log: Log, *, syncs: bool = True) -> None:
    """From now on the log has this process's own flushes and renames."""
    fsync, link = os.fsync, os.link

    def place(name: Any, folder: int | None) -> str:
        return (
            os.path.join(os.readlink(f"/proc/self/fd/{folder}"), name)
            if folder is not None
            else os.path.abspath(name)
        )

    def watched_fsync(fd: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}").removesuffix(" (deleted)")
        if syncs:
            fsync(fd)
            log.note("folder flushed" if os.path.isdir(path) else "file flushed", path)

    def watched_link(
        old: Any, new: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None, **words: Any
    ) -> None:
        there, here = place(old, src_dir_fd), place(new, dst_dir_fd)
        if there.startswith("/proc/self/fd/"):
            there = os.readlink(there).removesuffix(" (deleted)")
        link(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, **words)
        log.note("renamed", there, here)

    system: Any = os
    system.fsync, system.link = watched_fsync, watched_link
