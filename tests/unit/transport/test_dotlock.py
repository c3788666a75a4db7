"""Dot locks where the system does not play along, and whose maker is gone."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from outmail.system.host import hostname
from outmail.system.lockfile import boot_id, started_at
from outmail.transport import dotlock, places

BOX = "box.lock"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


def refusing(number: int) -> Any:
    def refuse(*words: Any, **named: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_where_no_lock_can_be_made_there_is_none_unless_somebody_holds_one(
    folder: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(places, "Unseen", refusing(number))
    assert dotlock.take(folder, BOX) is None
    (tmp_path / BOX).write_text("4711\n")
    with pytest.raises(dotlock.Locked, match="another program holds"):
        dotlock.take(folder, BOX)


def test_another_trouble_is_not_taken_for_permission(folder: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "Unseen", refusing(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        dotlock.take(folder, BOX)


def test_without_flock_there_is_no_lock_and_nothing_is_left(
    folder: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dotlock, "try_lock", lambda fd: False)
    with pytest.raises(OSError, match="flock does not work there"):
        dotlock.take(folder, BOX)
    assert os.listdir(tmp_path) == []


def test_a_lock_that_vanishes_and_comes_back_all_the_time_is_somebodys(
    folder: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / BOX).write_text("4711\n")
    monkeypatch.setattr(dotlock, "_of_the_dead", lambda folder, name: None)
    with pytest.raises(dotlock.Locked):
        dotlock.take(folder, BOX)
    assert os.listdir(tmp_path) == [BOX]


def test_what_cannot_be_opened_is_never_broken(folder: int, tmp_path: Path) -> None:
    (tmp_path / BOX).symlink_to("elsewhere")
    with pytest.raises(dotlock.Locked, match="remove that file"):
        dotlock.take(folder, BOX)
    assert (tmp_path / BOX).is_symlink()


def test_a_lock_that_cannot_be_removed_is_named_and_let_go(
    folder: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fd = dotlock.take(folder, BOX)
    assert fd is not None
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "outmail"):
        patch.setattr(places, "remove", refusing(errno.EROFS))
        dotlock.release(folder, BOX, fd)
    assert BOX in caplog.text and "Read-only" in caplog.text
    with pytest.raises(OSError):
        os.fstat(fd)


def test_who_is_gone() -> None:
    """A lock that the kernel has released, by somebody who says where it was made."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(30)
    me: dict[str, Any] = json.loads(dotlock._who())
    assert dotlock._gone(me), "the same kernel has released it"
    elsewhere = {**me, "boot": ""}
    known = [
        ({**me, "boot": "another"}, True),
        ({**me, "boot": "another", "host": "elsewhere"}, False),
        ({**elsewhere, "host": "elsewhere"}, False),
    ]
    for who, gone in known:
        assert dotlock._gone(who) is gone, who
    assert me["host"] == hostname() and me["boot"] == boot_id() and me["started"] == started_at(os.getpid())


def test_without_a_boots_name_the_process_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(30)
    monkeypatch.setattr(dotlock, "boot_id", lambda: "")
    me: dict[str, Any] = json.loads(dotlock._who())
    assert dotlock._gone(me) is False
    assert dotlock._gone({**me, "started": "1"}), "its number is another process's now"
    assert dotlock._gone({**me, "pid": ended.pid})
    monkeypatch.setattr(os, "kill", refusing(errno.EPERM))
    assert dotlock._gone(me) is False, "it lives, and is somebody else's"
