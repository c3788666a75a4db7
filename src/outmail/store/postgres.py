"""The PostgreSQL store: one database, any number of hosts.

Promises: what `commit` returned was committed (``synchronous_commit`` is the server's affair); a transaction is never open while the
network of mail is used; no state is kept in a session, so PgBouncer may stand between (``?pgbouncer=1``: no prepared statements);
threads that ask at the same moment share one commit; a connection that broke is made anew with the next call, with several hosts in
the URL on the one that takes writes; when it breaks while a call is under way, the caller is told that the call may have happened.
Engines hold leases by the server's clock, renewed every 30 s; one that could not renew for 90 s puts no more dots on record. The dot
record is a local file: an engine killed is taken back at once and exactly on its own host, elsewhere after the lease, and then
everything it had leased counts as uncertain.
Fails: `Trouble`. Does not: create databases or roles, or tune the server.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib import resources
from typing import Any, TypeVar

from outmail.errors import ConfigError
from outmail.model import Delivery, Leased
from outmail.store import Alone, Bulk, Exclusive, Many, Numbers, Trouble, Verb, pgsql, shown, verbs
from outmail.store.group import GroupCommit
from outmail.store.hints import Hints
from outmail.store.owner import Owner, OwnerFile, boot_id, dead_files

log = logging.getLogger("outmail")

SCHEMA = 1
R = TypeVar("R")
#: Seconds: to connect, and between looks for other hosts' mail.
CONNECT = 10
POLL = 0.3
#: Seconds between looks for leases of owners that nobody knows.
WALK = 60.0
#: An upgrade waits so many seconds for a table: whoever comes behind it waits too.
UPGRADE_WAIT = 5
#: Seconds between giving cursors to events that nobody asked for.
NUMBERING = 10.0
#: The advisory lock of schema upgrades; the class of those for message ids.
_UPGRADE = 0x6F75746D
_IDS = 0x6F75746E

_kinds = {
    "53100": "full", "53200": "busy", "53300": "busy", "25006": "readonly", "40001": "conflict", "40P01": "conflict", "23505": "conflict", "55P03": "busy",
    "57014": "busy", "28000": "forbidden", "28P01": "forbidden", "42501": "forbidden", "3D000": "forbidden", "57P01": "io", "57P02": "io",
    "57P03": "io", "XX001": "corrupt", "XX002": "corrupt",
}  # fmt: skip


def psycopg() -> Any:
    """The package, or a sentence how to get it."""
    try:
        import psycopg
    except ImportError as problem:
        raise ConfigError(f"PostgreSQL needs the package psycopg ({problem})", hint='pip install "outmail[postgres]"') from None
    return psycopg


def _not_told_twice(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("error ignored")


#: What it warns of when a pipeline breaks off is told by `Trouble`.
logging.getLogger("psycopg").addFilter(_not_told_twice)


def trouble(problem: Exception) -> Trouble:
    """An exception of psycopg → Trouble. What has no SQLSTATE is a connection that could not be made or was lost."""
    state = getattr(problem, "sqlstate", None)
    text = " ".join(str(problem).split())
    if state is None and re.search(r"password authentication failed|no pg_hba.conf entry|does not exist|no password supplied", text):
        return Trouble("forbidden", text, errno.EACCES)
    if state is None and re.search(r"too many (connections|clients)|remaining connection slots", text):
        return Trouble("busy", text)
    if state is None and isinstance(problem, psycopg().OperationalError):
        return Trouble("io", text or "the connection was lost")
    kind = _kinds.get(state or "", "other")
    return Trouble(kind, text, errno.EACCES if kind == "forbidden" else None)


class Connection:
    """One connection to the server, made when needed and again when broken. Used by one thread at a time."""

    def __init__(self, conninfo: str, *, prepare: bool) -> None:
        self._conninfo = conninfo
        self._prepare = prepare
        self._db: Any = None

    def open(self) -> Any:
        """The psycopg connection."""
        if self._db is not None and not (self._db.closed or self._db.broken):
            return self._db
        library = psycopg()
        try:
            self._db = library.connect(self._conninfo, autocommit=True, prepare_threshold=5 if self._prepare else None)
        except library.Error as problem:
            raise trouble(problem) from None
        for dumper in _lenient():
            self._db.adapters.register_dumper(str, dumper)
        return self._db

    def drop(self) -> None:
        """Close it; the next call makes another."""
        if self._db is not None:
            with contextlib.suppress(Exception):
                self._db.close()
        self._db = None

    def settle_down(self) -> None:
        """After an error: out of the transaction, or away with it."""
        library = psycopg()
        try:
            if self._db is not None and self._db.info.transaction_status != library.pq.TransactionStatus.IDLE:
                self._db.execute("ROLLBACK")
        except library.Error:
            self.drop()


def schema_step(n: int) -> str:
    """The statements that make schema ``n`` of the one before. Each leaves the version before it working: columns and tables come, with
    defaults, and go one step after nobody knows them any more."""
    return (resources.files("outmail.store") / "sql" / f"postgresql-{n}.sql").read_text("utf-8")


@cache
def _lenient() -> list[Any]:
    """Text as PostgreSQL takes it: no NUL, and no half of a surrogate pair; both come from hostile peers only. The last one is the default."""
    from psycopg.types.string import StrBinaryDumper, StrDumperUnknown

    def dump(self: Any, value: str) -> bytes:
        return value.replace("\0", "\ufffd").encode("utf-8", "replace")

    return [type("Lenient", (base,), {"dump": dump}) for base in (StrBinaryDumper, StrDumperUnknown)]


def drive(db: Any, verb: Verb[Any], request: Any = None) -> Any:
    """Run a verb to its end on a connection that is already in the right transaction; from ``request`` on, where that is known."""
    try:
        request = request if request is not None else next(verb)
        while True:
            request = verb.send(_answer(db, request))
    except StopIteration as stop:
        return stop.value
    finally:
        verb.close()


def _single(db: Any, verb: Verb[Any]) -> Any:
    """One verb, one transaction: a statement by itself, or a pipeline. (One without BEGIN would commit what a failing verb left half done.)"""
    try:
        request = next(verb)
    except StopIteration as stop:
        return stop.value
    if isinstance(request, Alone):
        return drive(db, verb, request)
    if isinstance(request, Bulk):
        with db.transaction():
            return drive(db, verb, request)
    with db.pipeline():
        db.execute("BEGIN")
        answer = drive(db, verb, request)
        db.execute("COMMIT")
    return answer


def _answer(db: Any, request: Any) -> list[Any]:
    if isinstance(request, tuple):
        sql, numbered = pgsql.translated(request[0])
        cursor = db.execute(sql, pgsql.parameters(request[1], numbered) or None, binary=True)
        return list(cursor.fetchall()) if _tells(sql) else []
    if isinstance(request, Many):
        return _many(db, request)
    if isinstance(request, Alone):
        return _answer(db, (request.sql, request.params))
    if isinstance(request, Numbers):
        if not request.count:
            return []
        rows = db.execute(f"SELECT nextval('outmail.{request.table}_seq') FROM generate_series(1, %s)", (request.count,), binary=True)
        return [row[0] for row in rows.fetchall()]
    if isinstance(request, Bulk):
        return []
    assert isinstance(request, Exclusive)
    # in order, so that two that want the same ones do not wait for each other
    for id in sorted(set(request.ids)):
        db.execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", (_IDS, id))
    return []


def _tells(sql: str) -> bool:
    return sql.startswith("SELECT") or "RETURNING" in sql


def _many(db: Any, request: Many) -> list[Any]:
    if not request.rows:
        return []
    if len(request.rows) == 1:
        return _answer(db, (request.sql, request.rows[0]))
    if len(request.rows) > pgsql.FEW and db.pgconn.pipeline_status == 0 and (copying := pgsql.copying(request.sql)):
        return _copied(db, *copying, request.rows)
    sql, numbered = pgsql.translated(request.sql)
    rows = [pgsql.parameters(row, numbered) for row in request.rows]
    with db.cursor(binary=True) as cursor:
        cursor.executemany(sql, rows, returning=_tells(sql))
        found: list[Any] = []
        if _tells(sql):
            while True:
                found += cursor.fetchall()
                if not cursor.nextset():
                    break
        return found


def _copied(db: Any, sql: str, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[Any]:
    """Rows by COPY, two thirds of the time of as many INSERTs. It works outside of a pipeline only."""
    found = db.execute(
        "SELECT a.attname, t.typname FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid WHERE a.attrelid = %s::regclass AND a.attnum > 0",
        (f"outmail.{table}",),
    )
    types = dict(found.fetchall())
    with db.cursor() as cursor, cursor.copy(sql) as copy:
        copy.set_types([types[column] for column in columns])
        for row in rows:
            copy.write_row(row)
    return []


class LeasedOwner(Owner):
    """An engine's registration that must be renewed: its row, its lease, and its file on this host."""

    def __init__(self, store: PostgresStore, id: int, file: OwnerFile, row: tuple[Any, ...]) -> None:
        super().__init__(store, id, file)
        self.row = row
        self.renewed = time.monotonic()
        self._owners = store._owners

    def close(self) -> None:
        self._owners.discard(self)
        super().close()


class PostgresStore(GroupCommit):
    """A queue in the schema ``outmail`` of a PostgreSQL database. ``base`` is a path on this host for spool and engines' files."""

    blocking = True

    def __init__(self, url: str, base: str) -> None:
        super().__init__()
        conninfo, self._prepare = conninfo_of(url)
        self._hints = Hints(lambda: psycopg().connect(conninfo, autocommit=True)) if asked(url, "notify") else None
        self.url = shown(url)
        self.spool = f"{base}.spool"
        self._base = base
        self._conninfo = conninfo
        self._owners: set[LeasedOwner] = set()
        self._leaked: list[Any] = []
        self._looked = self._numbered = self._walked = 0.0
        self._closed = False
        self.verbs = pgsql.verbs_of(pgsql.Floor())
        self._connect()
        self._upgrade()

    def _connect(self) -> None:
        self._pid = os.getpid()
        self._read_lock = threading.Lock()
        self._writer = Connection(self._conninfo, prepare=self._prepare)
        self._reader = Connection(self._conninfo, prepare=self._prepare)

    def _check_fork(self) -> None:
        if self._pid != os.getpid():
            self._leaked += [self._writer, self._reader]  # closing them here would end the parent's sessions
            self._owners = set()
            self._begin_anew()
            self._connect()
        if self._closed:
            raise Trouble("closed", f"{self.url} is closed")

    def _upgrade(self) -> None:
        """Bring the database to this version's schema: one transaction a step, one upgrader at a time."""
        try:
            db = self._writer.open()
            exists = db.execute("SELECT to_regclass('outmail.version') IS NOT NULL").fetchone()[0]
            found = db.execute("SELECT max(n) FROM outmail.version").fetchone()[0] if exists else -1
            if found > SCHEMA + 1:
                raise Trouble("schema", f"{self.url} has schema {found}, made by a later outmail; this one works with up to {SCHEMA + 1}: upgrade outmail")
            if found >= SCHEMA:
                return
            with db.transaction():
                db.execute("SELECT pg_advisory_xact_lock(%s, 0)", (_UPGRADE,))
                db.execute(f"SET LOCAL lock_timeout = '{UPGRADE_WAIT}s'")
                if not exists:
                    db.execute("CREATE SCHEMA IF NOT EXISTS outmail")
                made = db.execute("SELECT to_regclass('outmail.version') IS NOT NULL").fetchone()[0]
                found = db.execute("SELECT max(n) FROM outmail.version").fetchone()[0] if made else 0
                for step in range(found + 1, SCHEMA + 1):
                    db.execute(schema_step(step))
                    db.execute("UPDATE outmail.version SET n = %s", (step,))
        except psycopg().Error as problem:
            raise trouble(problem) from None

    def close(self) -> None:
        """Close the connections. Calls that are under way finish first."""
        if self._pid != os.getpid() or self._closed:
            return
        with self._write_lock, self._read_lock:
            self._closed = True
            if self._hints is not None:
                self._hints.close()
            self._reader.drop()
            self._writer.drop()

    # -- writing ----------------------------------------------------------------------------------------------------

    def _transaction(self, verbs: Sequence[Verb[Any]], wait: float) -> list[Any]:
        library = psycopg()
        db = self._writer.open()
        try:
            return [_single(db, verbs[0])] if len(verbs) == 1 else self._several(db, verbs)
        except library.Error as problem:
            found = trouble(problem)
            if found.kind == "io":
                found = Trouble("io", f"the connection was lost; what was asked may have happened: {found}")
            self._writer.settle_down()
            raise found from None
        except BaseException:
            self._writer.settle_down()
            raise

    def _several(self, db: Any, verbs: Sequence[Verb[Any]]) -> list[Any]:
        with db.pipeline() as pipeline:
            db.execute("BEGIN")
            answers = [self._guarded(db, pipeline, verb) for verb in verbs]
            db.execute("COMMIT")
        return answers

    def _guarded(self, db: Any, pipeline: Any, verb: Verb[Any]) -> Any:
        """One verb among several: its failure undoes its own changes only, unless the store itself is in trouble."""
        library = psycopg()
        db.execute("SAVEPOINT verb")
        try:
            answer = drive(db, verb)
            pipeline.sync()
        except Exception as problem:
            if isinstance(problem, library.Error):
                problem = trouble(problem)
            with contextlib.suppress(library.Error):
                pipeline.sync()
            if db.broken or (isinstance(problem, Trouble) and problem.kind not in ("other", "conflict")):
                raise problem from None
            db.execute("ROLLBACK TO verb")
            answer = problem
        db.execute("RELEASE verb")
        return answer

    # -- reading ----------------------------------------------------------------------------------------------------

    def read(self, verb: Verb[R]) -> R:
        """A verb from one snapshot. (Reading events also gives them their cursors.)"""
        self._check_fork()
        library = psycopg()
        with self._read_lock:
            for last in (False, True):
                try:
                    db = self._reader.open()
                    db.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
                    break
                except library.Error as problem:  # an idle connection that was cut: once more with a fresh one
                    self._reader.drop()
                    if last:
                        raise trouble(problem) from None
            try:
                answer = drive(db, verb)
                db.execute("COMMIT")
                return answer  # type: ignore[no-any-return]
            except library.Error as problem:
                self._reader.settle_down()
                raise trouble(problem) from None
            except BaseException:
                self._reader.settle_down()
                raise

    def changed(self) -> bool:
        """True from time to time: other hosts' mail is found by looking."""
        now = time.monotonic()
        if now - self._looked < POLL:
            return False
        self._looked = now
        return True

    def announce(self) -> None:
        """A hint for engines on other hosts, unless the connection is busy: then others tell."""
        if self._hints is not None and self._pid == os.getpid() and self._write_lock.acquire(blocking=False):
            try:
                self._hints.tell(self._writer.open())
            except Trouble as problem:
                log.info("the hint that there is new mail was not given: %s", problem)
            finally:
                self._write_lock.release()

    def follow(self, wake: Callable[[], None]) -> None:
        """Hear the hints of other hosts."""
        if self._hints is not None:
            self._hints.listen(wake)

    # -- engines ----------------------------------------------------------------------------------------------------

    def register(self, now: int) -> LeasedOwner:
        """Become an engine of this store."""
        name = uuid.uuid4().hex
        row = (name, os.getpid(), socket.gethostname(), boot_id(), now)
        try:
            os.makedirs(os.path.dirname(self._base), mode=0o700, exist_ok=True)
            file = OwnerFile(self._base, name)
        except OSError as problem:
            raise Trouble("forbidden", f"{self._base} cannot be written: {problem.strerror}", problem.errno) from None
        try:
            number = self.run(pgsql.VERBS.register(*row))
        except BaseException:
            file.close()
            raise
        owner = LeasedOwner(self, number, file, row)
        self._owners.add(owner)
        return owner

    def dots(self, owner: LeasedOwner, notes: Iterable[tuple[Delivery, Sequence[Leased]]]) -> None:
        """Put final dots on record, unless the lease may be in others' hands soon."""
        if time.monotonic() - owner.renewed > pgsql.CONFIDENCE:
            raise Trouble("io", f"the lease has not been renewed for {pgsql.CONFIDENCE:.0f} s")
        owner.note(notes)

    def settled(self, owner: LeasedOwner, deliveries: Iterable[Delivery]) -> None:
        owner.forget(deliveries)

    def reclaim(self, now: int, *, hold: bool) -> list[dict[str, Any]]:
        """Renew our own leases, take back the work of dead engines, number events."""
        self._renew(now)
        found = self._reclaim_here(now, hold)
        walk = time.monotonic() - self._walked > WALK
        self._walked = time.monotonic() if walk else self._walked
        for id in self.read(pgsql.expired_owners(orphans=walk)):
            found.append(self.run(pgsql.reclaim(id, None, now, rebooted=False, hold=hold, sure=False)))
        if time.monotonic() - self._numbered > NUMBERING:
            self._numbered = time.monotonic()
            while self.run(self.verbs.number_events()):
                pass
        return [item for item in found if item["leases"]]

    def _renew(self, now: int) -> None:
        for owner in list(self._owners):
            began = time.monotonic()
            if began - owner.renewed >= pgsql.RENEWAL:
                self.run(pgsql.renew(owner.id, *owner.row))
                owner.renewed = began

    def _reclaim_here(self, now: int, hold: bool) -> list[dict[str, Any]]:
        """Engines of this host whose file nobody holds."""
        found = []
        known: dict[str, Any] | None = None
        for dead in dead_files(self._base):
            known = known if known is not None else {row[1]: row for row in self.read(pgsql.VERBS.owners())}
            row = known.get(dead.uuid)
            try:
                if row is not None:
                    rebooted = row[3] != boot_id()
                    found.append(self.run(pgsql.reclaim(row[0], None if rebooted else dead.notes(), now, rebooted=rebooted, hold=hold)))
            except BaseException:
                dead.close()
                raise
            dead.remove()
        return found

    def identity(self, sql: str) -> tuple[Any, ...]:
        """One row that says which database this is (`source.IDENTITY`)."""
        return tuple(self.read(_row(sql)))

    # -- upkeep -----------------------------------------------------------------------------------------------------

    def check(self) -> list[str]:
        """What is wrong with the queue, in sentences; an empty list is good news."""
        problems = []
        for sql, text in _CHECKS:
            count = self.read(_row(sql))[0]
            if count:
                problems.append(f"{count} {text}")
        return problems


_CHECKS = (
    *verbs.CHECKS,
    ("SELECT count(*) FROM (SELECT 1 FROM recipient GROUP BY message, n HAVING count(*) > 1) d", "recipients that are there twice"),
)


def _row(sql: str) -> Verb[Any]:
    rows = yield sql, ()
    return rows[0]


# -- URLs ---------------------------------------------------------------------------------------------------------------


def asked(url: str, word: str) -> bool:
    """True when ``word=1`` stands in the URL: ``pgbouncer`` and ``notify`` are ours, not libpq's."""
    found = re.search(rf"[?&]{word}=([^&]*)", url)
    return found is not None and found[1] not in ("0", "false", "no")


def conninfo_of(url: str) -> tuple[str, bool]:
    """``postgresql://…`` → (what libpq takes, whether statements may be prepared)."""
    library = psycopg()
    if asked(url, "pgbouncer") and asked(url, "notify"):
        raise ConfigError(f"{shown(url)}: behind PgBouncer no hint can be heard", hint="leave notify=1 out; other hosts' mail is found by looking")
    bare = url
    for word in ("pgbouncer", "notify"):
        bare = re.sub(rf"([?&]){word}=[^&]*&?", r"\1", bare)
    try:
        words = library.conninfo.conninfo_to_dict(bare.rstrip("?&"))
    except library.Error as problem:
        raise ConfigError(f"{shown(url)} is no URL of a PostgreSQL database: {problem}") from None
    words.setdefault("connect_timeout", CONNECT)
    words.setdefault("application_name", "outmail")
    words.setdefault("keepalives_idle", 30)
    words.setdefault("tcp_user_timeout", 30_000)
    if "," in str(words.get("host", "")):
        words.setdefault("target_session_attrs", "read-write")
    return library.conninfo.make_conninfo(**words), not asked(url, "pgbouncer")


def place_of(url: str) -> str:
    """A short name of the database that a URL means, for files of this host."""
    words = psycopg().conninfo.conninfo_to_dict(conninfo_of(url)[0])
    place = "\0".join(str(words.get(name, "")) for name in ("host", "hostaddr", "port", "dbname", "service"))
    return f"postgresql-{hashlib.sha256(place.encode()).hexdigest()[:12]}"
