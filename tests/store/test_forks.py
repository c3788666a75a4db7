"""SQLite's locks belong to a process: what forks, threads and several doors of one program do to them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from outmail.store import StoreError
from outmail.store.sqlite.store import SqliteStore
from outmail.testing.conformance import NOW, add, message


@pytest.mark.parametrize("library", ["apsw", "stdlib"])
@pytest.mark.parametrize("generations", [1, 2])
def test_what_a_forked_child_stores_outlives_its_parent(
    tmp_path: Path, library: str, generations: int
) -> None:
    """A server that forks its workers, and ends or closes its store before they do: SQLite took the parent
    for the last one, and deleted their log.
    """
    code = f"""if True:
        import os, sys
        from outmail.store.sqlite.store import SqliteStore
        from outmail.testing.conformance import add, message
        store = SqliteStore({str(tmp_path / "q.db")!r}, {library!r})
        add(store, message())
        store.read(store.verbs.last_cursor())
        closed, close = os.pipe()
        stored, store_done = os.pipe()
        for generation in range({generations}):
            if os.fork():
                os.read(stored, 1)
                store.close()
                os.write(close, b"x")
                os.wait()
                os._exit(0)
        add(store, message())
        os.write(store_done, b"x" * {generations})
        for generation in range({generations}):
            os.read(closed, 1)
        for i in range(3):
            add(store, message())
        os._exit(0)  # killed, as it were
    """
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)
    again = SqliteStore(str(tmp_path / "q.db"), library)
    assert again.read(again.verbs.stats(NOW))["states"] == {"queued": 5} and again.check() == []
    again.close()


def test_a_child_of_a_parent_that_could_not_be_paused_stores_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its locks would be lost: it says so."""
    monkeypatch.setattr("outmail.store.forks.WAIT", 0.05)
    store = SqliteStore(str(tmp_path / "q.db"))
    finish = store.begin([store.verbs.add([message()])])  # a commit is under way
    pid = os.fork()
    if pid == 0:
        try:
            add(store, message())
        except StoreError as trouble:
            os._exit(0 if "forked" in str(trouble) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finish()
    assert store.read(store.verbs.stats(NOW))["states"] == {"queued": 1}
    store.close()


@pytest.mark.parametrize("library", ["apsw", "stdlib"])
@pytest.mark.parametrize("doors", [1, 2])
def test_what_a_second_door_of_the_program_does_to_the_locks_of_the_first(
    tmp_path: Path, library: str, doors: int
) -> None:
    """Opening and closing the file beside SQLite dropped them: then another program that ended took the log
    away.
    """
    path = tmp_path / "q.db"
    stores = [SqliteStore(str(path), library) for _ in range(doors)]
    other = (
        f"from outmail.store.sqlite.store import SqliteStore; SqliteStore({str(path)!r}, {library!r}).close()"
    )
    add(stores[0], message())
    subprocess.run([sys.executable, "-c", other], check=True, timeout=60)
    add(stores[0], message())
    count = (
        f"import sqlite3; print(sqlite3.connect({str(path)!r}).execute('SELECT count(*) FROM "
        f"message').fetchone()[0])"
    )
    seen = subprocess.run(
        [sys.executable, "-c", count], check=True, timeout=60, capture_output=True, text=True
    ).stdout
    assert seen == "2\n"
    for store in stores:
        store.close()


@pytest.mark.parametrize("library", ["apsw", "stdlib"])
def test_threads_of_a_forked_child_open_the_file_once(tmp_path: Path, library: str) -> None:
    """Its first calls come at the same moment: a mail and the engine's."""
    code = f"""if True:
        import os, sys, threading, time
        from outmail.store.sqlite.store import SqliteStore
        from outmail.testing.conformance import add, message
        store = SqliteStore({str(tmp_path / "q.db")!r}, {library!r})
        add(store, message())
        for _ in range(8):
            if (child := os.fork()) == 0:
                gate = threading.Barrier(6)
                def work():
                    gate.wait(10)
                    add(store, message())
                threads = [threading.Thread(target=work) for _ in range(6)]
                for thread in threads: thread.start()
                for thread in threads: thread.join(30)
                open_ones = ["/proc/self/fd/" + fd for fd in os.listdir("/proc/self/fd")]
                links = [os.readlink(path) for path in open_ones if os.path.lexists(path)]
                os._exit(sum(link.endswith("q.db") for link in links))
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            assert status == {"2" if sys.platform == "linux" else "0"}
    """
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)
    again = SqliteStore(str(tmp_path / "q.db"), library)
    assert again.read(again.verbs.stats(NOW))["states"] == {"queued": 49} and again.check() == []
    again.close()


@pytest.mark.parametrize("url", ["sqlite:", "sqlite+stdlib:"])
def test_forked_workers_with_engines_whose_parent_closes_first(tmp_path: Path, url: str) -> None:
    """Every child accepts and delivers from its first moment on."""
    code = f"""if True:
        import os, sys
        from outmail import Outbox
        box = Outbox({url + str(tmp_path / "q.db")!r}, relay="null:", exit_wait=0.5)
        box.send("first@x.test", "s", sender="a@x.test")
        children = []
        for worker in range(4):
            if (child := os.fork()) == 0:
                try:
                    receipts = [box.send(f"u{{i}}@x.test", "s", sender="a@x.test") for i in range(50)]
                    os._exit(0 if box.wait(receipts[-1].id, 20).status == "delivered" else 3)
                except BaseException:
                    import traceback
                    traceback.print_exc()
                    os._exit(4)
            children.append(child)
        box.close()
        sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], timeout=120, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not any(word in done.stderr for word in ("bug", "Traceback", "ignored")), done.stderr
    again = SqliteStore(str(tmp_path / "q.db"), "stdlib" if "stdlib" in url else "apsw")
    assert sum(again.read(again.verbs.stats(NOW))["states"].values()) == 201 and again.check() == []
    again.close()


def test_the_engine_loads_nothing_on_its_threads(tmp_path: Path) -> None:
    """A child that is forked while a thread loads a module, or a codec, has half of it, for ever."""
    code = f"""if True:
        import sys, threading
        loaded = []
        class Watch:
            def find_spec(self, name, path=None, target=None):
                if threading.current_thread() is not threading.main_thread():
                    loaded.append((threading.current_thread().name, name))
        from outmail import Outbox
        from outmail.testing import Sink
        with Sink() as sink:
            sys.meta_path.insert(0, Watch())
            with Outbox({str(tmp_path / "q.db")!r}, relay=sink.url.replace("127.0.0.1", "localhost")) as box:
                id = box.send("u@x.test", "s", sender="a@x.test").id
                assert box.wait(id, 20).status == "delivered"
        print(loaded)
    """
    done = subprocess.run(
        [sys.executable, "-c", code], timeout=60, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
