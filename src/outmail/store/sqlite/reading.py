"""A SQLite queue opened for reading only: for commands that look, where nothing can be written.

How: SQLite reads a database that has a write-ahead log only with a file of shared memory beside it. Where
that file is missing and cannot be made (a full disk, a read-only file system, somebody else's folder), the
database is read as one that nobody changes, which is true only while its log is empty.
Promises: what it shows was committed; no file is made or changed.
Fails: `StoreError`, also for everything that writes. Does not: see what is committed after it was opened in
the second way.
"""

from __future__ import annotations

import os

from outmail.store import StoreError
from outmail.store.sqlite import drivers
from outmail.store.sqlite.store import SCHEMA, SqliteStore


class SqliteReading(SqliteStore):
    """``why``: what stood in the way of writing, said to whoever tries."""

    def __init__(self, path: str, library: str, why: StoreError) -> None:
        self._why, self._sqlite = why, library
        #: Said to the user of a command.
        self.only_reads = f"{path} is opened for reading only: {why}"
        super().__init__(path, library)

    def _open(self) -> None:
        """Raises `StoreError` where it cannot even be read."""
        try:
            self._claim = drivers.claim(self.path, self._sqlite)
        except OSError as problem:
            why = f"{self.path} cannot be read: {problem.strerror}"
            raise StoreError("forbidden", why, problem.errno) from None
        try:
            self._writer, self._reader = self._connection(), self._connection()
        except BaseException:
            drivers.release(self._claim)
            raise
        self._begin_use()

    def _connection(self) -> drivers.Apsw | drivers.Stdlib:
        made = drivers.DRIVERS[self._sqlite]
        trouble = self._why
        shared = os.path.exists(f"{self.path}-shm")  # SQLite would make one where it may
        for how in ("mode=ro", "immutable=1") if shared else ("immutable=1",):
            if how == "immutable=1" and self._log_size():
                raise StoreError(
                    trouble.kind,
                    f"{self.path} cannot be read, because its log of {self._log_size()} bytes can only be "
                    f"read where SQLite may write beside it: {trouble}",
                    trouble.errno,
                )
            driver = None
            try:
                driver = made(self.path, how)
                if driver.execute("PRAGMA user_version")[0][0] == SCHEMA:
                    driver.execute("SELECT 1 FROM message LIMIT 1")
                    return driver
                trouble = StoreError("schema", f"{self.path} has another schema, and cannot be upgraded here")
            except StoreError as problem:
                trouble = problem
            if driver is not None:
                driver.close()
        raise trouble

    def _log_size(self) -> int:
        try:
            return os.path.getsize(f"{self.path}-wal")
        except OSError:
            return 0

    def _writable(self) -> None:
        raise StoreError(self._why.kind, self.only_reads, self._why.errno)
