"""An application's database from the engine's side: rows of ``outmail_outbox`` are claimed for a store, read, and deleted.

How: three short transactions, with the store's own commit between the second and the third: `claim` (rows nobody has claimed become
ours), the caller adds them to its store, `done` (they are deleted). A row claimed is finished by that store alone, whatever is killed
when; a row that the store has already is dropped, so nothing is doubled.
Promises: the application's database is never held while the store is written; an empty table costs one read; SQLite files are opened
by one library a process (`drivers.claim`), and their journal mode is left as it is.
Fails: `Trouble`; kind "schema" where the table is missing. Does not: understand rows, or wait.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from outmail.store import Store, Trouble, Verb, drivers, forks, shown
from outmail.store.caller import lacks_table
from outmail.store.verbs import LISTED

#: Rows, and bytes of content, taken over at a time.
BATCH = 200
BATCH_BYTES = 16 * 1024 * 1024


@dataclass(slots=True)
class Row:
    """One row of ``outmail_outbox``."""

    n: int
    id: str
    added_at: int
    content: bytes
    envelope: str


@dataclass(frozen=True, slots=True)
class Claim:
    """Rows that a store has claimed and not finished."""

    store: str
    rows: int
    oldest: int


class Source(Protocol):
    """One application's table. Calls come from one thread."""

    name: str

    def claim(self, store: str) -> list[int]:
        """Claim what nobody has claimed, oldest first, at most a batch; the numbers of all rows that are ours, or fewer."""

    def rows(self, numbers: Sequence[int]) -> list[Row]:
        """These rows, oldest first, up to `BATCH_BYTES` of content; at least one."""

    def done(self, numbers: Sequence[int]) -> None:
        """They are in the store: delete them."""

    def inside(self, store: Store) -> bool:
        """True when the table is in the store's own database: then `take` moves rows in one transaction."""

    def claims(self) -> list[Claim]:
        """Who has claimed what."""

    def free(self, store: str) -> int:
        """Make a vanished store's rows claimable again; returns how many."""

    def close(self) -> None: ...


_MINE = "SELECT n FROM outmail_outbox WHERE store = ? ORDER BY n LIMIT ?"
_ANY = "SELECT 1 FROM outmail_outbox WHERE store IS NULL LIMIT 1"
_CLAIM = "UPDATE outmail_outbox SET store = ? WHERE store IS NULL AND n IN (SELECT n FROM outmail_outbox WHERE store IS NULL ORDER BY n LIMIT ?)"
_SIZES = "SELECT n, length(content) FROM outmail_outbox WHERE n IN ({marks}) ORDER BY n"
_ROWS = "SELECT n, id, added_at, content, envelope FROM outmail_outbox WHERE n IN ({marks}) ORDER BY n"
_DONE = "DELETE FROM outmail_outbox WHERE n = ?"
_CLAIMS = "SELECT store, count(*), min(added_at) FROM outmail_outbox WHERE store IS NOT NULL GROUP BY store ORDER BY store"
_FREE = "UPDATE outmail_outbox SET store = NULL WHERE store = ? RETURNING n"


#: Rows that another engine is taking in this moment are passed over (`pgsql`).
TAKE = "SELECT n, length(content) FROM outmail_outbox WHERE store IS NULL OR store = ? ORDER BY n LIMIT ?"
TAKEN = f"DELETE FROM outmail_outbox WHERE n {LISTED} RETURNING n, id, added_at, content, envelope"


def take(store: str) -> Verb[list[Row]]:
    """Part of a store's own transaction: rows of a table beside it are deleted and returned, oldest first."""
    fit = within((yield TAKE, (store, BATCH)))
    rows = (yield TAKEN, (json.dumps(fit),)) if fit else []
    return [Row(*row) for row in sorted(rows, key=lambda row: row[0])]


def within(sizes: Sequence[tuple[int, int]]) -> list[int]:
    """(number, bytes) → the numbers of the first ones that fit a batch; at least one."""
    taken: list[int] = []
    room = BATCH_BYTES
    for n, size in sizes:
        room -= size
        if room < 0 and taken:
            break
        taken.append(n)
    return taken


class SqliteSource:
    """``outmail_outbox`` in an application's SQLite file."""

    def __init__(self, path: str, library: str) -> None:
        self.path = os.path.realpath(path)
        self.name = f"sqlite:{self.path}"
        if not os.path.exists(self.path):
            raise Trouble("io", f"{self.path} does not exist")
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

    def claim(self, store: str) -> list[int]:
        mine = self._numbers(store)
        if mine or not self._read(_ANY, ()):
            return mine
        self._write([(_CLAIM, (store, BATCH))])
        return self._numbers(store)

    def _numbers(self, store: str) -> list[int]:
        return [row[0] for row in self._read(_MINE, (store, BATCH))]

    def rows(self, numbers: Sequence[int]) -> list[Row]:
        marks = ",".join("?" * len(numbers))
        fit = within(self._read(_SIZES.format(marks=marks), numbers))
        return [Row(*row) for row in self._read(_ROWS.format(marks=",".join("?" * len(fit))), fit)]

    def done(self, numbers: Sequence[int]) -> None:
        self._write([(_DONE, (n,)) for n in numbers])

    def inside(self, store: Store) -> bool:
        return os.path.realpath(getattr(store, "path", "")) == self.path

    def claims(self) -> list[Claim]:
        return [Claim(*row) for row in self._read(_CLAIMS, ())]

    def free(self, store: str) -> int:
        return len(self._write([(_FREE, (store,))]))

    def close(self) -> None:
        if not self._over:
            self._over = True
            self._db.close()
            drivers.release(self._claimed)

    def _read(self, sql: str, params: Sequence[Any]) -> list[Any]:
        try:
            with self._lock:
                return drivers.patient(lambda: self._db.execute(sql, params), 5.0)  # type: ignore[no-any-return]
        except Trouble as problem:
            raise missing_table(problem, self.name) from None

    def _write(self, statements: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        with self._lock:
            return self._transaction(statements)

    def _transaction(self, statements: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        drivers.patient(lambda: self._db.execute("BEGIN IMMEDIATE"), 5.0)
        try:
            rows = [row for sql, params in statements for row in self._db.execute(sql, params)]
            drivers.patient(lambda: self._db.execute("COMMIT"), 5.0)  # with a rollback journal, readers hold a commit up
        except BaseException:
            if self._db.in_transaction():
                self._db.execute("ROLLBACK")
            raise
        return rows


def missing_table(problem: Trouble, name: str) -> Trouble:
    """The commonest trouble, in a sentence."""
    if lacks_table(problem):
        return Trouble("schema", f"{name} has no table outmail_outbox: make it with what `outmail store ddl` prints")
    return problem


#: What tells one table of one database of one server from all others.
IDENTITY = "SELECT pg_postmaster_start_time(), current_setting('port'), current_database(), to_regclass('outmail_outbox')::oid"


class PostgresSource:
    """``outmail_outbox`` in an application's PostgreSQL database, where the connection's search path finds it."""

    def __init__(self, url: str) -> None:
        from outmail.store.lane import Connection
        from outmail.store.postgres import conninfo_of

        self.name = shown(url)
        conninfo, prepare = conninfo_of(url)
        self._connection = Connection(conninfo, prepare=prepare)

    def claim(self, store: str) -> list[int]:
        mine = self._run("SELECT n FROM outmail_outbox WHERE store = %s ORDER BY n LIMIT %s", (store, BATCH))
        if not mine and self._run(_ANY):
            mine = self._run(
                "WITH free AS MATERIALIZED (SELECT n FROM outmail_outbox WHERE store IS NULL ORDER BY n LIMIT %s FOR UPDATE SKIP LOCKED)"
                " UPDATE outmail_outbox o SET store = %s FROM free WHERE o.n = free.n RETURNING o.n",
                (BATCH, store),
            )
        return sorted(row[0] for row in mine)

    def rows(self, numbers: Sequence[int]) -> list[Row]:
        fit = within(self._run("SELECT n, length(content) FROM outmail_outbox WHERE n = ANY(%s) ORDER BY n", (list(numbers),)))
        found = self._run("SELECT n, id, added_at, content, envelope FROM outmail_outbox WHERE n = ANY(%s) ORDER BY n", (fit,))
        return [Row(*row) for row in found]

    def done(self, numbers: Sequence[int]) -> None:
        self._run("DELETE FROM outmail_outbox WHERE n = ANY(%s) RETURNING n", (list(numbers),))

    def inside(self, store: Store) -> bool:
        identity = getattr(store, "identity", None)
        return identity is not None and identity(IDENTITY) == self._run(IDENTITY)[0]

    def claims(self) -> list[Claim]:
        return [Claim(*row) for row in self._run(_CLAIMS)]

    def free(self, store: str) -> int:
        return len(self._run(_FREE.replace("?", "%s"), (store,)))

    def close(self) -> None:
        self._connection.drop()

    def _run(self, sql: str, params: Sequence[Any] = ()) -> list[Any]:
        """One statement, one transaction."""
        from outmail.store.lane import psycopg, trouble

        try:
            return list(self._connection.open().execute(sql, params, binary=True).fetchall())
        except psycopg().Error as problem:
            self._connection.settle_down()
            raise missing_table(trouble(problem), self.name) from None
