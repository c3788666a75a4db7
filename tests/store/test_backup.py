"""A backup is whole under its name or not there, and is its owner's alone; so is every other file of ours."""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from outmail import Outbox, job
from outmail.errors import ConfigError, NotStored, Refused
from outmail.ops.backup import whole
from outmail.reports.digest import DigestHandler
from outmail.store import StoreError
from outmail.store.sqlite import drivers
from outmail.store.sqlite.store import SqliteStore
from outmail.wiring import open_store
from tests import pgserver


@pytest.fixture(params=["sqlite", "postgresql"])
def queue(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A store with one message."""
    if request.param == "sqlite":
        Outbox(tmp_path / "q.db").send("a@x.test", sender="me@x.test", text="hello")
        yield "q.db"
        return
    with pgserver.database(max(pgserver.installed(), key=int)) as url:
        with Outbox(url, deliver="never") as box:
            box.send("a@x.test", sender="me@x.test", text="hello")
        yield url


def mode(path: str | os.PathLike[str]) -> int:
    return os.stat(path).st_mode & 0o777


def killed(folder: Path, queue: str, where: str) -> None:
    """A backup that dies where ``where`` is called."""
    program = (
        f"import os, signal, sys, outmail.cli, outmail.ops.backup, outmail.store.sqlite.store\n{where} = "
        f"lambda *a, **w: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    program += f"sys.exit(outmail.cli.main(['store', 'backup', 'copy.db', '--store', {queue!r}]))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize(
    "where", ["os.link", "outmail.ops.backup._sync", "outmail.store.sqlite.store.SqliteStore.close"]
)
def test_a_killed_backup_has_no_name(tmp_path: Path, outmail: Any, queue: str, where: str) -> None:
    if where.endswith("close") and queue == "q.db":
        pytest.skip("the copy is made by SQLite itself")
    killed(tmp_path, queue, where)
    (left,) = [
        name
        for name in os.listdir(tmp_path)
        if ".unfinished." in name and not name.endswith(("-wal", "-shm"))
    ]
    assert not (tmp_path / "copy.db").exists() and mode(tmp_path / left) == 0o600
    for command in (
        ("store", "check", "--store", left),
        ("move", left, "else.db"),
        ("queue", "list", "--store", left),
    ):
        refused = outmail(*command)
        assert refused.returncode == 78 and b"unfinished backup" in refused.stderr, refused.stderr
    again = outmail("store", "backup", "copy.db", "--store", queue)
    assert again.returncode == 0 and left.encode() in again.stderr
    assert outmail("store", "check", "--store", "copy.db").returncode == 0
    assert b"a@x.test" in outmail("queue", "list", "--store", "copy.db").stdout


def test_a_backup_is_private_and_alone(tmp_path: Path, outmail: Any, queue: str) -> None:
    before = os.umask(0)
    try:
        assert outmail("store", "backup", "copy.db", "--store", queue).returncode == 0
    finally:
        os.umask(before)
    assert mode(tmp_path / "copy.db") == 0o600 and [
        name for name in os.listdir(tmp_path) if name.startswith("copy.db")
    ] == ["copy.db"]
    told = outmail("store", "backup", "copy.db", "--store", queue)
    assert told.returncode == 65 and b"exists" in told.stderr


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "copy.db"
    with pytest.raises(Refused, match="exists"), whole(str(path)) as temporary:
        Path(temporary).write_text("backup")
        path.write_text("mine")
    assert path.read_text() == "mine" and os.listdir(tmp_path) == ["copy.db"]


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(NotStored, match="No space left"), whole(str(tmp_path / "copy.db")):
        raise OSError(28, "No space left on device")
    with pytest.raises(NotStored, match="No such file"), whole(str(tmp_path / "nowhere" / "copy.db")):
        pass
    assert os.listdir(tmp_path) == []


def test_check_knows_what_is_no_store(tmp_path: Path, outmail: Any) -> None:
    (tmp_path / "empty.db").touch()
    (tmp_path / "text.db").write_text("no database at all, but long enough to look like something " * 50)
    with sqlite3.connect(tmp_path / "foreign.db") as foreign:
        foreign.execute("CREATE TABLE theirs (a)")
    foreign.close()
    for name in ("empty.db", "text.db", "foreign.db"):
        before = (tmp_path / name).read_bytes()
        told = outmail("store", "check", "--store", name)
        assert told.returncode == 65 and b"no outmail store" in told.stdout, (name, told)
        assert (tmp_path / name).read_bytes() == before
    missing = outmail("store", "check", "--store", "nowhere.db")
    assert missing.returncode == 66 and not (tmp_path / "nowhere.db").exists()


def test_check_tells_of_a_truncated_file(tmp_path: Path, outmail: Any) -> None:
    with Outbox(tmp_path / "q.db") as box:
        for i in range(50):
            box.send(f"a{i}@x.test", sender="me@x.test", text="hello " * 500)
    with open(tmp_path / "q.db", "r+b") as file:
        file.truncate(os.path.getsize(tmp_path / "q.db") // 2 // 4096 * 4096)
    told = outmail("store", "check", "--store", "q.db")
    assert told.returncode == 65 and told.stdout, told


def test_what_is_unfinished_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unfinished"):
        open_store(str(tmp_path / "q.db.unfinished.0123456789ab"))


def test_every_file_of_ours_is_its_owners_alone(tmp_path: Path, sink: Any) -> None:
    """With the most open umask there is. (SQLite gives its log and index the mode of the file.)"""
    import logging

    before = os.umask(0)
    try:
        box = Outbox(tmp_path / "q.db", relay=sink.url)
        box.send("a@x.test", sender="me@x.test", text="hello")
        box.send("a@x.test", sender="me@x.test", text="long line\n" * 200_000)
        claim = box.store.uploading("aa")
        handler = DigestHandler("me@x.test", name="errors", outbox=box)
        handler.emit(logging.LogRecord("x", logging.ERROR, "f", 1, "secret", None, None))
        with job("nightly", to="me@x.test", outbox=box):
            sink.wait_for(2, timeout=20)
            found = {
                str(path.relative_to(tmp_path)): mode(path)
                for path in tmp_path.rglob("*")
                if not path.is_socket()
            }
        claim.end()
        handler.close()
        box.close()
    finally:
        os.umask(before)
    assert {name.partition(".engine")[0] for name in found} >= {"q.db", "q.db-wal", "q.db.spool"}, found
    assert any(".engine." in name for name in found) and any(".upload." in name for name in found)
    assert {name: value for name, value in found.items() if value & 0o077} == {}


@pytest.mark.parametrize("library", ["apsw", "stdlib"])
def test_what_is_left_in_the_log_of_the_copy_is_no_backup(tmp_path: Path, library: Any) -> None:
    """As on a disk that fills up: closing cannot move the log into the file, and says nothing."""
    with pytest.raises(NotStored, match="not made"), whole(str(tmp_path / "copy.db")) as temporary:
        store = SqliteStore(temporary, library)
        store.run(store.verbs.note_put("job", "a", {}))
        command = (
            f"import sqlite3, sys; d = sqlite3.connect({temporary!r}); d.execute('BEGIN'); "
            f"d.execute('SELECT * FROM note').fetchall(); print(1, flush=True); sys.stdin.read()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other:
            assert other.stdout is not None and other.stdout.readline()
            store.run(store.verbs.note_put("job", "b", {}))
            store.close()
            os.kill(other.pid, signal.SIGKILL)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("library", ["apsw", "stdlib"])
def test_a_flush_leaves_nothing_in_the_log_or_says_so(
    tmp_path: Path, library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(SqliteStore(str(tmp_path / "q.db"), library)) as store:
        store.run(store.verbs.note_put("job", "a", {}))
        assert os.path.getsize(tmp_path / "q.db-wal") > 0
        store.flush()
        assert os.path.getsize(tmp_path / "q.db-wal") == 0
        monkeypatch.setattr(drivers, "patient", lambda action, wait=0.0: action())
        command = (
            f"import sqlite3, sys; d = sqlite3.connect({store.path!r}); d.execute('BEGIN'); "
            f"d.execute('SELECT * FROM note').fetchall(); print(1, flush=True); sys.stdin.read()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other:
            assert other.stdout is not None and other.stdout.readline()
            store.run(store.verbs.note_put("job", "b", {}), wait=0)
            with pytest.raises(StoreError, match="somebody else reads"):
                store.flush()
            os.kill(other.pid, signal.SIGKILL)


def test_without_links_a_file_that_appears_meanwhile_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*args: Any) -> None:
        (tmp_path / "copy.db").write_text("mine")
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(Refused, match="exists"), whole(str(tmp_path / "copy.db")):
        pass
    assert os.listdir(tmp_path) == ["copy.db"] and (tmp_path / "copy.db").read_text() == "mine"


def test_without_links_a_backup_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*args: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    with whole(str(tmp_path / "copy.db")) as temporary:
        Path(temporary).write_text("whole")
    assert os.listdir(tmp_path) == ["copy.db"] and (tmp_path / "copy.db").read_text() == "whole"
