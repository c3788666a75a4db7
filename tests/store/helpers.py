"""Stores of every kind that can be had here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from outmail.store.maildir.store import MaildirStore
from outmail.store.postgres.store import PostgresStore
from outmail.store.sqlite.store import SqliteStore
from tests import pgserver

KINDS = ["apsw", "stdlib", "maildir", *(f"postgresql-{version}" for version in pgserver.installed())]


@contextlib.contextmanager
def opened(kind: str, folder: Path) -> Iterator[Any]:
    """An empty store of a kind."""
    if not kind.startswith("postgresql"):
        made: Any = (
            MaildirStore(str(folder / "spool"))
            if kind == "maildir"
            else SqliteStore(str(folder / "q.db"), kind)
        )
        yield made
        if kind == "maildir":
            assert made.check() == []  # what the index has, the files say as well
        made.close()
        return
    with pgserver.database(kind.partition("-")[2]) as url:
        made = PostgresStore(url, str(folder / "q"))
        try:
            yield made
        finally:
            for owner in list(made._owners):
                owner.file.abandon()
            made.close()
