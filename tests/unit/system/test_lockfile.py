"""Lock files: what is left behind when something goes wrong."""

from __future__ import annotations

import builtins
import errno
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from outmail.system import lockfile
from outmail.system.lockfile import LockFile, boot_id, started_at, try_lock


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_file_that_cannot_get_its_name_leaves_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*words: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    before = descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refuse)
        with pytest.raises(OSError, match="Read-only"):
            LockFile(str(tmp_path / "t"), str(tmp_path / "file"), b"x")
    assert descriptors() == before and not (tmp_path / "file").exists()


def test_an_end_comes_once_also_when_somebody_has_cleared_up(tmp_path: Path) -> None:
    made = LockFile(str(tmp_path / "t"), str(tmp_path / "file"))
    os.unlink(tmp_path / "file")
    made.end()
    made.end()
    assert made.fd == -1 and os.listdir(tmp_path) == []


def test_who_removes_every_file_before_it_is_locked_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lockfile, "PATIENCE", 0.05)
    monkeypatch.setattr(lockfile, "same_file", lambda path, fd: False)
    before = descriptors()
    with pytest.raises(OSError, match="keep locking or removing"):
        LockFile(str(tmp_path / "t"), str(tmp_path / "file"))
    assert descriptors() == before


def test_who_clears_up_slowly_is_waited_for(tmp_path: Path) -> None:
    """It may have lost its processor while it held the lock."""
    import fcntl

    slow = os.open(tmp_path / "t", os.O_RDWR | os.O_CREAT)
    fcntl.flock(slow, fcntl.LOCK_EX)
    threading.Timer(0.2, os.close, [slow]).start()
    LockFile(str(tmp_path / "t"), str(tmp_path / "file")).end()


def test_a_system_that_does_not_say_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(30)
    assert started_at(gone.pid) == "" and started_at(os.getpid()).isdigit()

    def refuse(*words: Any, **named: Any) -> Any:
        raise OSError(errno.ENOENT, "no /proc here")

    monkeypatch.setattr(builtins, "open", refuse)
    assert boot_id() == "" and started_at(os.getpid()) == ""


def test_without_locks_nothing_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(tmp_path / "file", "wb") as file:
        assert try_lock(file.fileno())
        monkeypatch.setattr(lockfile, "can_lock", lambda: False)
        assert not try_lock(file.fileno())
