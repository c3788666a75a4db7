"""Writes one row of ``outmail_outbox`` on an application's own connection, in the application's transaction.

Promises: one INSERT on the given connection or session, and nothing else: no commit, no rollback, and no
change of the caller's settings, cursors or row factory. We import none of the database packages; the caller
has done that. The row is an envelope as JSON and the content as bytes, as `store.verbs.outbox_rows` reads it.
Fails: the driver's own exceptions, so that the caller can handle a lost connection or a serialization failure
as usual. Only a missing table becomes `NotStored`, with a sentence that says how to create it. `ConfigError`
when the argument is no connection.
Does not: open connections, or know what is in the row.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from outmail.errors import ConfigError, NotStored
from outmail.store import schemas
from outmail.store.sqlite import drivers


def outbox_ddl(dialect: str = "sqlite") -> str:
    """The SQL that creates the table ``outmail_outbox`` ("sqlite" or "postgresql"), for your own migrations.
    It may be run again.
    """
    if dialect not in ("sqlite", "postgresql"):
        raise ConfigError(f"there is no outbox table for {dialect!r}: it is sqlite or postgresql")
    return schemas.sql(f"outbox-{dialect}")


COLUMNS = ("id", "added_at", "content", "envelope")
Values = tuple[str, int, bytes, str]


def row(id: str, now: int, content: bytes, envelope: Mapping[str, Any]) -> Values:
    """The values of one row."""
    return id, now, content, json.dumps(envelope, ensure_ascii=False, separators=(",", ":"))


class Rows(list[Values]):
    """For ``using=``: rows are collected, and somebody else writes them."""


@dataclass(frozen=True, slots=True)
class Caller:
    """How to write rows on one connection. ``write`` returns an awaitable if ``awaited``."""

    write: Callable[[Sequence[Values]], Awaitable[None] | None]
    awaited: bool = False


def caller(using: Any) -> Caller:
    """The argument ``using=`` → how to write on it."""
    if isinstance(using, Rows):
        return Caller(using.extend)
    for cls in type(using).__mro__:
        found = _ADAPTERS.get((cls.__module__.partition(".")[0].lstrip("_"), cls.__name__))
        if found is not None:
            adapter, awaited = found
            return Caller(partial(_guarded_later if awaited else _guarded, adapter, using), awaited)
    kind = f"{type(using).__module__}.{type(using).__qualname__}"
    raise ConfigError(
        f"using= takes a connection or session that is open, not {kind}",
        hint="sqlite3, apsw, aiosqlite, psycopg, psycopg2, asyncpg, SQLAlchemy, or Django's connection",
    )


def _insert(*marks: str) -> str:
    return f"INSERT INTO outmail_outbox ({', '.join(COLUMNS)}) VALUES ({', '.join(marks)})"


_QUESTION = _insert("?", "?", "?", "?")
_PERCENT = _insert("%s", "%s", "%s", "%s")
_NUMBERED = _insert("$1", "$2", "$3", "$4")
_NAMED = _insert(":id", ":added_at", ":content", ":envelope")


# -- plain connections ---------------------------------------------------------------------------------------


def _sqlite3(connection: Any, rows: Sequence[Values]) -> None:
    cursor = connection.cursor()
    cursor.row_factory = None
    cursor.execute("PRAGMA database_list")
    _check_library(cursor.fetchall(), "stdlib")
    cursor.executemany(_QUESTION, rows)
    cursor.close()


def _apsw(connection: Any, rows: Sequence[Values]) -> None:
    _check_library([(0, "main", connection.filename)], "apsw")
    connection.cursor().executemany(_QUESTION, rows)


def _check_library(databases: Sequence[Any], library: str) -> None:
    for _, name, path in databases:  # bytes where the caller's text_factory is bytes
        if os.fsdecode(name) == "main" and path and os.path.exists(path):
            drivers.check(os.fsdecode(path), library)


def _cursor(connection: Any, rows: Sequence[Values]) -> None:
    """psycopg, psycopg2, Django: a cursor as a context manager, and %s."""
    with connection.cursor() as cursor:
        for values in rows:
            cursor.execute(_PERCENT, values)


async def _async_cursor(connection: Any, rows: Sequence[Values]) -> None:
    async with connection.cursor() as cursor:
        for values in rows:
            await cursor.execute(_PERCENT, values)


async def _asyncpg(connection: Any, rows: Sequence[Values]) -> None:
    for values in rows:
        await connection.execute(_NUMBERED, *values)


async def _aiosqlite(connection: Any, rows: Sequence[Values]) -> None:
    for values in rows:
        cursor = await connection.execute(_QUESTION, values)
        await cursor.close()


# -- SQLAlchemy ----------------------------------------------------------------------------------------------


def _named(rows: Sequence[Values]) -> tuple[Any, list[dict[str, Any]]]:
    return sys.modules["sqlalchemy"].text(_NAMED), [dict(zip(COLUMNS, values)) for values in rows]


def _alchemy(connection: Any, rows: Sequence[Values]) -> None:
    connection.execute(*_named(rows))


def _alchemy_session(session: Any, rows: Sequence[Values]) -> None:
    _alchemy(session.connection(), rows)


async def _async_alchemy(connection: Any, rows: Sequence[Values]) -> None:
    await connection.execute(*_named(rows))


async def _async_alchemy_session(session: Any, rows: Sequence[Values]) -> None:
    await _async_alchemy(await session.connection(), rows)


_ADAPTERS: dict[tuple[str, str], tuple[Any, bool]] = {
    ("sqlite3", "Connection"): (_sqlite3, False),
    ("apsw", "Connection"): (_apsw, False),
    ("aiosqlite", "Connection"): (_aiosqlite, True),
    ("psycopg", "Connection"): (_cursor, False),
    ("psycopg", "AsyncConnection"): (_async_cursor, True),
    ("psycopg2", "connection"): (_cursor, False),
    ("asyncpg", "Connection"): (_asyncpg, True),
    ("asyncpg", "PoolConnectionProxy"): (_asyncpg, True),
    ("sqlalchemy", "Connection"): (_alchemy, False),
    ("sqlalchemy", "Session"): (_alchemy_session, False),
    ("sqlalchemy", "scoped_session"): (_alchemy_session, False),
    ("sqlalchemy", "AsyncConnection"): (_async_alchemy, True),
    ("sqlalchemy", "AsyncSession"): (_async_alchemy_session, True),
    ("sqlalchemy", "async_scoped_session"): (_async_alchemy_session, True),
    ("django", "ConnectionProxy"): (_cursor, False),
    ("django", "BaseDatabaseWrapper"): (_cursor, False),
}


# -- errors --------------------------------------------------------------------------------------------------


def _guarded(adapter: Any, using: Any, rows: Sequence[Values]) -> None:
    try:
        adapter(using, rows)
    except Exception as problem:
        _say_missing(problem)
        raise


async def _guarded_later(adapter: Any, using: Any, rows: Sequence[Values]) -> None:
    try:
        await adapter(using, rows)
    except Exception as problem:
        _say_missing(problem)
        raise


def lacks_table(problem: Exception) -> bool:
    """True when a database says that the table ``outmail_outbox`` does not exist."""
    text = str(problem)
    return "outmail_outbox" in text and ("no such table" in text or "does not exist" in text)


def _say_missing(problem: Exception) -> None:
    """The most common mistake as a sentence: the table was never created."""
    if lacks_table(problem):
        raise NotStored(
            "your database has no table outmail_outbox",
            hint="create it in a migration of your own, with the SQL that `outmail store ddl` prints",
            code="no-outbox-table",
        ) from problem
