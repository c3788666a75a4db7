"""One connection to PostgreSQL that writes, for all threads of a program that ask at the same moment.

How: requests of verbs become statements of psycopg: one that is alone goes in autocommit, several in a
pipeline between BEGIN and COMMIT, very many rows by COPY. Promises: what `GroupCommit` promises; a connection
that broke is made anew with the next call; when it breaks while a call is under way, the caller is told that
the call may have happened.
Fails: `StoreError`. Does not: know schemas, engines or other lanes (`postgres`).
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

#: Seconds that a statement waits for somebody's lock, where neither server nor role say otherwise.
LOCK_WAIT = 30.0
#: A session of ours. What writes finds everything by an index: a plan that was made while a table was small,
#: and kept, must not read it whole when it has grown.
_SESSION = (
    "SELECT set_config('enable_seqscan', %s, false), set_config('jit', 'off', false),"
    " set_config('lock_timeout', CASE current_setting('lock_timeout') WHEN '0' THEN %s ELSE "
    "current_setting('lock_timeout') END, false)"
)
#: The class of advisory locks for message ids.
_IDS = 0x6F75746E

_KINDS: dict[str, Kind] = {
    "53100": "full", "53200": "busy", "53300": "busy", "25006": "readonly", "40001": "conflict",
    "40P01": "conflict", "23505": "conflict", "55P03": "busy",
    "57014": "busy", "28000": "forbidden", "28P01": "forbidden", "42501": "forbidden", "3D000": "forbidden",
    "57P01": "io", "57P02": "io",
    "57P03": "io", "XX001": "corrupt", "XX002": "corrupt",
}  # fmt: skip


def psycopg() -> Any:
    """The package, or a sentence how to get it."""
    try:
        import psycopg
    except ImportError as problem:
        raise ConfigError(
            f"PostgreSQL needs the package psycopg ({problem})", hint='pip install "outmail[postgres]"'
        ) from None
    return psycopg


def _not_told_twice(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("error ignored")


#: What it warns of when a pipeline breaks off is told by `StoreError`.
logging.getLogger("psycopg").addFilter(_not_told_twice)


def trouble(problem: Exception) -> StoreError:
    """An exception of psycopg → StoreError. What has no SQLSTATE is a connection that could not be made, or
    was lost.
    """
    state = getattr(problem, "sqlstate", None)
    text = " ".join(str(problem).split())
    if state is None and re.search(
        r"password authentication failed|no pg_hba.conf entry|does not exist|no password supplied", text
    ):
        return StoreError("forbidden", text, errno.EACCES)
    if state is None and re.search(r"too many (connections|clients)|remaining connection slots", text):
        return StoreError("busy", text)
    if state is None and isinstance(problem, psycopg().OperationalError):
        return StoreError("io", text or "the connection was lost")
    kind = _KINDS.get(state or "", "other")
    return StoreError(kind, text, errno.EACCES if kind == "forbidden" else None)


class Connection:
    """One connection to the server, made when needed and again when broken. Used by one thread at a time.
    ``whole``: it may read whole tables.
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
            if self._prepare:  # not behind PgBouncer, where it would be somebody else's
                self._db.execute(_SESSION, (self._scans, f"{LOCK_WAIT * 1000:.0f}ms"))
        except library.Error as problem:
            raise trouble(problem) from None
        for dumper in _lenient():
            self._db.adapters.register_dumper(str, dumper)
        return self._db

    def drop(self) -> None:
        """Close it; the next call makes another.

        Also after any error of the server's: it passes over what was sent behind the statement that failed,
        and psycopg takes for prepared what it was about to prepare there.
        """
        if self._db is not None:
            with contextlib.suppress(Exception):
                self._db.close()
        self._db = None


@cache
def _lenient() -> list[Any]:
    """Text as PostgreSQL takes it: no NUL, and no half of a surrogate pair; both come from hostile peers
    only. The last one is the default.
    """
    from psycopg.types.string import StrBinaryDumper, StrDumperUnknown

    def dump(self: Any, value: str) -> bytes:
        return value.replace("\0", "\ufffd").encode("utf-8", "replace")

    return [type("Lenient", (base,), {"dump": dump}) for base in (StrBinaryDumper, StrDumperUnknown)]


def drive(db: Any, verb: Verb[Any], request: Any = None) -> Any:
    """Run a verb to its end on a connection that is already in the right transaction; from ``request`` on,
    where that is known.
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
    """One verb, one transaction: a statement by itself, or a pipeline. (One without BEGIN would commit what a
    failing verb left half done.)
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
    """Rows by COPY, two thirds of the time of as many INSERTs. It works outside of a pipeline only."""
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
    """The connection and those who wait for it."""

    def __init__(self, url: str, conninfo: str, *, prepare: bool) -> None:
        super().__init__()
        self.url = url
        self.connection = Connection(conninfo, prepare=prepare)
        self._closed = False
        #: A verb among several failed: what is prepared is in doubt from then on.
        self._in_doubt = False

    def _check_fork(self) -> None:
        """The store does, and makes new lanes in a child."""

    def close(self) -> None:
        """Once nobody is on it."""
        with self._write_lock:
            self._closed = True
            self.connection.drop()

    def if_free(self, action: Callable[[Any], None]) -> None:
        """Something that may as well be left out: done unless the connection is in use or broken."""
        if not self._write_lock.acquire(blocking=False):
            return
        try:
            if not self._closed:
                action(self.connection.open())
        except StoreError as problem:
            log.info("left out, the connection is broken: %s", problem)
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
        """One verb among several: its failure undoes its own changes only, unless the store itself is in
        trouble.
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
