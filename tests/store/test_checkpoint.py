"""Checkpoints beside the commits: the log stays short, nothing is lost, and no commit fails because of
one.
"""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from outmail.store import StoreError
from outmail.store.sqlite import checkpoint, drivers
from outmail.store.sqlite.store import SqliteStore
from outmail.testing.conformance import message

FEW = 40


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SqliteStore:
    monkeypatch.setattr(checkpoint, "PAGES", FEW)
    return SqliteStore(str(tmp_path / "q.db"))


def begun(store: SqliteStore) -> None:
    """One commit as a loop makes it."""
    store.begin([store.verbs.add([message()])])()


def in_database(store: SqliteStore, folder: Path) -> int:
    """How many messages are in the database file itself, without its log."""
    copy = folder / "copy.db"
    copy.write_bytes(Path(store.path).read_bytes())
    db = sqlite3.connect(copy)
    try:
        return int(db.execute("SELECT count(*) FROM message").fetchone()[0])
    finally:
        db.close()


def test_a_loops_commits_leave_the_log_short(store: SqliteStore, tmp_path: Path) -> None:
    for _ in range(600):
        begun(store)
    log = Path(store.path + "-wal").stat().st_size
    assert log < 600 * 4096 * 2  # each commit writes three pages and more
    assert store._checkpoints is not None
    store._checkpoints.close()
    store._checkpoints._side = None
    assert in_database(store, tmp_path) > 300
    store.close()
    db = sqlite3.connect(store.path)
    assert (
        db.execute("SELECT count(*) FROM message").fetchone()[0] == 600
        and db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    )
    db.close()


def test_who_has_no_loop_moves_it_in_place(store: SqliteStore, tmp_path: Path) -> None:
    before = threading.active_count()
    for _ in range(60):
        store.run(store.verbs.add([message()]))
        assert threading.active_count() == before
    assert in_database(store, tmp_path) > 30
    store.close()


def test_trouble_with_the_checkpoint_is_told_once_and_no_commit_fails(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(self: drivers.Apsw) -> None:
        raise StoreError("full", "database or disk is full")

    monkeypatch.setattr(drivers.Apsw, "checkpoint", full)
    with caplog.at_level(logging.WARNING, "outmail"):
        for _ in range(60):
            begun(store)
    store.close()
    assert [record.getMessage() for record in caplog.records] == [
        "the write-ahead log grows, because it cannot be moved into the database: database or disk is full"
    ]


def test_beside_a_long_reader_it_is_not_tried_again_at_each_commit(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "PAGES", 400)
    checkpoints = store._checkpoints
    assert checkpoints is not None
    begun(store)
    store._reader.execute("BEGIN")
    store._reader.execute("SELECT count(*) FROM message")
    started = checkpoints._started
    starts: list[bool] = []

    def start() -> Any:
        starts.append(True)
        return started()

    monkeypatch.setattr(checkpoints, "_started", start)
    for _ in range(400):
        begun(store)
        checkpoints.wait(10)
    pages = Path(store.path + "-wal").stat().st_size // 4096
    assert 3 < len(starts) <= (pages - 400) / 100 + 2
    store._reader.execute("COMMIT")
    store.close()


def test_a_connection_that_cannot_be_made_is_no_harm(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert store._checkpoints is not None

    def none() -> drivers.Apsw:
        raise StoreError("forbidden", "unable to open database file")

    monkeypatch.setattr(store._checkpoints, "_connect", none)
    for _ in range(100):
        begun(store)
    store.close()
    assert "unable to open" in caplog.text


def test_where_no_thread_can_be_started_it_is_done_in_place(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refused)
    for _ in range(60):
        begun(store)
    assert in_database(store, tmp_path) > 30
    store.close()


def in_a_child(action: Callable[[], None]) -> int:
    """Its exit status; a child that hangs is killed."""
    child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        finally:
            os._exit(1)
    killer = threading.Timer(40, os.kill, (child, signal.SIGKILL))
    killer.start()
    _, status = os.waitpid(child, 0)
    killer.cancel()
    return os.waitstatus_to_exitcode(status)


def test_forks_beside_threads_that_commit_and_checkpoint(store: SqliteStore) -> None:
    """SQLite has locks of its own; a child would wait for ever for one that a thread of its parent held."""
    ending = threading.Event()
    done = [0, 0]

    def busy() -> None:
        while not ending.is_set():
            begun(store)
            done[0] += 1

    def child() -> None:
        for _ in range(10):
            begun(store)
        assert in_a_child(lambda: begun(store)) == 0

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        for _ in range(15):
            assert in_a_child(child) == 0
            done[1] += 11
    finally:
        ending.set()
        thread.join(30)
    store.close()
    db = sqlite3.connect(store.path)
    assert (
        db.execute("SELECT count(*) FROM message").fetchone()[0] == sum(done)
        and db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    )
    db.close()
