"""The SQLite store: one file with a write-ahead log, one disk flush per commit, and group commit.

Promises: ``synchronous=FULL``, so what `commit` returned is on disk. Every write begins with ``BEGIN
IMMEDIATE`` and our own retries, so no caller sees "database is locked". Threads that ask at the same moment
share one commit. Commits of an event loop do not wait for checkpoints. A forked child opens its own
connections and leaves the parent's alone. A file that is removed or replaced while it is open accepts nothing
more.
Fails: `StoreError`; then nothing of the transaction is stored. A file with a later schema is refused and not
changed.
Does not: work on network file systems, or know what the verbs mean.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

from outmail.model import Delivery, Leased
from outmail.store import Kind, StoreError, Verb, Verbs, forks, schemas, verbs
from outmail.store.commit_threads import GroupCommit
from outmail.store.owner import Owner, OwnerFile, dead_files, gone
from outmail.store.sqlite import drivers
from outmail.store.sqlite.checkpoint import PAGES, Checkpoints
from outmail.store.sqlite.files import create, file_trouble, is_full
from outmail.store.verbs.rows import GONE
from outmail.store.verbs.upkeep import CHECKS
from outmail.system.host import hostname
from outmail.system.lockfile import LockFile, boot_id, sync_folder

SCHEMA = 3
#: Seconds between two searches for pieces of long contents that have neither a message nor a lock file.
WALK = 3600.0
R = TypeVar("R")
D = TypeVar("D", bound=drivers.Driver)
_DURABLE = ("PRAGMA synchronous = FULL", "PRAGMA fullfsync = ON")
#: auto_vacuum comes first: it can only be chosen before the file has its first page.
_PRAGMAS = (
    "PRAGMA auto_vacuum = INCREMENTAL",
    "PRAGMA journal_mode = WAL",
    *_DURABLE,
    "PRAGMA busy_timeout = 0",
    f"PRAGMA wal_autocheckpoint = {PAGES}",
    "PRAGMA cache_size = -32000",
    "PRAGMA temp_store = MEMORY",
)


class SqliteStore(GroupCommit):
    """A queue in one SQLite file. Thread-safe, and safe across forks."""

    verbs: Verbs = verbs
    blocking = False
    writers = 1
    #: How a connection waits for the disk.
    _sync: Sequence[str] = _DURABLE

    def __init__(self, path: str, library: str = "apsw") -> None:
        # one name for each file, so that engines find each other's files beside it
        self.path = os.path.realpath(path)
        self.library = library
        self.url = f"sqlite:{self.path}"
        self.spool = f"{self.path}.spool"
        self._pid = 0
        self._forks = -1
        self._paused: list[threading.Lock] = []
        self._checkpoints: Checkpoints | None = None
        self._walked = time.monotonic()
        super().__init__()
        forks.attend(self)
        self._check_fork()

    # -- opening ---------------------------------------------------------------------------------------------

    def _begin_anew(self) -> None:
        super()._begin_anew()
        self._read_lock = threading.Lock()
        self._opening = threading.Lock()

    def _check_fork(self) -> None:
        """Open this process's connections at its first call."""
        if self._forks != forks.count() and self._pid >= 0:
            forks.check(self.path)
            with self._opening:
                if self._forks != forks.count():
                    self._open()

    def _open(self) -> None:
        create(self.path)
        self._claim = drivers.claim(self.path, self.library)
        made: list[Any] = []
        try:
            for _ in range(2):
                made.append(drivers.DRIVERS[self.library](self.path))
                drivers.patient(partial(_prepared, made[-1], _PRAGMAS))
            self._writer, self._reader = made
            self._upgrade()
        except BaseException as problem:
            for driver in made:
                driver.close()
            drivers.release(self._claim)
            if isinstance(problem, StoreError) and problem.kind in ("io", "forbidden") and is_full(self.path):
                raise StoreError(
                    "full", f"no space is left on the disk of {self.path}", errno.ENOSPC
                ) from None
            raise
        self._begin_use()

    def _begin_use(self) -> None:
        """The connections are open."""
        self._checkpoints = (
            Checkpoints(self._writer, lambda: _prepared(drivers.Apsw(self.path), self._sync))
            if isinstance(self._writer, drivers.Apsw)
            else None
        )
        self._version = -1
        self._pid = os.getpid()
        self._forks = forks.count()

    def pause(self) -> bool:
        """See `forks.Holder`."""
        self._paused = [
            lock
            for lock in (self._opening, self._write_lock, self._read_lock)
            if lock.acquire(timeout=forks.WAIT)
        ]
        return len(self._paused) == 3 and (self._checkpoints is None or self._checkpoints.wait(forks.WAIT))

    def resume(self) -> None:
        """See `forks.Holder`."""
        while self._paused:
            self._paused.pop().release()

    def forsake(self) -> None:
        """See `forks.Holder`."""
        self._begin_anew()
        if self._pid <= 0:
            return  # never opened, closed, or dropped by an earlier fork
        self._pid = 0
        if self._checkpoints is not None:
            self._checkpoints.forsake()
        self._reader.forsake()
        self._writer.forsake()

    def _upgrade(self) -> None:
        """Bring the file to this version's schema. Each step is one transaction under the write lock."""
        found = self._writer.execute("PRAGMA user_version")[0][0]
        if found == SCHEMA:
            return
        if found > SCHEMA:
            raise StoreError(
                "schema",
                f"{self.path} has schema {found}, made by a later outmail; this one knows up to {SCHEMA}: "
                f"upgrade outmail",
            )
        drivers.patient(lambda: self._writer.execute("BEGIN IMMEDIATE"))
        try:
            for step in range(self._writer.execute("PRAGMA user_version")[0][0] + 1, SCHEMA + 1):
                for statement in _statements(f"sqlite-{step}"):
                    self._writer.execute(statement)
                self._writer.execute(f"PRAGMA user_version = {step}")
            self._writer.execute("COMMIT")
        except BaseException:
            self._rollback()
            raise

    def close(self) -> None:
        """Close the connections. Running calls finish first."""
        if self._pid != os.getpid():
            return
        with self._write_lock, self._read_lock:
            if self._pid:
                self._pid = -1
                if self._checkpoints is not None:
                    self._checkpoints.close()
                self._reader.close()
                self._writer.close()
                drivers.release(self._claim)

    # -- writing ---------------------------------------------------------------------------------------------

    def begin(self, verbs: Sequence[Verb[Any]]) -> Callable[[], list[Any]]:
        """The verbs run now; the returned function waits for the disk. While somebody else writes, the
        returned function does everything.
        """
        self._check_fork()
        if self._checkpoints is not None:
            self._checkpoints.aside()
        if not self._write_lock.acquire(blocking=False):
            return super().begin(verbs)
        try:
            answers = self._begin(verbs, 0)
        except BaseException as problem:
            self._write_lock.release()
            if isinstance(problem, StoreError) and problem.kind == "busy":  # no verb has run yet
                return super().begin(verbs)
            raise
        return lambda: self._finish(answers)

    def _finish(self, answers: list[Any]) -> list[Any]:
        try:
            self._commit()
        finally:
            self._write_lock.release()
        return answers

    def _transaction(self, verbs: Sequence[Verb[Any]], wait: float) -> list[Any]:
        try:
            answers = self._begin(verbs, wait)
            self._commit()
        except BaseException:  # Ctrl-C between the two
            self._rollback()
            raise
        return answers

    def _begin(self, verbs: Sequence[Verb[Any]], wait: float) -> list[Any]:
        if self._pid < 0:
            raise StoreError("closed", f"{self.path} is closed")
        self._writable()
        self._rollback()  # Ctrl-C may have left a transaction open, and with it the write lock
        try:
            self._enter(wait)
            drivers.patient(lambda: self._writer.execute("BEGIN IMMEDIATE"), wait)
            if len(verbs) == 1:
                return [drivers.drive(self._writer, verbs[0])]
            return [self._guarded(verb) for verb in verbs]
        except BaseException:
            self._rollback()
            raise

    def _writable(self) -> None:
        """Raises `StoreError` where nothing may be written."""

    def _enter(self, wait: float) -> None:
        """Before a transaction. A file that has lost its name is lost when the program ends: write nothing
        more to it.
        """
        if drivers.identity(self.path) != self._claim:
            raise StoreError(
                "io", f"{self.path} was removed or replaced while open: put it back, or restart this program"
            )

    def _commit(self) -> None:
        try:
            self._writer.execute("COMMIT")
        except BaseException:
            self._rollback()
            raise

    def _guarded(self, verb: Verb[Any]) -> Any:
        """Run one of several verbs. When it fails, only its own changes are undone, unless the store itself
        is in trouble.
        """
        self._writer.execute("SAVEPOINT verb")
        try:
            answer = drivers.drive(self._writer, verb)
        except Exception as problem:
            if (
                isinstance(problem, StoreError) and problem.kind != "other"
            ) or not self._writer.in_transaction():
                raise
            self._writer.execute("ROLLBACK TO verb")
            answer = problem
        self._writer.execute("RELEASE verb")
        return answer

    def _rollback(self) -> None:
        if self._writer.in_transaction():
            self._writer.execute("ROLLBACK")

    # -- reading ---------------------------------------------------------------------------------------------

    def read(self, verb: Verb[R]) -> R:
        """A verb that writes nothing, on one snapshot."""
        self._check_fork()
        with self._read_lock:
            if self._pid < 0:
                raise StoreError("closed", f"{self.path} is closed")
            drivers.patient(lambda: self._reader.execute("BEGIN"))
            try:
                return drivers.drive(self._reader, verb)  # type: ignore[no-any-return]
            finally:
                if self._reader.in_transaction():  # an error may have ended the transaction
                    self._reader.execute("COMMIT")

    def changed(self) -> bool:
        """True when another connection has committed since the last call. Costs microseconds."""
        self._check_fork()
        with self._read_lock:
            version = self._reader.execute("PRAGMA data_version")[0][0]
        before, self._version = self._version, version
        return bool(version != before)

    # -- engines ---------------------------------------------------------------------------------------------

    def register(self, now: int) -> Owner:
        """Become an engine of this store."""
        name = os.urandom(16).hex()
        try:
            file = OwnerFile(self.path, name)
        except OSError as problem:
            kind: Kind = "full" if problem.errno in (errno.ENOSPC, errno.EDQUOT) else "forbidden"
            raise StoreError(
                kind, f"no file can be made beside {self.path}: {problem.strerror}", problem.errno
            ) from None
        try:
            number = self.run(verbs.register(name, os.getpid(), hostname(), boot_id(), now))
        except BaseException:
            file.close()
            raise
        return Owner(self, number, file)

    def dots(self, owner: Owner, notes: Iterable[tuple[Delivery, Sequence[Leased]]]) -> None:
        """Record final dots, by one write."""
        owner.note(notes)

    def settled(self, owner: Owner, deliveries: Iterable[Delivery]) -> None:
        owner.forget(deliveries)

    def time(self) -> int | None:
        """None: SQLite has no clock of its own."""
        return None

    def reclaim(self, now: int, *, hold: bool, within: int = 0) -> list[dict[str, Any]]:
        """Take back the work of engines whose file nobody has locked, or who have no file."""
        known = {row[1]: row for row in self.read(verbs.owners())}
        if not known:
            return []
        found = []
        boot = boot_id()
        for dead in dead_files(self.path):
            row = known.get(dead.uuid)
            if row is None:
                dead.remove()
                continue
            try:
                found.append(
                    self.run(
                        verbs.reclaim(
                            row[0], dead.notes() if row[3] == boot else None, now, hold=hold, within=within
                        )
                    )
                )
            except BaseException:
                dead.close()
                raise
            dead.remove()
        for name, row in known.items():
            if gone(self.path, name):
                found.append(self.run(verbs.reclaim(row[0], None, now, hold=hold, within=within)))
        return [item for item in found if item["leases"]]

    # -- long content ----------------------------------------------------------------------------------------

    def uploading(self, upload: str) -> LockFile:
        """A locked file beside the store, as engines have one. The lock ends with the process, whatever the
        clock shows.
        """
        try:
            held = LockFile(f"{self.path}.upload-new.{upload}", self._upload_file(upload))
            # so pieces that survive a power cut have their lock file too, and are swept
            sync_folder(os.path.dirname(self.path))
        except OSError as problem:
            raise file_trouble(problem, self._upload_file(upload)) from None
        return held

    def sweep_uploads(self) -> int:
        """Remove pieces whose lock file nobody holds: no message can refer to them any more."""
        count = 0
        for dead in dead_files(self.path, "upload"):
            try:
                if self.read(verbs.unused(dead.uuid)):
                    count += self.run(verbs.drop_upload(dead.uuid))
            except BaseException:
                dead.close()
                raise
            dead.remove()
        return count + self._sweep_lost()

    def _sweep_lost(self) -> int:
        """Remove pieces that have no lock file: a backup was made while they were written, or somebody
        removed the file. This reads all messages, so it is done rarely.
        """
        if time.monotonic() - self._walked < WALK:
            return 0
        self._walked = time.monotonic()
        # The lock file exists from before the first piece until after the commit of the message. So read the
        # pieces first, then look for files.
        lost = [upload for upload in self.read(_unnamed()) if not os.path.lexists(self._upload_file(upload))]
        return sum(self.run(verbs.drop_upload(upload)) for upload in lost)

    def _upload_file(self, upload: str) -> str:
        return f"{self.path}.upload.{upload}"

    # -- upkeep ----------------------------------------------------------------------------------------------

    def drop_history(self, now: int, records: int) -> bool:
        """Nothing: SQLite has no partitions."""
        return False

    def kept(self, records: int) -> int:
        """Everything is removed row by row."""
        return records

    def give_space_back(self) -> None:
        """Return some free pages to the file system, a bounded number at a time."""
        self._check_fork()
        with self._write_lock:
            if self._writer.execute("PRAGMA freelist_count")[0][0] > 256:
                drivers.patient(lambda: self._writer.execute("PRAGMA incremental_vacuum(2000)"), 0.5)

    def check(self) -> list[str]:
        """What is wrong with the file, in sentences. An empty list means that all is well."""
        self._check_fork()
        with self._read_lock:
            rows = [row[0] for row in self._reader.execute("PRAGMA quick_check(20)")]
        problems = [f"SQLite: {row}" for row in rows if row != "ok"]
        for sql, text in _CHECKS:
            with self._read_lock:
                count = self._reader.execute(sql)[0][0]
            if count:
                problems.append(f"{count} {text}")
        return problems

    def backup(self, target: str) -> bool:
        """A consistent copy of the live queue, compacted, in a new or an empty file."""
        self._check_fork()
        with self._read_lock:
            self._reader.execute("VACUUM INTO ?", (target,))
        copy = drivers.DRIVERS[self.library](target)
        try:
            copy.execute(f"DELETE FROM chunk WHERE upload IN ({_UNNAMED})")  # pieces that were being written
        finally:
            copy.close()
        return True

    def flush(self) -> None:
        """Move everything from the log into the file itself, for whoever takes the file away. Raises
        `StoreError` when that is not possible.
        """
        self._check_fork()
        with self._write_lock:
            drivers.patient(self._flush)

    def _flush(self) -> None:
        if self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")[0][0]:
            raise StoreError("busy", f"somebody else reads {self.path}")


_UNNAMED = (
    "SELECT DISTINCT upload FROM chunk WHERE upload NOT IN (SELECT upload FROM message WHERE upload "
    "IS NOT NULL)"
)


def _unnamed() -> Verb[list[str]]:
    """Pieces that belong to no message."""
    rows = yield _UNNAMED, ()
    return [row[0] for row in rows]


_CHECKS = (
    *CHECKS,
    (
        "SELECT count(*) FROM message m WHERE m.seq < (SELECT max(seq) FROM message) AND NOT EXISTS (SELECT "
        "1 FROM recipient r WHERE r.message = m.seq)"
        f" AND m.id NOT LIKE '{GONE}%'",
        "messages without recipients",
    ),
)


def _prepared(connection: D, pragmas: Sequence[str]) -> D:
    for pragma in pragmas:
        connection.execute(pragma)
    return connection


def _statements(name: str) -> list[str]:
    lines = [line for line in schemas.sql(name).splitlines() if not line.startswith("--")]
    return [part.strip() for part in "\n".join(lines).split(";") if part.strip()]
