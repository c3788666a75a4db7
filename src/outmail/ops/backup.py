"""Makes a file complete before it gets its name; used for backups.

How: the file is written as ``FILE.unfinished.<random>`` in the same folder, flushed, linked to its name, and
the folder is flushed.
Promises: under the name there is a complete file, on disk, or none. (Exception: the file system has no links
and the program is killed at that moment; then there is an empty file, which is no store.) An existing file is
never touched. Only the owner can read the file. What a killed program leaves has ``unfinished`` in its name,
and `refuse_unfinished` keeps it from being opened as a store.
Fails: `Refused` for a file that exists, `NotStored` for one that cannot be written. Does not: know what is
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
#: Endings of the files that SQLite may make beside it.
_BESIDE = ("", "-journal", "-wal", "-shm")
_LEFTOVER = re.compile(rf"{re.escape(_WORD)}[0-9a-f]{{12}}$")


@contextlib.contextmanager
def whole(path: str) -> Iterator[str]:
    """A name to write to. At the end of the block the file gets the name ``path``."""
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
    """Files that killed or running backups to this file have left beside it."""
    return sorted(name for name in glob(f"{escape(path)}{_WORD}*") if _LEFTOVER.search(name))


def refuse_unfinished(path: str) -> None:
    """Raises ConfigError for what a killed backup left."""
    if _LEFTOVER.search(path):
        raise ConfigError(f"{path} is an unfinished backup: delete it, and make another one")


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _check_no_log(path: str) -> None:
    """Content that SQLite could not move from its log into the file (a full disk, say) would be missing from
    the backup, and closing does not report that.
    """
    for end in _BESIDE[1:3]:
        if os.path.exists(path + end) and os.path.getsize(path + end):
            raise StoreError("io", f"{path}{end} could not be merged into the file: is the disk full?")


def _name(temporary: str, path: str) -> None:
    """Give it the name. A link fails when the name is taken; a rename does not. But some file systems have no
    links.
    """
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise _exists(path) from None
    except OSError as problem:
        if problem.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        _rename(temporary, path)


def _rename(temporary: str, path: str) -> None:
    """Take the name first, by an empty file, so that it is never another program's."""
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
