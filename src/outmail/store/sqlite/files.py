"""The file of a SQLite store: creating it, recognising it, and turning the system's errors into sentences.

Promises: a new file is private from the moment it exists. `create` never opens an existing file, because
closing it again would drop the locks of this process's other connections.
Fails: `StoreError`. Does not: know what is in a queue.
"""

from __future__ import annotations

import errno
import os

from outmail.store import Kind, StoreError
from outmail.store.sqlite import drivers

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def file_trouble(problem: OSError, path: str) -> StoreError:
    """An error of the system about one of our files, as a StoreError."""
    code = problem.errno
    kind: Kind = (
        "full"
        if code in _FULL
        else "readonly"
        if code == errno.EROFS
        else "io"
        if code == errno.EIO
        else "forbidden"
    )
    return StoreError(kind, f"{path} cannot be written: {problem.strerror or problem}", code)


def create(path: str) -> None:
    """Create the file, private, before SQLite opens it. A missing folder is an error; it is not created.

    An existing file is not opened: closing it again would drop the locks that other connections of this
    process hold on it.
    """
    try:
        path.encode()
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        if not os.path.isfile(path):
            raise StoreError(
                "forbidden", f"{path} cannot be opened for writing: it is no file", errno.EISDIR
            ) from None
        if not os.access(path, os.R_OK | os.W_OK, effective_ids=os.access in os.supports_effective_ids):
            if _is_read_only(path):
                raise StoreError(
                    "readonly",
                    f"{path} cannot be opened for writing: the file system is read-only",
                    errno.EROFS,
                ) from None
            raise StoreError(
                "forbidden", f"{path} cannot be opened for writing: permission denied", errno.EACCES
            ) from None
    except ValueError:
        raise StoreError("other", f"SQLite takes no such file name: {path!r}") from None
    except FileNotFoundError:
        raise StoreError(
            "forbidden", f"the folder of {path} does not exist: create it, or choose another store", 2
        ) from None
    except OSError as problem:
        raise StoreError(
            "forbidden", f"{path} cannot be opened for writing: {problem.strerror}", problem.errno
        ) from None


def _is_read_only(path: str) -> bool:
    try:
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except (OSError, AttributeError):
        return False


def is_full(path: str) -> bool:
    """True when the disk of a file has no space left for it."""
    try:
        found = os.statvfs(os.path.dirname(path) or ".")
    except (OSError, AttributeError):
        return False
    return found.f_blocks > 0 and found.f_bavail == 0


def is_store(path: str) -> bool:
    """True when the file has the tables of a queue. The file is not changed."""
    if not os.path.getsize(path):
        return False
    driver = drivers.Apsw(path)
    try:
        return bool(
            drivers.patient(
                lambda: driver.execute(
                    "SELECT 1 FROM sqlite_master WHERE name = 'recipient' AND sql IS NOT NULL"
                )
            )
        )
    except StoreError as problem:
        if problem.kind == "corrupt":
            return False
        raise
    finally:
        driver.close()
