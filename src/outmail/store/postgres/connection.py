"""One connection to PostgreSQL for writing, shared by all threads that ask at the same moment.

How: the requests of verbs become statements of psycopg. A request that is alone runs in autocommit, several
run in a pipeline between BEGIN and COMMIT, very many rows go by COPY.
Promises: what `GroupCommit` promises. A broken connection is replaced at the next call. When a connection
breaks during a call, the caller is told that the call may have happened.
Fails: `StoreError`. Does not: know schemas, engines or other connections (`PostgresStore`).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from outmail.errors import ConfigError
from outmail.store import Alone, Bulk, Exclusive, Kind, Many, Numbers, StoreError, Verb
from outmail.store.commit_threads import GroupCommit
from outmail.store.postgres import dialect

log = logging.getLogger("outmail")

#: Seconds that a statement waits for a lock, unless the server or the role sets another limit.
LOCK_WAIT = 30.0
#: Settings of our sessions. Whatever writes can find its rows by an index: a prepared plan that was made
#: while a table was small must not read the whole table when it has grown.
_SESSION = (
    "SELECT set_config('enable_seqscan', %s, false), set_config('jit', 'off', false),"
    " set_config('lock_timeout', CASE current_setting('lock_timeout') WHEN '0' THEN %s ELSE "
    "current_setting('lock_timeout') END, false)"
)
#: The class (first key) of our advisory locks for message ids.
_IDS = 0x6F75746E

_KINDS: dict[str, Kind] = {
    "53100": "full", "53200": "busy", "53300": "busy", "25006": "readonly", "40001": "conflict",
    "40P01": "conflict", "23505": "conflict", "55P03": "busy",
    "57014": "busy", "28000": "forbidden", "28P01": "forbidden", "42501": "forbidden", "3D000": "forbidden",
    "57P01": "io", "57P02": "io",
    "57P03": "io", "XX001": "corrupt", "XX002": "corrupt",
}  # fmt: skip


def psycopg() -> Any:
    """The psycopg package, or a sentence that says how to install it."""
    try:
        import psycopg
    except ImportError as problem:
        raise ConfigError(
            f"PostgreSQL needs the package psycopg ({problem})", hint='pip install "outmail[postgres]"'
        ) from None
    return psycopg


def _not_told_twice(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("error ignored")


#: psycopg logs warnings when a pipeline breaks; `StoreError` tells the same.
logging.getLogger("psycopg").addFilter(_not_told_twice)


def trouble(problem: Exception) -> StoreError:
    """An exception of psycopg as a StoreError. Without an SQLSTATE the connection could not be made or was
    lost.
    """
    state = getattr(problem, "sqlstate", None)
    text = " ".join(str(problem).split())
    if state is None and re.search(
        r"password authentication failed|no pg_hba.conf entry|does not exist|no password supplied", text
    ):
        return StoreError("forbidden", text, errno.EACCES, _admission(text))
    if state is None and re.search(r"too many (connections|clients)|remaining connection slots", text):
        return StoreError("busy", text)
    if state is None and isinstance(problem, psycopg().OperationalError):
        return StoreError("io", text or "the connection was lost")
    kind = _KINDS.get(state or "", "other")
    forbidden = kind == "forbidden"
    return StoreError(kind, text, errno.EACCES if forbidden else None, _admission(text) if forbidden else "")


def _admission(text: str) -> str:
    """What to do when the server lets nobody in."""
    if re.search(r'database "[^"]*" does not exist', text):
        return "the server answers, and has no such database: create it (createdb), or name another one"
    if re.search(r'role "[^"]*" does not exist', text):
        return "the server answers, and has no such user: create it (createuser), or name another in the URL"
    if "pg_hba" in text:
        return "the server does not let this user in from here: allow it in its pg_hba.conf"
    if "password" in text:
        return "check user and password in the URL, or ~/.pgpass"
    return "the user has no right to do that: check its grants on the database"


class Connection:
    """One connection to the server, made when it is needed and again when it is broken. Used by one thread at
    a time. With ``whole`` it may read whole tables.
    """

    def __init__(self, conninfo: str, *, prepare: bool, whole: bool = False) -> None:
        self._conninfo = conninfo
        self._prepare = prepare
        self._scans = "on" if whole else "off"
        self._db: Any = None

    def open(self) -> Any:
        """The psycopg connection."""
        if self._db is not None and not (self._db.closed or self._db.broken):
            return self._db
        library = psycopg()
        try:
            self._db = library.connect(
                self._conninfo, autocommit=True, prepare_threshold=5 if self._prepare else None
            )
            if self._prepare:  # not behind PgBouncer, where settings would hit another client's session
                self._db.execute(_SESSION, (self._scans, f"{LOCK_WAIT * 1000:.0f}ms"))
        except library.Error as problem:
            raise trouble(problem) from None
        for dumper in _lenient():
            self._db.adapters.register_dumper(str, dumper)
        return self._db

    def drop(self) -> None:
        """Close it; the next call makes another one.

        This is also done after any error of the server. The server skips what was sent after the failed
        statement, but psycopg believes that the statements which it was about to prepare there are prepared.
        """
        if self._db is not None:
            with contextlib.suppress(Exception):
                self._db.close()
        self._db = None


@cache
def _lenient() -> list[Any]:
    """Text as PostgreSQL accepts it: without NUL and without unpaired surrogates (both come only from hostile
    peers). The last dumper is the default.
    """
    from psycopg.types.string import StrBinaryDumper, StrDumperUnknown

    def dump(self: Any, value: str) -> bytes:
        return value.replace("\0", "\ufffd").encode("utf-8", "replace")

    return [type("Lenient", (base,), {"dump": dump}) for base in (StrBinaryDumper, StrDumperUnknown)]


def drive(db: Any, verb: Verb[Any], request: Any = None) -> Any:
    """Run a verb to its end on a connection whose transaction has begun; ``request`` is its first request
    where that has been read already.
    """
    try:
        request = request if request is not None else next(verb)
        while True:
            request = verb.send(_answer(db, request))
    except StopIteration as stop:
        return stop.value
    finally:
        verb.close()


def _single(db: Any, verb: Verb[Any]) -> Any:
    """One verb in one transaction: a single statement, or a pipeline. A pipeline needs BEGIN: without it,
    what a failing verb has half done would be committed.
    """
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
        db.execute("BEGIN", prepare=False)
        answer = drive(db, verb, request)
        db.execute("COMMIT", prepare=False)
    return answer


def _answer(db: Any, request: Any) -> list[Any]:
    if isinstance(request, tuple):
        sql, numbered = dialect.translated(request[0])
        cursor = db.execute(
            sql, dialect.parameters(request[1], numbered) or None, prepare=dialect.prepared(sql), binary=True
        )
        return list(cursor.fetchall()) if _tells(sql) else []
    if isinstance(request, Many):
        return _many(db, request)
    if isinstance(request, Alone):
        return _answer(db, (request.sql, request.params))
    if isinstance(request, Numbers):
        if not request.count:
            return []
        rows = db.execute(
            f"SELECT nextval('outmail.{request.table}_seq') FROM generate_series(1, %s)",
            (request.count,),
            binary=True,
        )
        return [row[0] for row in rows.fetchall()]
    if isinstance(request, Bulk):
        return []
    assert isinstance(request, Exclusive)
    # sorted, so that two transactions that want the same ids do not deadlock
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
    if (
        len(request.rows) > dialect.FEW
        and db.pgconn.pipeline_status == 0
        and (copying := dialect.copying(request.sql))
    ):
        return _copied(db, *copying, request.rows)
    sql, numbered = dialect.translated(request.sql)
    rows = [dialect.parameters(row, numbered) for row in request.rows]
    with db.cursor(binary=True) as cursor:
        cursor.executemany(sql, rows, returning=_tells(sql))
        found: list[Any] = []
        if _tells(sql):
            while True:
                found += cursor.fetchall()
                if not cursor.nextset():
                    break
        return found


def _copied(
    db: Any, sql: str, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
) -> list[Any]:
    """Insert rows by COPY: two thirds of the time of as many INSERTs. COPY cannot be part of a pipeline."""
    found = db.execute(
        "SELECT a.attname, t.typname FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid WHERE "
        "a.attrelid = %s::regclass AND a.attnum > 0",
        (f"outmail.{table}",),
    )
    types = dict(found.fetchall())
    with db.cursor() as cursor, cursor.copy(sql) as copy:
        copy.set_types([types[column] for column in columns])
        for row in rows:
            copy.write_row(row)
    return []


class SharedConnection(GroupCommit):
    """A connection and the threads that wait for it."""

    def __init__(self, url: str, conninfo: str, *, prepare: bool) -> None:
        super().__init__()
        self.url = url
        self.connection = Connection(conninfo, prepare=prepare)
        self._closed = False
        #: A verb among several has failed: from then on it is unknown which statements are prepared.
        self._in_doubt = False

    def _check_fork(self) -> None:
        """Nothing: `PostgresStore` checks for forks and makes new connections in a child."""

    def close(self) -> None:
        """Close it when no thread uses it any more."""
        with self._write_lock:
            self._closed = True
            self.connection.drop()

    def if_free(self, action: Callable[[Any], None]) -> None:
        """Do something that is not important: it is skipped when the connection is in use or broken."""
        if not self._write_lock.acquire(blocking=False):
            return
        try:
            if not self._closed:
                action(self.connection.open())
        except StoreError as problem:
            log.info("skipped, because the connection is broken: %s", problem)
        finally:
            self._write_lock.release()

    def _transaction(self, verbs: Sequence[Verb[Any]], wait: float) -> list[Any]:
        if self._closed:
            raise StoreError("closed", f"{self.url} is closed")
        library = psycopg()
        db = self.connection.open()
        self._in_doubt = False
        try:
            answers = [_single(db, verbs[0])] if len(verbs) == 1 else self._several(db, verbs)
        except library.Error as problem:
            found = trouble(problem)
            if found.kind == "io":
                found = StoreError(
                    "io", f"the connection was lost; what was asked may have happened: {found}"
                )
            self.connection.drop()
            raise found from None
        except BaseException:
            self.connection.drop()
            raise
        if self._in_doubt:
            self.connection.drop()
        return answers

    def _several(self, db: Any, verbs: Sequence[Verb[Any]]) -> list[Any]:
        with db.pipeline() as pipeline:
            db.execute("BEGIN", prepare=False)
            answers = [self._guarded(db, pipeline, verb) for verb in verbs]
            db.execute("COMMIT", prepare=False)
        return answers

    def _guarded(self, db: Any, pipeline: Any, verb: Verb[Any]) -> Any:
        """Run one of several verbs. When it fails, only its own changes are undone, unless the store itself
        is in trouble.
        """
        library = psycopg()
        db.execute("SAVEPOINT verb", prepare=False)
        try:
            answer = drive(db, verb)
            pipeline.sync()
        except Exception as problem:
            if isinstance(problem, library.Error):
                problem, self._in_doubt = trouble(problem), True
            try:
                pipeline.sync()
            except library.Error:
                self._in_doubt = True
            if db.broken or (isinstance(problem, StoreError) and problem.kind not in ("other", "conflict")):
                raise problem from None
            db.execute("ROLLBACK TO verb", prepare=False)
            answer = problem
        db.execute("RELEASE verb", prepare=False)
        return answer
