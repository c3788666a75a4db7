"""The SQLite store: one file, write-ahead log, a disk flush per commit, and group commit.

Promises: ``synchronous=FULL``: what `commit` returned is on disk; ``BEGIN IMMEDIATE`` for whatever writes,
with our own patient retries, so that no caller sees "database is locked"; threads that ask at the same moment
share one commit (the first one commits for all); a loop's commits do not wait for checkpoints; a forked child
opens its own connections and leaves the parent's alone; a file that was removed or replaced while it is open
takes nothing more.
Fails: `StoreError`; after it nothing of the transaction is stored. A file of a later schema is refused, never
touched.
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
from outmail.store.sqlite.files import create, file_trouble
from outmail.store.verbs.rows import GONE
from outmail.store.verbs.upkeep import CHECKS
from outmail.system.host import hostname
from outmail.system.lockfile import LockFile, boot_id, sync_folder

SCHEMA = 1
#: Seconds between looks for pieces of long contents that have neither a message nor a file.
WALK = 3600.0
R = TypeVar("R")
D = TypeVar("D", bound=drivers.Driver)
_DURABLE = ("PRAGMA synchronous = FULL", "PRAGMA fullfsync = ON")
#: auto_vacuum first: it can only be chosen before the file has its first page.
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
    """A queue in one SQLite file. Thread-safe and fork-aware."""

    verbs: Verbs = verbs
    blocking = False
    lanes = 1

    def __init__(self, path: str, library: str = "apsw") -> None:
        self.path = os.path.realpath(path)  # one file, one name: engines find each other's files beside it
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
        """Connections of this process: the first call in it opens them."""
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
        except BaseException:
            for driver in made:
                driver.close()
            drivers.release(self._claim)
            raise
        self._checkpoints = (
            Checkpoints(self._writer, lambda: _prepared(drivers.Apsw(self.path), _DURABLE))
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
            return  # never opened, closed, or forsaken in a child between
        self._pid = 0
        if self._checkpoints is not None:
            self._checkpoints.forsake()
        self._reader.forsake()
        self._writer.forsake()

    def _upgrade(self) -> None:
        """Bring the file to this version's schema; each step is one transaction, guarded by the write
        lock.
        """
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
        """Close the connections. Calls that are under way finish first."""
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
        """The verbs run now, the disk is waited for later; while somebody else writes, all of it is later."""
        self._check_fork()
        if self._checkpoints is not None:
            self._checkpoints.aside()
        if not self._write_lock.acquire(blocking=False):
            return super().begin(verbs)
        try:
            answers = self._begin(verbs, 0)
        except BaseException as problem:
            self._write_lock.release()
            if isinstance(problem, StoreError) and problem.kind == "busy":  # no verb has run
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
        except BaseException:  # Ctrl-C, between the two
            self._rollback()
            raise
        return answers

    def _begin(self, verbs: Sequence[Verb[Any]], wait: float) -> list[Any]:
        if self._pid < 0:
            raise StoreError("closed", f"{self.path} is closed")
        # what is written to a file without a name is lost with the program
        if drivers.identity(self.path) != self._claim:
            raise StoreError(
                "io",
                f"{self.path} was removed or replaced while it was open: put it back, or start this program "
                f"anew",
            )
        self._rollback()  # of what Ctrl-C may have left open: no lock may stay behind
        try:
            drivers.patient(lambda: self._writer.execute("BEGIN IMMEDIATE"), wait)
            if len(verbs) == 1:
                return [drivers.drive(self._writer, verbs[0])]
            return [self._guarded(verb) for verb in verbs]
        except BaseException:
            self._rollback()
            raise

    def _commit(self) -> None:
        try:
            self._writer.execute("COMMIT")
        except BaseException:
            self._rollback()
            raise

    def _guarded(self, verb: Verb[Any]) -> Any:
        """One verb among several: its failure undoes its own changes only, unless the store itself is in
        trouble.
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
        """A verb that writes nothing, from one snapshot."""
        self._check_fork()
        with self._read_lock:
            if self._pid < 0:
                raise StoreError("closed", f"{self.path} is closed")
            drivers.patient(lambda: self._reader.execute("BEGIN"))
            try:
                return drivers.drive(self._reader, verb)  # type: ignore[no-any-return]
            finally:
                if self._reader.in_transaction():  # an error may have ended it
                    self._reader.execute("COMMIT")

    def changed(self) -> bool:
        """True when another connection has committed since the last call; costs microseconds."""
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
        """Put final dots on record: one write."""
        owner.note(notes)

    def settled(self, owner: Owner, deliveries: Iterable[Delivery]) -> None:
        owner.forget(deliveries)

    def time(self) -> int | None:
        """It has none of its own."""
        return None

    def reclaim(self, now: int, *, hold: bool) -> list[dict[str, Any]]:
        """Take back the work of engines whose file nobody holds, or that have none."""
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
                    self.run(verbs.reclaim(row[0], dead.notes() if row[3] == boot else None, now, hold=hold))
                )
            except BaseException:
                dead.close()
                raise
            dead.remove()
        for name, row in known.items():
            if gone(self.path, name):
                found.append(self.run(verbs.reclaim(row[0], None, now, hold=hold)))
        return [item for item in found if item["leases"]]

    # -- long content ----------------------------------------------------------------------------------------

    def uploading(self, upload: str) -> LockFile:
        """A locked file beside the store, as engines have one: the lock goes with the process, whatever
        clocks say.
        """
        try:
            held = LockFile(f"{self.path}.upload-new.{upload}", self._upload_file(upload))
            # pieces that outlive a power cut have their file: nothing lies there for ever
            sync_folder(os.path.dirname(self.path))
        except OSError as problem:
            raise file_trouble(problem, self._upload_file(upload)) from None
        return held

    def sweep_uploads(self) -> int:
        """By files that nobody holds: from then on no message can name those pieces any more."""
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
        """Pieces that have no file: a copy was made while somebody was uploading, or the file was removed.
        Looks at all messages, so seldom.
        """
        if time.monotonic() - self._walked < WALK:
            return 0
        self._walked = time.monotonic()
        # A file is there from before its first piece until after the commit of its message: so first the
        # pieces, then the files.
        lost = [upload for upload in self.read(_unnamed()) if not os.path.lexists(self._upload_file(upload))]
        return sum(self.run(verbs.drop_upload(upload)) for upload in lost)

    def _upload_file(self, upload: str) -> str:
        return f"{self.path}.upload.{upload}"

    # -- upkeep ----------------------------------------------------------------------------------------------

    def drop_history(self, now: int, records: int) -> bool:
        """There is none that goes as a whole."""
        return False

    def kept(self, records: int) -> int:
        """Everything goes by row."""
        return records

    def give_space_back(self) -> None:
        """Return free pages to the file system, a bounded number at a time."""
        self._check_fork()
        with self._write_lock:
            if self._writer.execute("PRAGMA freelist_count")[0][0] > 256:
                drivers.patient(lambda: self._writer.execute("PRAGMA incremental_vacuum(2000)"), 0.5)

    def check(self) -> list[str]:
        """What is wrong with the file, in sentences; an empty list is good news."""
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
            copy.execute(f"DELETE FROM chunk WHERE upload IN ({_UNNAMED})")  # somebody was uploading
        finally:
            copy.close()
        return True

    def flush(self) -> None:
        """All is in the file itself, and nothing in its log: for whoever takes the file away. Raises
        `StoreError` where that is not so.
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
    """Pieces that no message has."""
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
