"""A file that is made whole before it has its name: backups.

How: it is written as ``FILE.unfinished.<random>`` in the same folder, flushed, linked to its name, and the
folder is flushed.
Promises: under its name there is a whole file, on disk, or none (where the file system has no links, and the
program is killed in that moment: an empty one, which is no store); a file that is there already is never
touched; only its owner can read it. What a killed program leaves has the word ``unfinished`` in its name, and
`refuse_unfinished` keeps it from being opened as a store.
Fails: `Refused` for a file that exists, `NotStored` for what cannot be written. Does not: know what is
written.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from glob import escape, glob

from outmail.accept.acceptance import not_stored
from outmail.errors import ConfigError, Refused
from outmail.store import StoreError
from outmail.store.sqlite.files import file_trouble
from outmail.system.lockfile import sync_folder

_WORD = ".unfinished."
#: What SQLite may have made beside it.
_BESIDE = ("", "-journal", "-wal", "-shm")
_LEFTOVER = re.compile(rf"{re.escape(_WORD)}[0-9a-f]{{12}}$")


@contextlib.contextmanager
def whole(path: str) -> Iterator[str]:
    """A name to write to; what is there at the end of the block gets the name ``path``."""
    if os.path.lexists(path):
        raise _exists(path)
    temporary = f"{path}{_WORD}{os.urandom(6).hex()}"
    try:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        yield temporary
        _check_no_log(temporary)
        _sync(temporary)
        _name(temporary, path)
        sync_folder(os.path.dirname(path))
    except OSError as problem:
        raise not_stored(file_trouble(problem, path), "the backup was not made") from None
    except StoreError as problem:
        raise not_stored(problem, "the backup was not made") from None
    finally:
        for end in _BESIDE:
            with contextlib.suppress(OSError):
                os.unlink(temporary + end)


def leftovers(path: str) -> list[str]:
    """What killed backups to this file, or some under way, have left beside it."""
    return sorted(name for name in glob(f"{escape(path)}{_WORD}*") if _LEFTOVER.search(name))


def refuse_unfinished(path: str) -> None:
    """What a killed backup left is no backup."""
    if _LEFTOVER.search(path):
        raise ConfigError(f"{path} is what an unfinished backup left: delete it, and make another")


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _check_no_log(path: str) -> None:
    """What SQLite could not move from its log into the file, on a full disk say, would be missing; closing
    does not tell of it.
    """
    for end in _BESIDE[1:3]:
        if os.path.exists(path + end) and os.path.getsize(path + end):
            raise StoreError("io", f"{path}{end} could not be merged into the file: is the disk full?")


def _name(temporary: str, path: str) -> None:
    """A link fails when the name is taken, which a rename does not; some file systems have no links."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise _exists(path) from None
    except OSError as problem:
        if problem.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        _rename(temporary, path)


def _rename(temporary: str, path: str) -> None:
    """The name is taken first, by an empty file, and so is never somebody else's."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        raise _exists(path) from None
    try:
        os.rename(temporary, path)
    except BaseException:
        os.unlink(path)
        raise


def _exists(path: str) -> Refused:
    return Refused(f"{path} exists; a backup goes into a new file", code="exists")
