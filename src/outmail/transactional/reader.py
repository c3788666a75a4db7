"""An application's database from the engine's side: rows of ``outmail_outbox`` are claimed by an engine,
read, and deleted.

How: three short transactions, with the store's own commit between the second and the third: `claim` (rows
nobody has claimed become ours), the caller adds them to its store, `done` (they are deleted). Who claims is
an engine of a store (`claimant`): engines of one store do not read the same rows, and what a dead one has
left is freed by the others (`poller`). A row claimed is finished by that store alone, whatever is killed
when; a row that the store has already is dropped, so nothing is doubled. Why a delete names number, id and
claimant: an engine that stood still may come back when its rows were freed, taken by another engine, and
deleted. SQLite gives the number of a deleted row again where the table was made without AUTOINCREMENT, so a
delete by number alone would remove a row that nobody has stored.
Promises: the application's database is never held while the store is written; an empty table costs one read;
SQLite files are opened by one library a process (`drivers.claim`), and their journal mode is left as it is.
Whoever may write rows may write anything, and SQLite's columns take anything: text, id and envelope are read
as bytes, at most `outbox_rows.MOST` of each, and nothing that stands there keeps other rows from being read.
Fails: `StoreError`; kind "schema" where the table is missing. Does not: understand rows, or wait.
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
        """Whose engine it is."""
        return self.claimant.partition("/")[0]


def claimant(store: str, engine: str) -> str:
    """The name in claims. Without an engine it is the store's alone, as older versions wrote it."""
    return f"{store}/{engine}" if engine else store


class Source(Protocol):
    """One application's table. Calls come from one thread."""

    name: str

    def claimed(self, claimant: str) -> list[int]:
        """The numbers of rows that we have claimed already, at most a batch. Walks over the table."""

    def claim(self, claimant: str) -> list[int]:
        """Claim what nobody has claimed, oldest first, at most a batch; their numbers."""

    def rows(self, claimant: str, numbers: Sequence[int]) -> list[Row]:
        """Those of these rows that are still ours, oldest first, up to `BATCH_BYTES` of content; at least one
        where there is one.
        """

    def rename(self, claimant: str, ids: Mapping[int, str]) -> None:
        """Give these rows of ours other ids."""

    def done(self, claimant: str, rows: Sequence[Row]) -> None:
        """They are in the store: delete them, unless they are not ours any more."""

    def inside(self, store: Store) -> bool:
        """True when the table is in the store's own database: then `take` moves rows in one transaction."""

    def claims(self) -> list[Claim]:
        """Who has claimed what. Walks over the table."""

    def free(self, claimant: str) -> int:
        """Make a vanished claimant's rows claimable again; returns how many."""

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
#: An id may be there as a BLOB: it is read as the text that its bytes are.
_DONE = "DELETE FROM outmail_outbox WHERE n = ? AND CAST(id AS TEXT) = ? AND store = ?"
_CLAIMS = (
    "SELECT CAST(store AS BLOB), count(*), coalesce(min(CASE typeof(added_at) WHEN 'integer' THEN added_at "
    "END), 0)"
    " FROM outmail_outbox WHERE store IS NOT NULL GROUP BY store ORDER BY store"
)
_FREE = "UPDATE outmail_outbox SET store = NULL WHERE store = ? RETURNING n"


#: The same on PostgreSQL.
_PG_CLAIMS = (
    "SELECT store, count(*), min(added_at) FROM outmail_outbox WHERE store IS NOT NULL GROUP BY "
    "store ORDER BY store"
)


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
            # with a rollback journal, readers hold a commit up
            drivers.patient(lambda: self._db.execute("COMMIT"), 5.0)
        except BaseException:
            if self._db.in_transaction():
                self._db.execute("ROLLBACK")
            raise
        return rows


def missing_table(problem: StoreError, name: str) -> StoreError:
    """The commonest trouble, in a sentence."""
    if lacks_table(problem):
        return StoreError(
            "schema", f"{name} has no table outmail_outbox: make it with what `outmail store ddl` prints"
        )
    return problem


#: What tells one table of one database of one server from all others.
IDENTITY = (
    "SELECT pg_postmaster_start_time(), current_setting('port'), current_database(), "
    "to_regclass('outmail_outbox')::oid"
)


class PostgresSource:
    """``outmail_outbox`` in an application's PostgreSQL database, where the connection's search path finds
    it.
    """

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

    def free(self, claimant: str) -> int:
        return len(self._run(_FREE.replace("?", "%s"), (claimant,)))

    def close(self) -> None:
        self._connection.drop()

    def _run(self, sql: str, params: Sequence[Any] = ()) -> list[Any]:
        """One statement, one transaction."""
        from outmail.store.postgres.connection import psycopg, trouble

        try:
            return list(self._connection.open().execute(sql, params, binary=True).fetchall())
        except psycopg().Error as problem:
            self._connection.drop()
            raise missing_table(trouble(problem), self.name) from None
