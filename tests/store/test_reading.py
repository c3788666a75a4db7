"""A queue that cannot be written, because the disk is full for instance, can still be read."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from outmail.model import Filter
from outmail.store import Store, StoreError
from outmail.testing.conformance import NOW, add, message
from outmail.wiring import open_store


@pytest.fixture(params=["apsw", "stdlib"])
def unwritable(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Store]:
    """A queue with one message, closed; from now on it cannot be opened for writing."""
    from outmail.store.sqlite import store as module

    url = f"sqlite+{request.param}:{tmp_path / 'q.db'}"
    with closing(open_store(url)) as store:
        add(store, message())

    def no_room(path: str) -> None:
        raise StoreError("full", "no space is left", errno.ENOSPC)

    monkeypatch.setattr(module, "create", no_room)
    with pytest.raises(StoreError):
        open_store(url)
    with closing(open_store(url, reading=True)) as reading:
        yield reading


def test_what_cannot_be_written_can_be_read(unwritable: Store, tmp_path: Path) -> None:
    assert len(unwritable.read(unwritable.verbs.find(Filter(), NOW))[0]) == 1
    assert "opened for reading only: no space is left" in unwritable.only_reads  # type: ignore[attr-defined]
    for write in (lambda: add(unwritable, message()), lambda: unwritable.register(NOW)):
        with pytest.raises(StoreError, match="reading only"):
            write()
    assert {path.name for path in tmp_path.iterdir()} <= {"q.db"}, "nothing was made beside it"


def test_what_may_not_even_be_read_is_told_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from outmail import cli

    path = str(tmp_path / "q.db")
    open_store(path).close()
    monkeypatch.setattr("os.access", lambda *_, **__: False)  # root may read whatever the mode says
    assert cli.main(["queue", "list", "--store", path]) == 77
    assert "permission denied" in capsys.readouterr().err


def test_reading_beside_a_program_that_writes(tmp_path: Path) -> None:
    """The log is read through the shared memory of whoever has the file open."""
    from outmail.store.sqlite.reading import SqliteReading

    with closing(open_store(str(tmp_path / "q.db"))) as writer:
        add(writer, message())
        with closing(SqliteReading(writer.path, "apsw", StoreError("full", "full"))) as reading:  # type: ignore[attr-defined]
            add(writer, message())
            assert len(reading.read(reading.verbs.find(Filter(), NOW))[0]) == 2


def test_a_log_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    """Without it, what was committed last would be missing and nobody would know."""
    from outmail.store.sqlite.reading import SqliteReading

    path = tmp_path / "q.db"
    with closing(open_store(str(path))) as writer:
        add(writer, message())
        shutil.copy(path, tmp_path / "copy.db")
        shutil.copy(f"{path}-wal", tmp_path / "copy.db-wal")
    with pytest.raises(StoreError, match=r"its log .* can only be read where"):
        SqliteReading(str(tmp_path / "copy.db"), "apsw", StoreError("full", "no space is left"))


@pytest.mark.parametrize("words", [["queue", "list"], ["queue", "stats"], ["events"], ["why", "b@x.test"]])
def test_commands_that_look_work_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    from outmail import Outbox, cli
    from outmail.store.sqlite import store as module

    path = str(tmp_path / "q.db")
    with Outbox(path, deliver="never") as box:
        ids = [box.send("b@x.test", "s", "t", sender="a@x.test").id]

    def no_room(path: str) -> None:
        raise StoreError("full", "no space is left", errno.ENOSPC)

    monkeypatch.setattr(module, "create", no_room)
    assert cli.main([*words, "--store", path]) == 0
    said = capsys.readouterr()
    assert "is opened for reading only: no space is left" in said.err
    assert ids[0] in said.out or "default" in said.out
    assert cli.main(["queue", "hold", "ALL", "--store", path]) == 75
