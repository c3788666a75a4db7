"""The public suite of what every store must do, on SQLite by both of its libraries, on a Maildir spool,
and on PostgreSQL on every server that is there.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from outmail.store.maildir.store import MaildirStore
from outmail.store.sqlite.store import SqliteStore
from outmail.testing.conformance import *  # noqa: F403
from outmail.testing.conformance import NOW, add, lease, message
from tests.store.helpers import KINDS, opened


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    with opened(request.param, tmp_path) as made:
        yield made


def test_a_dead_owners_work_is_taken_a_live_ones_never(store: Any, tmp_path: Path) -> None:
    add(store, message(), message())
    alive = store.register(NOW)
    lease(store, alive, 1)
    made = (
        f"SqliteStore({store.path!r}, {store.library!r})"
        if isinstance(store, SqliteStore)
        else f"PostgresStore({store.url!r}, {store._base!r})"
    )
    if isinstance(store, MaildirStore):
        made = f"MaildirStore({store.url.partition(':')[2]!r})"
    code = f"""
import os
from outmail.store.maildir.store import MaildirStore
from outmail.store.sqlite.store import SqliteStore
from outmail.store.postgres.store import PostgresStore
s = {made}
o = s.register(0)
d = s.run(s.verbs.lease(o.id, 1, {{'default': 1}}, {NOW}))
s.dots(o, [(d[0], d[0].recipients)])
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    found = store.reclaim(NOW, hold=False)
    assert [(f["leases"], f["uncertain"]) for f in found] == [(1, 1)]
    counts = store.read(store.verbs.stats(NOW))["states"]
    assert counts.get("sending") == 1
    assert store.reclaim(NOW, hold=False) == []
