"""The commit log of a spool: one line for each commit since the last checkpoint. A commit is its line here.

Promises: a line is on disk when `append` returns, or it is taken back. A line that was cut off by a kill or a
power cut is recognised, and cut away (`cut`). A new log replaces the old one at once and whole.
Fails: `OSError`. Does not: lock; the caller holds the spool's lock whenever it writes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from outmail.store.maildir.files import TMP, Files, replace, split, sync
from outmail.store.maildir.lines import Commit, commit_of, line, read
from outmail.system.lockfile import sync_folder
from outmail.system.writing import write_all


class NotTakenBack(OSError):
    """A commit could not be flushed, and its line could not be cut away: it may have happened."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a log has from some offset on. ``end``: where its whole lines end. ``damaged``: lines before that
    which cannot be read.
    """

    commits: list[Commit]
    end: int
    damaged: int = 0


class Log:
    """The log that has the name now. ``name`` tells it from later logs, ``after`` is the number of the last
    commit before it. When the head is missing or cannot be read, they are "" and 0, and `read` from ``start``
    on tells of everything that the file has.
    """

    def __init__(self, files: Files, *, reading: bool = False) -> None:
        self._files = files
        how = os.O_RDONLY if reading else os.O_RDWR | os.O_APPEND
        self.fd = os.open(files.log, how | os.O_NOFOLLOW)
        found = os.fstat(self.fd)
        self._identity = found.st_dev, found.st_ino
        head, newline, _ = os.pread(self.fd, 4096, 0).partition(b"\n")
        value = read(head + newline) or {}
        self.name, self.after = str(value.get("log", "")), int(value.get("after", 0))
        self.start = len(head) + len(newline) if self.name else 0

    def current(self) -> bool:
        """True while this log has the name."""
        try:
            found = os.stat(self._files.log)
        except FileNotFoundError:
            return False
        return (found.st_dev, found.st_ino) == self._identity

    def size(self) -> int:
        return os.fstat(self.fd).st_size

    def append(self, commit: Commit) -> int:
        """Write a commit and wait for the disk. Returns the size of the log. Raises `NotTakenBack` when the
        line cannot be taken back.
        """
        before = self.size()
        data = commit.line()
        try:
            write_all(self.fd, data)
            sync(self.fd)
        except OSError as problem:
            try:
                self.cut(before)
            except OSError:
                raise NotTakenBack(problem.errno, problem.strerror, self._files.log) from problem
            raise
        return before + len(data)

    def flush(self) -> None:
        """Wait until what others have written is on disk."""
        sync(self.fd)

    def cut(self, size: int) -> None:
        """Take away what lies behind."""
        os.ftruncate(self.fd, size)
        sync(self.fd)

    def read(self, start: int) -> Found:
        """The commits from an offset on."""
        data = _rest(self.fd, start)
        commits: list[Commit] = []
        end, at, damaged, odd = start, start, 0, 0
        for one in split(data):
            at += len(one)
            commit = commit_of(read(one))
            if commit is None:
                odd += 1
                continue
            commits.append(commit)
            end, damaged = at, damaged + odd
            odd = 0
        return Found(commits, end, damaged)

    def close(self) -> None:
        os.close(self.fd)


def begin(files: Files, after: int) -> None:
    """A new, empty log takes the place of the old one."""
    head = line({"log": os.urandom(8).hex(), "after": after})
    replace(files.log, files.path(TMP, "log"), [head])
    sync_folder(files.root)


def _rest(fd: int, start: int) -> bytes:
    pieces = []
    while piece := os.pread(fd, 1 << 24, start):
        pieces.append(piece)
        start += len(piece)
    return b"".join(pieces)
