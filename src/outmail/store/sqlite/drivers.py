"""The two SQLite libraries behind one small interface (`Driver`), and the rule that a process uses one of
them per file.

Why this rule: apsw and the standard library's sqlite3 each bring their own copy of SQLite. POSIX drops all
locks that a process has on a file when *any* descriptor of that file is closed. So two libraries on one file
in one process lose committed writes.
Promises: `claim` refuses the second library with a sentence. Errors of both libraries become `StoreError`.
Does not: begin or commit transactions; `sqlite.SqliteStore` does.
"""

from __future__ import annotations

import errno
import os
import random
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Protocol

from outmail.errors import ConfigError
from outmail.store import Alone, Exclusive, Kind, Many, Numbers, StoreError, Verb

Library = str  # "apsw" or "stdlib"

_claims: dict[tuple[int, int], tuple[Library, int]] = {}
_guard = threading.Lock()


def _after_fork() -> None:
    """A child has none of our connections, and no thread that could release a lock of before the fork."""
    global _guard
    _guard = threading.Lock()
    _claims.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _file(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def identity(path: str) -> tuple[int, int] | None:
    """Which file has this name now, in the form that `claim` returns; None when there is none."""
    try:
        return _file(path)
    except OSError:
        return None


def claim(path: str, library: Library) -> tuple[int, int]:
    """Note that this process opens the file with ``library``. Returns which file it is. Raises ConfigError
    when the other library has it open.
    """
    key = _file(path)
    with _guard:
        _claims[key] = (library, _holders(path, key, library, "") + 1)
    return key


def check(path: str, library: Library) -> None:
    """Raises ConfigError when the other library has the file open in this process."""
    key = _file(path)
    with _guard:
        _holders(path, key, library, library)


def _holders(path: str, key: tuple[int, int], library: Library, keep: Library) -> int:
    holder, count = _claims.get(key, (library, 0))
    if holder != library:
        raise ConfigError(
            f"{path} is already open in this process through {_name(holder)}; {_name(library)} on the same "
            f"file would lose commits",
            hint=f"open it everywhere by one library: sqlite+{keep or holder}:{path}",
        )
    return count


def release(key: tuple[int, int]) -> None:
    """Withdraw one claim."""
    with _guard:
        holder, count = _claims.get(key, ("", 0))
        if count <= 1:
            _claims.pop(key, None)
        else:
            _claims[key] = (holder, count - 1)


def _name(library: Library) -> str:
    return "the sqlite3 module" if library == "stdlib" else "apsw"


def versions() -> str:
    """``3.51.3 (apsw 3.51.3.0)``: SQLite, and the library that brings it; or why there is none."""
    try:
        import apsw

        return f"{apsw.sqlite_lib_version()} (apsw {apsw.apsw_version()})"
    except (ImportError, AttributeError) as problem:
        return f"apsw cannot be loaded: {problem}"


class Driver(Protocol):
    """One connection."""

    def execute(self, sql: str, params: Sequence[Any] = ()) -> list[Any]: ...
    def many(self, sql: str, rows: Sequence[Sequence[Any]]) -> list[Any]: ...
    def in_transaction(self) -> bool: ...
    def close(self) -> None: ...


def drive(driver: Driver, verb: Verb[Any]) -> Any:
    """Run a verb to its end, on a connection whose transaction has begun."""
    try:
        request = next(verb)
        while True:
            if isinstance(request, tuple):
                rows = driver.execute(*request)
            elif isinstance(request, Many):
                rows = driver.many(request.sql, request.rows)
            elif isinstance(request, Alone):
                rows = driver.execute(request.sql, request.params)
            elif isinstance(request, Numbers):
                rows = _numbers(driver, request)
            else:
                assert isinstance(request, Exclusive)  # the write lock does this already
                rows = []
            request = verb.send(rows)
    except StopIteration as stop:
        return stop.value
    finally:
        verb.close()


#: The newest row of these tables is never removed, so that its number is never used again.
_NUMBERED = {"message": "SELECT max(seq) FROM message", "attempt": "SELECT max(id) FROM attempt"}


def _numbers(driver: Driver, request: Numbers) -> list[int]:
    first = (driver.execute(_NUMBERED[request.table])[0][0] or 0) + 1
    return list(range(first, first + request.count))


#: Values that no database accepts: an unpaired surrogate, a number of more than 64 bits.
_ODD = (UnicodeEncodeError, OverflowError)


def _name_of(path: str, how: str) -> str:
    """The file's name for SQLite. ``how``: parameters of SQLite's URIs, such as ``mode=ro``."""
    if not how:
        return path
    from urllib.parse import quote

    return f"file:{quote(path)}?{how}"


class Apsw:
    """A connection by apsw, whose own copy of SQLite has no WAL-reset bug."""

    def __init__(self, path: str, how: str = "") -> None:
        import apsw

        self._apsw = apsw
        try:
            self._db = apsw.Connection(
                _name_of(path, how),
                flags=apsw.SQLITE_OPEN_READWRITE | (apsw.SQLITE_OPEN_URI if how else 0),
                statementcachesize=200,
            )
        except apsw.Error as problem:
            raise self._trouble(problem) from None

    def execute(self, sql: str, params: Sequence[Any] = ()) -> list[Any]:
        try:
            return self._db.execute(sql, params).fetchall()
        except (self._apsw.Error, *_ODD) as problem:
            raise self._trouble(problem) from None

    def many(self, sql: str, rows: Sequence[Sequence[Any]]) -> list[Any]:
        try:
            return self._db.executemany(sql, rows).fetchall()
        except (self._apsw.Error, *_ODD) as problem:
            raise self._trouble(problem) from None

    def on_commit(self, hook: Callable[[int], None]) -> None:
        """``hook`` is called after each commit with the number of pages in the write-ahead log. SQLite itself
        makes no more checkpoints.
        """

        def committed(_db: Any, _name: str, pages: int) -> int:
            hook(pages)
            return 0

        self._db.set_wal_hook(committed)

    def checkpoint(self) -> None:
        """Move what can be moved from the write-ahead log into the database, without waiting for anybody."""
        try:
            self._db.wal_checkpoint()
        except self._apsw.Error as problem:
            raise self._trouble(problem) from None

    def in_transaction(self) -> bool:
        try:
            return self._db.in_transaction
        except self._apsw.ConnectionClosedError:
            return False

    def close(self) -> None:
        self._db.close()

    def forsake(self) -> None:
        """Close an inherited connection in a forked child without touching the file and its log."""
        self._db.config(self._apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        self._db.close(True)

    def _trouble(self, problem: Exception) -> StoreError:
        return trouble(getattr(problem, "extendedresult", 0) or getattr(problem, "result", 1), str(problem))


@lru_cache(512)
def _with_names(sql: str) -> str:
    """A statement in which some parameter has a number, with the names p1, p2 … instead, as SQLite counts;
    else "". For sqlite3 a number is a name, and from Python 3.14 on names need a mapping.
    """
    if not re.search(r"\?\d", sql):
        return ""
    highest = 0

    def number(found: re.Match[str]) -> str:
        nonlocal highest
        if found[0][0] != "?":
            return found[0]
        n = int(found[1]) if found[1] else highest + 1
        highest = max(highest, n)
        return f":p{n}"

    return re.sub(r"'[^']*'|\?(\d*)", number, sql)


def _named(params: Sequence[Any]) -> dict[str, Any]:
    return {f"p{n}": value for n, value in enumerate(params, 1)}


class Stdlib:
    """A connection by the standard library's sqlite3."""

    def __init__(self, path: str, how: str = "") -> None:
        import sqlite3

        self._sqlite3 = sqlite3
        try:
            self._db = sqlite3.connect(
                _name_of(path, how),
                timeout=0,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=200,
                uri=bool(how),
            )
        except sqlite3.Error as problem:
            raise self._trouble(problem) from None

    def execute(self, sql: str, params: Sequence[Any] = ()) -> list[Any]:
        try:
            return self._run(sql, params)
        except (self._sqlite3.Error, *_ODD) as problem:
            raise self._trouble(problem) from None

    def many(self, sql: str, rows: Sequence[Sequence[Any]]) -> list[Any]:
        try:
            if sql.lstrip()[:6].upper() != "SELECT" and "RETURNING" not in sql:
                other = _with_names(sql)
                self._db.executemany(other or sql, map(_named, rows) if other else rows)
                return []
            return [found for row in rows for found in self._run(sql, row)]
        except (self._sqlite3.Error, *_ODD) as problem:
            raise self._trouble(problem) from None

    def _run(self, sql: str, params: Sequence[Any]) -> list[Any]:
        other = _with_names(sql)
        return self._db.execute(other or sql, _named(params) if other else params).fetchall()

    def in_transaction(self) -> bool:
        try:
            return self._db.in_transaction
        except self._sqlite3.ProgrammingError:  # the connection is closed
            return False

    def close(self) -> None:
        self._db.close()

    def forsake(self) -> None:
        """Close an inherited connection in a forked child. Before Python 3.12 this is safe because the parent
        still holds its lock.
        """
        if sys.version_info >= (3, 12):
            self._db.setconfig(self._sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, True)
        self._db.close()

    def _trouble(self, problem: Exception) -> StoreError:
        return trouble(getattr(problem, "sqlite_errorcode", 1), str(problem))


_KINDS: dict[int, Kind] = {
    5: "busy",
    6: "busy",
    8: "readonly",
    10: "io",
    11: "corrupt",
    13: "full",
    14: "forbidden",
    23: "forbidden",
    26: "corrupt",
}
_ERRNO: dict[Kind, int] = {
    "readonly": errno.EROFS,
    "full": errno.ENOSPC,
    "forbidden": errno.EACCES,
    "io": errno.EIO,
}


def trouble(code: int, text: str) -> StoreError:
    """A result code of SQLite (primary or extended) → StoreError."""
    kind = _KINDS.get(code & 0xFF, "other")
    text = text or f"SQLite's error {code}"
    return StoreError(kind, text, _ERRNO.get(kind))


DRIVERS: dict[Library, type[Apsw] | type[Stdlib]] = {"apsw": Apsw, "stdlib": Stdlib}


def patient(action: Any, wait: float = 30.0) -> Any:
    """Run the action. While somebody else holds the lock try again, after short pauses of random length, for
    ``wait`` seconds.
    """
    deadline = None
    while True:
        try:
            return action()
        except StoreError as problem:
            if problem.kind != "busy" or not wait:
                raise
            now = time.monotonic()
            deadline = deadline or now + wait
            if now >= deadline:
                raise StoreError(
                    "busy", f"another program has held the write lock for {wait:.0f} s"
                ) from None
            time.sleep(random.uniform(0.0002, 0.003))
