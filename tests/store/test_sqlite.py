"""What only the SQLite store can do, or do wrong."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from outmail.errors import ConfigError
from outmail.model import Filter
from outmail.store import StoreError
from outmail.store.sqlite import drivers
from outmail.store.sqlite import store as sqlite
from outmail.store.sqlite.store import SqliteStore
from outmail.testing.conformance import NOW, add, lease, message, settle


@pytest.fixture(params=["apsw", "stdlib"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SqliteStore]:
    made = SqliteStore(str(tmp_path / "q.db"), request.param)
    yield made
    made.close()


def test_the_dot_record_survives_its_compaction(store: SqliteStore) -> None:
    from outmail.store.owner import OwnerFile

    file = OwnerFile(store.path, "00")
    file.note([(1, 1, 1)])
    for i in range(80_000):
        file.note([(i, 2, i)])
        file.forget([(i, 2, i)])
    file.note([(9, 9, 9)])
    data = Path(file.path).read_bytes()
    import struct

    assert {(1, 1, 1), (9, 9, 9)} <= set(struct.Struct("<QII").iter_unpack(data))
    file.forget([(1, 1, 1)])
    for i in range(40_000):
        file.note([(i, 3, i)])
        file.forget([(i, 3, i)])
    assert Path(file.path).stat().st_size < 1_200_000
    assert (9, 9, 9) in set(struct.Struct("<QII").iter_unpack(Path(file.path).read_bytes()))
    file.close()


def _produce(path: str, count: int) -> None:
    made = SqliteStore(path)
    for i in range(count):
        add(made, message(key=f"shared-{i}"))
        add(made, message())
    made.close()


def test_processes_share_a_file_without_a_busy_error(tmp_path: Path) -> None:
    path = str(tmp_path / "q.db")
    SqliteStore(path).close()
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_produce, args=(path, 30)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(90)
    assert [worker.exitcode for worker in workers] == [0] * 4
    store = SqliteStore(path)
    assert len(store.read(store.verbs.find(Filter(), NOW))[0]) == 30 + 4 * 30
    store.close()


def test_two_libraries_on_one_file_are_refused(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path / "q.db"))
    with pytest.raises(ConfigError, match="lose commits"):
        SqliteStore(store.path, "stdlib")
    store.close()
    SqliteStore(store.path, "stdlib").close()


def test_a_foreign_lock_is_waited_for_or_said(store: SqliteStore) -> None:
    code = (
        f"import sqlite3, sys; c=sqlite3.connect({store.path!r}); c.execute('BEGIN IMMEDIATE'); "
        f"print(flush=True); sys.stdin.read(); c.rollback()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as foreign:
        assert foreign.stdin and foreign.stdout
        foreign.stdout.readline()
        with pytest.raises(StoreError) as caught:
            store.commit([store.verbs.add([message()])], wait=0)
        assert caught.value.kind == "busy"
        began = time.monotonic()
        store.read(store.verbs.next_due(NOW))
        assert time.monotonic() - began < 20
        letting_go = threading.Timer(0.2, foreign.stdin.close)
        letting_go.start()
        add(store, message())
        letting_go.join()
    assert len(store.read(store.verbs.find(Filter(), NOW))[0]) == 1


def test_a_file_that_was_removed_or_replaced_takes_nothing(store: SqliteStore) -> None:
    """It would be lost with the program: nobody could open that file again."""
    path, aside = Path(store.path), Path(store.path).with_suffix(".aside")
    add(store, message())
    path.rename(aside)
    for replaced in (False, True):
        if replaced:
            path.touch()
        with pytest.raises(StoreError, match="removed or replaced") as problem:
            add(store, message())
        assert problem.value.kind == "io"
        with pytest.raises(StoreError, match="removed or replaced"):
            store.begin([store.verbs.add([message()])])()
    aside.replace(path)
    add(store, message())
    assert store.read(store.verbs.stats(NOW))["states"] == {"queued": 2}


def test_a_full_disk_is_said_and_leaves_nothing_half(store: SqliteStore) -> None:
    add(store, message())
    store._writer.execute(f"PRAGMA max_page_count = {store._writer.execute('PRAGMA page_count')[0][0] + 2}")
    with pytest.raises(StoreError) as caught:
        add(store, message(content=b"A: b\r\n\r\n" + b"x" * 50_000))
    assert caught.value.kind == "full"
    store._writer.execute("PRAGMA max_page_count = 1000000")
    add(store, message())
    assert len(store.read(store.verbs.find(Filter(), NOW))[0]) == 2 and store.check() == []


def test_a_store_of_the_first_schema_is_brought_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sqlite, "SCHEMA", 1)
        old = SqliteStore(str(tmp_path / "q.db"))
        add(old, message())
        old.close()
    store = SqliteStore(str(tmp_path / "q.db"))
    store.run(store.verbs.pause_hop("default", "smtp://a:25", "refused", "one", NOW))
    assert [e.event for e in store.read(store.verbs.events_after(0))] == ["accepted", "paused"]
    store.close()


def test_a_later_schema_and_a_foreign_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "later.db"
    SqliteStore(str(path)).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreError, match="later outmail"):
        SqliteStore(str(path))
    (tmp_path / "text.db").write_text("this is no database, " * 100)
    with pytest.raises(StoreError) as caught:
        SqliteStore(str(tmp_path / "text.db"))
    assert caught.value.kind == "corrupt"
    with pytest.raises(StoreError, match="folder"):
        SqliteStore(str(tmp_path / "missing" / "q.db"))


def test_hot_queries_use_the_small_indexes(store: SqliteStore) -> None:
    from outmail.store.verbs import delivery

    for sql, index in (
        (delivery.READY, "recipient_ready"),
        ("SELECT min(destination) FROM recipient WHERE state = 'queued' AND losses = 0", "recipient_ready"),
        (
            "SELECT message, n FROM recipient WHERE state IN ('queued', 'held') AND expires_at <= ? LIMIT ?",
            "recipient_expiry",
        ),
        ("SELECT message FROM recipient WHERE state = 'sending' AND owner = ?", "recipient_leased"),
    ):
        plan = str(store._reader.execute("EXPLAIN QUERY PLAN " + sql, (1,) * sql.count("?")))
        assert index in plan and "SCAN" not in plan.replace(
            f"SCAN recipient USING COVERING INDEX {index}", ""
        ), plan


def test_the_database_is_private(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path / "q.db"))
    assert Path(store.path).stat().st_mode & 0o077 == 0
    store.close()


def test_engines_come_while_others_tidy_up(tmp_path: Path) -> None:
    """Whoever looks for dead engines may lock a file in the moment between its making and its locking."""

    from outmail.store.owner import OwnerFile, dead_files

    path, over, dead = str(tmp_path / "q.db"), threading.Event(), []

    def tidy() -> None:
        while not over.is_set():
            for found in dead_files(path):
                dead.append(found.uuid)
                found.remove()

    threads = [threading.Thread(target=tidy) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for i in range(300):
            file = OwnerFile(path, f"{i:032x}")
            file.note([(1, 1, i)])
            file.close()
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert dead == [] and not list(tmp_path.glob("q.db.engine*"))


def test_space_is_given_back(store: SqliteStore) -> None:
    add(store, *[message(content=b"A: b\r\n\r\n" + os.urandom(3000).hex().encode()) for _ in range(300)])
    owner = store.register(NOW)
    for delivery in lease(store, owner, 299):
        settle(store, owner, delivery, "delivered", "delivered")
    store.run(store.verbs.purge("bodies", NOW + 4000))
    before = Path(store.path).stat().st_size
    for _ in range(5):
        store.give_space_back()
    store._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert (
        Path(store.path).stat().st_size < before
        or store._writer.execute("PRAGMA freelist_count")[0][0] <= 256
    )
    assert store.check() == []


def test_a_store_costs_no_import_that_only_reads_its_schema(tmp_path: Path) -> None:
    code = (
        "import sys; from outmail.store.sqlite.store import SqliteStore; "
        f"SqliteStore({str(tmp_path / 'q.db')!r}).close(); "
        "sys.exit('importlib.resources' in sys.modules or 'tempfile' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("where", ["begun", "worked"])
def test_ctrl_c_in_the_middle_of_a_commit_leaves_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """An open transaction kept every other program from writing, and this one too, until it ended."""
    one, other = SqliteStore(str(tmp_path / "q.db")), SqliteStore(str(tmp_path / "q.db"))
    patient = drivers.patient

    def begun(action: Any, wait: float = 30.0) -> None:
        patient(action, wait)
        raise KeyboardInterrupt

    def worked() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(drivers, "patient", begun) if where == "begun" else m.setattr(one, "_commit", worked)
        with pytest.raises(KeyboardInterrupt):
            add(one, message())
    assert not one._writer.in_transaction()
    add(other, message())
    one._writer.execute("BEGIN IMMEDIATE")  # as left behind by Ctrl-C in a place that no handler covers
    add(one, message())
    assert len(one.read(one.verbs.find(Filter(), NOW))[0]) == 2
    one.close()
    other.close()
