"""The Maildir spool store: a folder of plain files, for hosts that want no database, and for reading with
``ls`` and ``cat`` (`files` says what lies where).

How: verbs run on an index, which has the tables of the SQLite store (`index`). A commit takes the spool's
lock, runs its verbs in a transaction of the index, tells the files what changed, and lets the index follow.
The commit happens when its line in the log is on disk. Whoever takes the lock next does what a killed process
has left undone behind that point, and takes back what it had begun before it.
Promises: what `commit` returned is on disk. Several processes may use one spool, on one host. When the index
is missing, was made before a power cut, belongs to another folder (a copy), or does not fit the log, it is
made anew from the files.
Fails: `StoreError`; then nothing of the transaction is stored. A folder with other things in it is refused.
Does not: work on network file systems, or when its folders lie on several file systems.
"""

from __future__ import annotations

import errno
import logging
import os
from functools import partial
from typing import Any, TypeVar

from outmail.store import StoreError, Verb
from outmail.store.maildir import log as logs
from outmail.store.maildir import state as states
from outmail.store.maildir.files import FOLDERS, FORMAT, INDEX, LOG, TMP, UPLOAD, Files, unlink
from outmail.store.maildir.index import Contents, Index
from outmail.store.maildir.lines import Commit
from outmail.store.maildir.rebuild import build
from outmail.store.sqlite import drivers
from outmail.store.sqlite.checkpoint import PAGES
from outmail.store.sqlite.files import file_trouble
from outmail.store.sqlite.store import SCHEMA, SqliteStore
from outmail.system.lockfile import boot_id, can_lock, same_file, sync_folder, try_lock, write_once

log = logging.getLogger("outmail")
R = TypeVar("R")

#: A checkpoint is made when the log is longer than this.
LOG_SIZE = 4 * 1024 * 1024
VERSION = b"outmail spool 1\n"
_ABOUT = (
    VERSION
    + b"""
Mail that outmail has accepted. queue/ holds what waits, done/ what is finished: each message as ID.eml, and
what became of it as ID.journal. Change nothing here by hand; `outmail queue` does that. index.sqlite is only
a cache: it may be removed, and is made anew from the files.
"""
)
_PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA busy_timeout = 0",
    f"PRAGMA wal_autocheckpoint = {PAGES}",
    "PRAGMA cache_size = -32000",
    "PRAGMA temp_store = MEMORY",
)


def is_spool(path: str) -> bool:
    """True when the folder is one of ours. It is not changed."""
    return os.path.isfile(os.path.join(path, FORMAT))


class MaildirStore(SqliteStore):
    """A queue in one folder. Thread-safe, and safe across forks."""

    _writer: Index
    _reader: Index

    def __init__(self, path: str) -> None:
        root = os.path.realpath(path)
        self._files = Files(root)
        self._lock = -1
        self._locked = False
        self._retry = LOG_SIZE
        #: A power cut makes the index void where that can be known; elsewhere it has to survive one.
        self._sync = (f"PRAGMA synchronous = {'OFF' if boot_id() else 'FULL'}",)
        super().__init__(os.path.join(root, INDEX))
        self.url = f"maildir:{root}"
        self.spool = f"{root}.spool"

    # -- opening ---------------------------------------------------------------------------------------------

    def _check_fork(self) -> None:
        super()._check_fork()
        if self._pid > 0 and drivers.identity(self.path) != self._claim:
            with self._write_lock:
                self._seize(30.0)
                try:
                    self._reopen()
                finally:
                    self._let_go()

    def _open(self) -> None:
        if not can_lock():
            raise StoreError(
                "other",
                "a spool of files needs file locks (fcntl), which this system does not have; use SQLite",
            )
        try:
            _prepare(self._files)
            self._lock = os.open(self._files.format, os.O_RDONLY)
        except OSError as problem:
            raise file_trouble(problem, self._files.root) from None
        try:
            self._seize(30.0)
            self._log = self._opened_log()
            self._connect()
        except BaseException:
            os.close(self._lock)
            self._lock = -1
            raise
        finally:
            self._let_go()
        self._begin_use()

    def _opened_log(self) -> logs.Log:
        """The log; a new one when it is missing or has lost its head. The caller holds the spool's lock."""
        try:
            try:
                found = logs.Log(self._files)
            except FileNotFoundError:
                self._replace_log(None)
                return logs.Log(self._files)
            if found.name:
                return found
            try:
                self._replace_log(found)
            finally:
                found.close()
            return logs.Log(self._files)
        except OSError as problem:
            raise file_trouble(problem, self._files.log) from None

    def _replace_log(self, old: logs.Log | None) -> None:
        """Begin a new log. What is left of the old one is done first, and the index is made anew. Numbers of
        commits go on above all that the files tell of, so that journals stay in order.
        """
        commits = old.read(old.start).commits if old else []
        number = max([self._files.last(), *(commit.number for commit in commits)])
        if old:
            kept = self._files.keep_aside(self._files.log)
            log.error("%s has lost its head; it is kept as %s, and a new one is begun", self._files.log, kept)
        elif number or os.path.exists(self._files.state):
            log.error("%s is missing; a new one is begun", self._files.log)
        self._retire(commits, commits[0].number - 1 if commits else number)
        unlink(self.path)
        logs.begin(self._files, number)

    def _connect(self) -> None:
        """Connections to the index that the spool has now, or to a new one, as the log says."""
        self._connect_to_this()
        try:
            for _ in range(2):
                if self._catch_up() is not None:
                    return
                self._disconnect()
                self._connect_to_this()
            if self._catch_up() is None:
                raise StoreError("io", f"{self._files.log} changes while nobody may change it")
        except BaseException:
            self._disconnect()
            raise

    def _connect_to_this(self) -> None:
        if self._found() != self._identity():
            self._rebuild()
        self._claim = drivers.claim(self.path, "apsw")
        made: list[Index] = []
        try:
            for _ in range(2):
                made.append(Index(self.path, self._files))
                for pragma in (*_PRAGMAS, *self._sync):
                    drivers.patient(partial(made[-1].execute, pragma))
            made[0].watch()
        except BaseException:
            for one in made:
                one.close()
            drivers.release(self._claim)
            raise
        self._writer, self._reader = made

    def _disconnect(self) -> None:
        self._reader.close()
        self._writer.close()
        drivers.release(self._claim)

    def _reopen(self) -> None:
        """The index was replaced. The caller holds the lock of writers, and the spool's."""
        with self._read_lock:
            if drivers.identity(self.path) != self._claim:
                self._disconnect()
                try:
                    self._connect()
                except BaseException:
                    self._pid = 0
                    self._forks = -1  # opened anew at the next call
                    self._close_files()
                    raise
                self._begin_use()

    def _identity(self) -> str:
        """What the index must say to be this spool's, and of the time since the machine was started. The
        file that names the format is never written again, so a copy of the folder differs in it.
        """
        found = os.fstat(self._lock)
        return f"{boot_id()} {found.st_dev} {found.st_ino} {found.st_ctime_ns} {SCHEMA}"

    def _found(self) -> str:
        """What the index says."""
        if not os.path.isfile(self.path):
            return ""
        try:
            index = Index(self.path, self._files)
        except StoreError:
            return ""
        try:
            return str(drivers.patient(lambda: index.execute("SELECT identity FROM spool"))[0][0])
        except (StoreError, IndexError) as problem:
            if isinstance(problem, StoreError) and problem.kind in ("busy", "io", "full", "forbidden"):
                raise
            return ""
        finally:
            index.close()

    def _begin_use(self) -> None:
        super()._begin_use()
        self._due = LOG_SIZE

    # -- the spool's lock ------------------------------------------------------------------------------------

    def _seize(self, wait: float) -> None:
        """Take the spool's lock. Raises `StoreError` "busy" when another process keeps it for ``wait``
        seconds.
        """

        def attempt() -> None:
            if not try_lock(self._lock):
                raise StoreError("busy", f"another program writes to {self._files.root}")

        drivers.patient(attempt, wait)
        self._locked = True
        if not same_file(self._files.format, self._lock):
            self._let_go()
            raise StoreError(
                "io",
                f"{self._files.root} was removed or replaced while open: put it back, or restart this "
                f"program",
            )

    def _let_go(self) -> None:
        if self._locked and self._lock >= 0:
            import fcntl

            self._locked = False
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    # -- writing ---------------------------------------------------------------------------------------------

    def _enter(self, wait: float) -> None:
        self._seize(wait)
        self._number = self._current()

    def _current(self) -> int:
        """The number of the last commit, when files and index are as the log says. The caller holds the lock
        of writers, and the spool's.
        """
        number = self._catch_up() if drivers.identity(self.path) == self._claim else None
        if number is None:
            self._reopen()
            number = self._catch_up()
        if number is None:
            raise StoreError("io", f"{self._files.log} changes while nobody may change it")
        return number

    def _commit(self) -> None:
        try:
            commit, contents = self._writer.changes(self._number + 1)
            size = self._write(commit, contents)
        except OSError as problem:
            self._rollback()
            raise file_trouble(problem, self._files.root) from None
        except BaseException:
            self._rollback()
            raise
        try:
            self._follow(commit, contents, size)
            if size > self._due:
                self._checkpoint(commit.number)
        finally:
            self._rollback()

    def _write(self, commit: Commit, contents: Contents) -> int:
        """The commit. Returns the size of the log; 0 when the commit has nothing for it."""
        try:
            self._files.write_contents(contents.files)
            for upload, pieces in contents.pieces:
                self._files.write_pieces(upload, pieces)
            if contents.files or contents.pieces:
                self._files.sync_tmp()
            return self._log.append(commit) if commit else 0
        except logs.NotTakenBack:
            raise  # whoever reads the line needs the contents
        except OSError:
            for name, _ in contents.files:
                _try(lambda name=name: unlink(self._files.path(TMP, name)))
            raise

    def _follow(self, commit: Commit, contents: Contents, size: int) -> None:
        """The commit has happened: files and index follow. What fails here is done by whoever takes the lock
        next, so the caller is told of no trouble.
        """
        try:
            self._files.land(commit)
            for upload in contents.dropped:
                unlink(self._files.path(TMP, UPLOAD + upload))
            if size:
                self._writer.execute("UPDATE spool SET number = ?, size = ?", (commit.number, size))
            self._writer.forget()
            self._writer.execute("COMMIT")
        except (OSError, StoreError) as problem:
            if not size:
                raise problem if isinstance(problem, StoreError) else file_trouble(problem, self._files.root)
            log.warning(
                "%s: commit %d is stored, but not yet in the journals: %s",
                self._files.root,
                commit.number,
                problem,
            )

    def _rollback(self) -> None:
        try:
            super()._rollback()
            self._writer.forget_contents()
        finally:
            self._let_go()

    # -- after others ----------------------------------------------------------------------------------------

    def _catch_up(self) -> int | None:
        """Bring files and index to what the log says, and cut away what is no commit. Returns the number of
        the last commit; None when the index does not fit the log: then it is removed. The caller holds the
        spool's lock.
        """
        try:
            if not self._log.current() or self._log.size() < self._log.start:
                fresh = self._opened_log()
                self._log.close()
                self._log = fresh
                if not os.path.exists(self.path):
                    return None
            number, name, size = self._writer.execute("SELECT number, log, size FROM spool")[0]
            have = self._log.size()
            if (name, size) == (self._log.name, have):
                return int(number)
            start = size if name == self._log.name else self._log.start if number == self._log.after else -1
            if not 0 <= start <= have:
                unlink(self.path)
                return None
            return self._learn(int(number), start, have)
        except OSError as problem:
            raise file_trouble(problem, self._files.root) from None

    def _learn(self, number: int, start: int, have: int) -> int:
        """Do what the log says from an offset on."""
        found = self._log.read(start)
        self._name_damage(found)
        self._make_sure(found)
        self._files.complete(found.commits, number)
        number = max([number, *(commit.number for commit in found.commits)])
        drivers.patient(lambda: self._writer.execute("BEGIN IMMEDIATE"))
        try:
            for commit in found.commits:
                self._writer.apply_commit(commit)
            self._writer.execute(
                "UPDATE spool SET number = ?, log = ?, size = ?", (number, self._log.name, found.end)
            )
            self._writer.forget()
            self._writer.execute("COMMIT")
        except BaseException:
            super()._rollback()
            raise
        return number

    def _make_sure(self, found: logs.Found) -> None:
        """The log on disk has these commits, and no more; their writer may have died before the flush."""
        if found.end < self._log.size():
            self._log.cut(found.end)
        elif found.commits:
            self._log.flush()

    def _name_damage(self, found: logs.Found) -> None:
        if found.damaged:
            kept = self._files.keep_aside(self._files.log)
            log.error("%d lines of %s cannot be read; it is kept as %s", found.damaged, self._files.log, kept)

    def _rebuild(self) -> None:
        """Make the index anew. Nobody has a connection to it, or will notice that it is another file."""
        try:
            found = self._log.read(self._log.start)
            self._name_damage(found)
            self._make_sure(found)
            self._files.complete(found.commits, self._log.after)
            self._files.sweep()
            state = states.load(self._files)
            if state.damaged:
                kept = self._files.keep_aside(self._files.state)
                log.error(
                    "%d lines of %s cannot be read; it is kept as %s", state.damaged, self._files.state, kept
                )
            state.follow(found.commits)
            number = max([self._log.after, *(commit.number for commit in found.commits)])
            made = self._files.path(TMP, INDEX)
            build(
                self._files, state, made, (self._identity(), number, self._log.name, found.end), repair=True
            )
            unlink(f"{self.path}-wal", f"{self.path}-shm")
            os.rename(made, self.path)
        except OSError as problem:
            raise file_trouble(problem, self._files.root) from None

    def _checkpoint(self, number: int) -> None:
        """Flush what the log tells of, and begin a new one. When that fails, it is tried again later."""
        try:
            self._retire(self._log.read(self._log.start).commits, self._log.after)
            logs.begin(self._files, number)
            self._due = LOG_SIZE
        except OSError as problem:
            self._due = self._log.size() + LOG_SIZE // 4
            log.warning("%s cannot be shortened: %s", self._files.log, problem)

    def _retire(self, commits: list[Commit], after: int) -> None:
        """Everything that these commits of a log say is in the other files, on disk."""
        self._files.flush_journals(self._files.complete(commits, after))
        state = states.load(self._files)
        state.follow(commits)
        states.save(self._files, state)
        sync_folder(self._files.root)

    def changed(self) -> bool:
        """True when another process has committed since the last call. Costs microseconds."""
        size = -1
        with self._read_lock:
            if self._pid > 0:
                ((size,),) = self._reader.execute("SELECT size FROM spool")
        try:
            behind = size >= 0 and os.stat(self._files.log).st_size != size
        except OSError:
            behind = False
        if behind and self._write_lock.acquire(blocking=False):
            try:
                self._seize(0)
                self._current()
            except StoreError:
                pass  # somebody is committing, or the next commit says what is wrong
            finally:
                self._let_go()
                self._write_lock.release()
        return super().changed()

    # -- upkeep ----------------------------------------------------------------------------------------------

    def sweep_uploads(self) -> int:
        """See `Store.sweep_uploads`. Files without pieces in the index go as well."""
        count = super().sweep_uploads()
        for entry in os.scandir(self._files.path(TMP, "")):
            upload = entry.name.removeprefix(UPLOAD)
            # the lock file exists from before the first piece until after the commit of the message
            lost = entry.name != upload and not os.path.lexists(self._upload_file(upload))
            if lost and not self.read(_has_pieces(upload)):
                unlink(entry.path)
        return count

    def check(self) -> list[str]:
        """What is wrong with the spool, in sentences: the index is compared with the files."""
        problems = super().check()
        with self._write_lock:
            self._seize(30.0)
            try:
                self._current()
                return problems + self._compared()
            except OSError as problem:
                raise file_trouble(problem, self._files.root) from None
            finally:
                self._let_go()

    def _compared(self) -> list[str]:
        from outmail.store.maildir.checking import differences

        found = self._log.read(self._log.start)
        state = states.load(self._files)
        state.follow(found.commits)
        made = self._files.path(TMP, f"check-{INDEX}")
        try:
            findings = build(self._files, state, made, ("", 0, "", 0), repair=False)
            problems = findings.sentences() + differences(self._writer, made)
        finally:
            unlink(made)
        broken = sorted(os.listdir(self._files.path("broken", "")))
        if broken:
            problems.append(
                f"{len(broken)} files were damaged and are kept in {self._files.path('broken', '')}"
            )
        return problems

    def backup(self, target: str) -> bool:
        """A backup is a SQLite file: messages are copied one by one."""
        return False

    # -- forks and the end -----------------------------------------------------------------------------------

    def forsake(self) -> None:
        """See `forks.Holder`."""
        opened = self._pid > 0
        super().forsake()
        if opened:
            self._locked = False
            self._close_files()

    def close(self) -> None:
        """Close the connections and the files. Running calls finish first."""
        opened = self._pid == os.getpid()
        super().close()
        if opened and self._pid == -1 and self._lock >= 0:
            self._close_files()

    def _close_files(self) -> None:
        os.close(self._lock)
        self._lock = -1
        self._log.close()


def _has_pieces(upload: str) -> Verb[bool]:
    return bool((yield "SELECT 1 FROM piece WHERE upload = ? LIMIT 1", (upload,)))


def _try(action: Any) -> None:
    try:
        action()
    except OSError:
        pass


def _prepare(files: Files) -> None:
    """Make the spool, unless it is there."""
    if not is_spool(files.root):
        _make(files)
    with open(files.format, "rb") as file:
        first = file.readline()
    if first != VERSION:
        raise StoreError(
            "schema",
            f"{files.root} says it is {first.decode('utf-8', 'replace').strip()!r}; this version knows "
            f"{VERSION.decode().strip()!r}: upgrade outmail",
        )
    home = os.stat(files.root).st_dev
    for folder in FOLDERS:
        path = files.path(folder, "")
        try:
            apart = os.stat(path).st_dev != home
        except FileNotFoundError:
            os.mkdir(path, 0o700)
            sync_folder(files.root)
            continue
        if apart:
            raise StoreError(
                "other", f"{path} lies on another file system than {files.root}; a spool needs one for all"
            )


def _make(files: Files) -> None:
    try:
        os.mkdir(files.root, 0o700)
    except FileExistsError:
        pass
    except FileNotFoundError:
        raise StoreError(
            "forbidden", f"the folder of {files.root} does not exist: create it, or choose another store", 2
        ) from None
    if not os.path.isdir(files.root):
        raise StoreError("forbidden", f"{files.root} is no folder", errno.ENOTDIR)
    others = set(os.listdir(files.root)) - {*FOLDERS, LOG, FORMAT}
    others = {name for name in others if not name.startswith(f"{FORMAT}.")}
    if others:
        raise StoreError(
            "forbidden",
            f"{files.root} holds other things ({', '.join(sorted(others)[:3])}): name a new or an empty "
            f"folder",
            errno.ENOTEMPTY,
        )
    for folder in FOLDERS:
        os.makedirs(files.path(folder, ""), 0o700, exist_ok=True)
    sync_folder(os.path.dirname(files.root))
    write_once(files.format, _ABOUT, 0o600)
