"""An application's database from the engine's side: rows of ``outmail_outbox`` are claimed, read and deleted.

How: three short transactions. `claim` marks rows that nobody has claimed as ours, and `rows` reads them; then
the caller adds their messages to its store and commits; then `done` deletes the rows. A claim names an engine
of a store (`claimant`), so engines of one store do not read the same rows. Another engine releases what a
dead one had claimed (`poller`). Whatever is killed at whatever moment, a claimed row is finished by its store
alone; a message that the store has already is not added again.
Why a delete names number, id and claimant: an engine that was stopped may go on after its rows were released,
moved by another engine, and deleted. SQLite reuses the number of a deleted row if the table was created
without AUTOINCREMENT. So a delete by number alone could remove a new row that nobody has stored.
Promises: no transaction in the application's database is open while the store is written. An empty table
costs one read. A process opens SQLite files with one library (`drivers.claim`), and leaves their journal mode
as it is. Whoever can write rows can write anything, and SQLite's columns accept any type; so text, id and
envelope are read as bytes, at most `outbox_rows.MOST` of each, and no row keeps others from being read.
Fails: `StoreError`; kind "schema" when the table is missing. Does not: understand rows, or wait.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from outmail.smtp.syntax import printable
from outmail.store import Store, StoreError, forks, shown
from outmail.store.sqlite import drivers
from outmail.store.verbs.outbox_rows import BATCH, BYTES, COLUMNS, PG_BYTES, PG_COLUMNS, Row, row_of, within
from outmail.transactional.insert import lacks_table


@dataclass(frozen=True, slots=True)
class Claim:
    """Rows that somebody has claimed and not finished."""

    claimant: str
    rows: int
    oldest: int

    @property
    def store(self) -> str:
        """The store of the engine that claimed."""
        return self.claimant.partition("/")[0]


def claimant(store: str, engine: str) -> str:
    """The name that is written into a claim. Without an engine it is the store's own name, which older
    versions used.
    """
    return f"{store}/{engine}" if engine else store


class Source(Protocol):
    """One application's table. Calls come from one thread."""

    name: str

    def claimed(self, claimant: str) -> list[int]:
        """The numbers of rows that we have claimed already, at most a batch. Reads the whole table."""

    def claim(self, claimant: str) -> list[int]:
        """Claim rows that nobody has claimed, oldest first, at most a batch. Returns their numbers."""

    def rows(self, claimant: str, numbers: Sequence[int]) -> list[Row]:
        """Those of these rows that are still ours, oldest first, up to `BATCH_BYTES` of content; at least one
        if there is any.
        """

    def rename(self, claimant: str, ids: Mapping[int, str]) -> None:
        """Give these rows of ours other ids."""

    def done(self, claimant: str, rows: Sequence[Row]) -> None:
        """Their messages are in the store: delete the rows, unless they are no longer ours."""

    def inside(self, store: Store) -> bool:
        """True when the table is in the store's own database: then `take` moves rows in one transaction."""

    def claims(self) -> list[Claim]:
        """Who has claimed how much. Reads the whole table."""

    def free(self, claimant: str) -> int:
        """Release the claims of a vanished claimant. Returns how many rows."""

    def waiting(self) -> tuple[int, int | None]:
        """How many rows wait to be taken over, claimed or not, and since when (ms) the oldest. Walks over the
        table.
        """

    def naming(self, word: str, limit: int) -> list[tuple[str, int]]:
        """Rows whose envelope holds this word, oldest first, as (id, since when in ms). Walks over the
        table.
        """

    def close(self) -> None: ...


_MINE = "SELECT n FROM outmail_outbox WHERE store = ? ORDER BY n LIMIT ?"
_ANY = "SELECT 1 FROM outmail_outbox WHERE store IS NULL LIMIT 1"
_CLAIM = (
    "UPDATE outmail_outbox SET store = ? WHERE n IN (SELECT n FROM outmail_outbox WHERE store IS NULL "
    "ORDER BY n LIMIT ?) AND store IS NULL RETURNING n"
)
_SIZES = f"SELECT n, {BYTES} FROM outmail_outbox WHERE store = ? AND n IN ({{marks}}) ORDER BY n"
_ROWS = f"SELECT {COLUMNS} FROM outmail_outbox WHERE store = ? AND n IN ({{marks}}) ORDER BY n"
_RENAME = "UPDATE outmail_outbox SET id = ? WHERE n = ? AND store = ? RETURNING n"
#: An id may be stored as a BLOB; it is read as the text of its bytes.
_DONE = "DELETE FROM outmail_outbox WHERE n = ? AND CAST(id AS TEXT) = ? AND store = ?"
_CLAIMS = (
    "SELECT CAST(store AS BLOB), count(*), coalesce(min(CASE typeof(added_at) WHEN 'integer' THEN added_at "
    "END), 0)"
    " FROM outmail_outbox WHERE store IS NOT NULL GROUP BY store ORDER BY store"
)
_SINCE = "CASE typeof(added_at) WHEN 'integer' THEN added_at END"
_WAITING = f"SELECT count(*), min({_SINCE}) FROM outmail_outbox"
_NAMING = (
    f"SELECT substr(CAST(id AS BLOB), 1, 100), coalesce({_SINCE}, 0) FROM outmail_outbox WHERE "
    "CAST(envelope AS TEXT) LIKE ? ESCAPE '\\' ORDER BY n LIMIT ?"
)
_FREE = "UPDATE outmail_outbox SET store = NULL WHERE store = ? RETURNING n"


#: The same for PostgreSQL.
_PG_WAITING = "SELECT count(*), min(added_at) FROM outmail_outbox"
_PG_NAMING = (
    "SELECT convert_to(left(id, 100), 'UTF8'), added_at FROM outmail_outbox WHERE envelope ILIKE %s ORDER BY "
    "n LIMIT %s"
)
_PG_CLAIMS = (
    "SELECT store, count(*), min(added_at) FROM outmail_outbox WHERE store IS NOT NULL GROUP BY "
    "store ORDER BY store"
)


def _pattern(word: str) -> str:
    escaped = word.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"


def _named(rows: Sequence[Any]) -> list[tuple[str, int]]:
    return [(bytes(id).decode("utf-8", "replace"), since) for id, since in rows]


def _claim(store: Any, rows: int, oldest: int) -> Claim:
    name = store if isinstance(store, str) else bytes(store).decode("utf-8", "replace")
    return Claim(name if name.isprintable() else printable(name), rows, oldest)


class SqliteSource:
    """``outmail_outbox`` in an application's SQLite file."""

    def __init__(self, path: str, library: str) -> None:
        self.path = os.path.realpath(path)
        self.name = f"sqlite:{self.path}"
        if not os.path.exists(self.path):
            raise StoreError("io", f"{self.path} does not exist")
        forks.check(self.path)
        self._lock = threading.Lock()
        self._paused, self._over = False, True
        forks.attend(self)
        with self._lock:
            self._claimed = drivers.claim(self.path, library)
            try:
                self._db = drivers.DRIVERS[library](self.path)
                for pragma in ("PRAGMA busy_timeout = 0", "PRAGMA synchronous = FULL"):
                    drivers.patient(partial(self._db.execute, pragma), 5.0)
            except BaseException:
                drivers.release(self._claimed)
                raise
            self._over = False

    def pause(self) -> bool:
        """See `forks.Holder`."""
        self._paused = self._lock.acquire(timeout=forks.WAIT)
        return self._paused

    def resume(self) -> None:
        """See `forks.Holder`."""
        if self._paused:
            self._lock.release()

    def forsake(self) -> None:
        """See `forks.Holder`."""
        if not self._over:
            self._over = True
            self._db.forsake()

    def claimed(self, claimant: str) -> list[int]:
        return [row[0] for row in self._read(_MINE, (claimant, BATCH))]

    def claim(self, claimant: str) -> list[int]:
        if not self._read(_ANY, ()):
            return []
        return sorted(row[0] for row in self._write([(_CLAIM, (claimant, BATCH))]))

    def rows(self, claimant: str, numbers: Sequence[int]) -> list[Row]:
        fit = within(self._read(_SIZES.format(marks=",".join("?" * len(numbers))), (claimant, *numbers)))
        return [
            row_of(*row) for row in self._read(_ROWS.format(marks=",".join("?" * len(fit))), (claimant, *fit))
        ]

    def rename(self, claimant: str, ids: Mapping[int, str]) -> None:
        self._write([(_RENAME, (id, n, claimant)) for n, id in ids.items()])

    def done(self, claimant: str, rows: Sequence[Row]) -> None:
        self._write([(_DONE, (row.n, row.id, claimant)) for row in rows])

    def inside(self, store: Store) -> bool:
        return os.path.realpath(getattr(store, "path", "")) == self.path

    def claims(self) -> list[Claim]:
        return [_claim(*row) for row in self._read(_CLAIMS, ())]

    def free(self, claimant: str) -> int:
        return len(self._write([(_FREE, (claimant,))]))

    def waiting(self) -> tuple[int, int | None]:
        return tuple(self._read(_WAITING, ())[0])

    def naming(self, word: str, limit: int) -> list[tuple[str, int]]:
        return _named(self._read(_NAMING, (_pattern(word), limit)))

    def close(self) -> None:
        if not self._over:
            self._over = True
            self._db.close()
            drivers.release(self._claimed)

    def _read(self, sql: str, params: Sequence[Any]) -> list[Any]:
        try:
            with self._lock:
                return drivers.patient(lambda: self._db.execute(sql, params), 5.0)  # type: ignore[no-any-return]
        except StoreError as problem:
            raise missing_table(problem, self.name) from None

    def _write(self, statements: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        with self._lock:
            return self._transaction(statements)

    def _transaction(self, statements: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        drivers.patient(lambda: self._db.execute("BEGIN IMMEDIATE"), 5.0)
        try:
            rows = [row for sql, params in statements for row in self._db.execute(sql, params)]
            # with a rollback journal, readers delay a commit
            drivers.patient(lambda: self._db.execute("COMMIT"), 5.0)
        except BaseException:
            if self._db.in_transaction():
                self._db.execute("ROLLBACK")
            raise
        return rows


def missing_table(problem: StoreError, name: str) -> StoreError:
    """The most common trouble, as a sentence."""
    if lacks_table(problem):
        return StoreError(
            "schema",
            f"{name} has no table outmail_outbox: create it with the SQL that `outmail store ddl` prints",
        )
    return problem


#: Identifies one table of one database of one server.
IDENTITY = (
    "SELECT pg_postmaster_start_time(), current_setting('port'), current_database(), "
    "to_regclass('outmail_outbox')::oid"
)


class PostgresSource:
    """``outmail_outbox`` in an application's PostgreSQL database, found by the connection's search path."""

    def __init__(self, url: str) -> None:
        from outmail.store.postgres.connection import Connection
        from outmail.store.postgres.url import conninfo_of

        self.name = shown(url)
        conninfo, prepare = conninfo_of(url)
        self._connection = Connection(conninfo, prepare=prepare)

    def claimed(self, claimant: str) -> list[int]:
        return [row[0] for row in self._run(_MINE.replace("?", "%s"), (claimant, BATCH))]

    def claim(self, claimant: str) -> list[int]:
        if not self._run(_ANY):
            return []
        mine = self._run(
            "WITH free AS MATERIALIZED (SELECT n FROM outmail_outbox WHERE store IS NULL ORDER BY n LIMIT %s "
            "FOR UPDATE SKIP LOCKED)"
            " UPDATE outmail_outbox o SET store = %s FROM free WHERE o.n = free.n RETURNING o.n",
            (BATCH, claimant),
        )
        return sorted(row[0] for row in mine)

    def rows(self, claimant: str, numbers: Sequence[int]) -> list[Row]:
        ours = "FROM outmail_outbox WHERE n = ANY(%s) AND store = %s ORDER BY n"
        fit = within(self._run(f"SELECT n, {PG_BYTES} {ours}", (list(numbers), claimant)))
        return [row_of(*row) for row in self._run(f"SELECT {PG_COLUMNS} {ours}", (fit, claimant))]

    def rename(self, claimant: str, ids: Mapping[int, str]) -> None:
        for n, id in ids.items():
            self._run(_RENAME.replace("?", "%s"), (id, n, claimant))

    def done(self, claimant: str, rows: Sequence[Row]) -> None:
        self._run(
            "DELETE FROM outmail_outbox WHERE n = ANY(%s) AND id = ANY(%s) AND store = %s RETURNING n",
            ([row.n for row in rows], [row.id for row in rows], claimant),
        )

    def inside(self, store: Store) -> bool:
        identity = getattr(store, "identity", None)
        return identity is not None and identity(IDENTITY) == self._run(IDENTITY)[0]

    def claims(self) -> list[Claim]:
        return [_claim(*row) for row in self._run(_PG_CLAIMS)]

    def waiting(self) -> tuple[int, int | None]:
        return tuple(self._run(_PG_WAITING)[0])

    def naming(self, word: str, limit: int) -> list[tuple[str, int]]:
        return _named(self._run(_PG_NAMING, (_pattern(word), limit)))

    def free(self, claimant: str) -> int:
        return len(self._run(_FREE.replace("?", "%s"), (claimant,)))

    def close(self) -> None:
        self._connection.drop()

    def _run(self, sql: str, params: Sequence[Any] = ()) -> list[Any]:
        """One statement, in a transaction of its own."""
        from outmail.store.postgres.connection import psycopg, trouble

        try:
            return list(self._connection.open().execute(sql, params, binary=True).fetchall())
        except psycopg().Error as problem:
            self._connection.drop()
            raise missing_table(trouble(problem), self.name) from None
