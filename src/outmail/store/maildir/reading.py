"""A Maildir spool opened for reading only: for commands that look, where nothing can be written.

How: an index is made in memory, from the files; that takes about 0.1 ms and 3 KB for each message.
Promises: what it shows was committed; no file is made or changed, and no lock is taken.
Fails: `StoreError`, also for everything that writes. Does not: see what is committed after it was opened.
"""

from __future__ import annotations

import os

from outmail.store import StoreError
from outmail.store.maildir import log as logs
from outmail.store.maildir import state as states
from outmail.store.maildir.index import Index
from outmail.store.maildir.rebuild import fill
from outmail.store.maildir.store import MaildirStore, is_spool
from outmail.store.sqlite import drivers
from outmail.store.sqlite.files import file_trouble
from outmail.store.sqlite.store import SqliteStore


class MaildirReading(MaildirStore):
    """``why``: what stood in the way of writing, said to whoever tries."""

    def __init__(self, path: str, why: StoreError) -> None:
        self._why = why
        #: Said to the user of a command.
        self.only_reads = f"{path} is opened for reading only: {why}"
        super().__init__(path)

    def _check_fork(self) -> None:
        SqliteStore._check_fork(self)

    def _open(self) -> None:
        """Raises `StoreError` where it cannot even be read."""
        if not is_spool(self._files.root):
            raise self._why
        try:
            self._claim = drivers.claim(self._files.format, "apsw")
            self._lock = os.open(self._files.format, os.O_RDONLY)
            self._log = logs.Log(self._files, reading=True)
            found = self._log.read(self._log.start)
            state = states.load(self._files)
        except OSError as problem:
            raise file_trouble(problem, self._files.root) from None
        state.follow(found.commits)
        self._writer, self._reader = Index(":memory:", self._files), Index(":memory:", self._files)
        self._reader.create()
        fill(self._files, self._reader, state, repair=False)
        for commit in found.commits:  # journals may be behind
            self._reader.apply_commit(commit)
        self._begin_use()

    def changed(self) -> bool:
        """Never: what it shows is of one moment."""
        return False

    def check(self) -> list[str]:
        raise StoreError(self._why.kind, self.only_reads, self._why.errno)

    def _writable(self) -> None:
        raise StoreError(self._why.kind, self.only_reads, self._why.errno)
