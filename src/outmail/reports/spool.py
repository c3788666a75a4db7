"""A handler's file: one line for each record, written at once, readable after a kill.

``<spool>/digest.<name>.<id>.jsonl`` is locked as long as the process lives, so that the next run knows which
lines belong to nobody.
Promises: one ``write`` for each record. What was written survives the process (but not a power cut: there is
no fsync). After ``limit`` bytes records are only counted. A forked child writes to a file of its own.
Fails: OSError from the constructor. Does not: understand the lines.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from glob import escape, glob
from typing import Any

from outmail.reports.post import tell
from outmail.reports.spoolfiles import set_aside, slug
from outmail.system.lockfile import LockFile, try_lock


class Spool:
    """This process's file for one handler."""

    def __init__(self, folder: str, name: str, limit: int) -> None:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        self.id = f"{os.getpid()}-{os.urandom(6).hex()}"
        self.path = _path(folder, name, self.id)
        self._held = LockFile(f"{self.path}.new", self.path, flags=os.O_APPEND)
        self.pid = os.getpid()
        self.size = 0
        self.limit = limit
        self.dropped = 0

    def write(self, line: bytes) -> None:
        """Write one whole line. Raises OSError (the disk is full)."""
        if self.size + len(line) > self.limit:
            self.dropped += 1
            return
        if os.write(self._held.fd, line) != len(line):
            raise OSError("the disk is full: a line of the spool was cut")
        self.size += len(line)

    def remove(self) -> None:
        """Remove the file: everything in it is in the store."""
        self._held.end()

    def abandon(self) -> None:
        """Leave the file to the next run."""
        self._held.abandon()


def _path(folder: str, name: str, id: str) -> str:
    return os.path.join(folder, f"digest.{slug(name)}.{id}.jsonl")


def exists(folder: str, name: str, id: str) -> bool:
    """True when the file of this process still exists."""
    return os.path.exists(_path(folder, name, id))


def lines(path: str, start: int = 0) -> Iterator[tuple[int, Any]]:
    """(offset after it, value) of each whole line; None for a line that is no JSON. An incomplete last line
    is left out.
    """
    with open(path, "rb") as file:
        file.seek(start)
        at = start
        for raw in file:
            if not raw.endswith(b"\n"):
                return
            at += len(raw)
            try:
                value = json.loads(raw)
            except (ValueError, RecursionError):
                value = None
            yield at, value


def orphans(folder: str, name: str) -> list[tuple[str, str, int]]:
    """(id, path, locked descriptor) of files whose process is gone. The caller closes the descriptors."""
    found = []
    prefix = f"digest.{slug(name)}."
    for path in sorted(glob(os.path.join(escape(folder), escape(prefix) + "*.jsonl"))):
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        except OSError:
            tell(set_aside(path))
            continue
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            tell(set_aside(path))
        elif try_lock(fd):
            found.append((os.path.basename(path)[len(prefix) : -len(".jsonl")], path, fd))
        else:
            os.close(fd)
    return found
