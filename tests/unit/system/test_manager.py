"""Words for the service manager."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from outmail.system.manager import Manager


def test_the_manager_is_told_what_it_wants_to_know(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as hearing:
        hearing.bind(str(tmp_path / "notify"))
        hearing.settimeout(10)
        manager = Manager({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "3000000"})
        manager.ready("delivering")
        manager.alive()
        manager.stopping()
        manager.reloading()
        assert [hearing.recv(1000) for _ in range(3)] == [
            b"READY=1\nSTATUS=delivering",
            b"WATCHDOG=1",
            b"STOPPING=1",
        ]
        told = hearing.recv(1000)
        assert told.startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert 0 <= time.monotonic_ns() // 1000 - int(told.rpartition(b"=")[2]) < 600_000_000
    assert manager.patience == 3.0


def test_a_name_without_a_file_is_understood() -> None:
    name = f"outmail-{os.getpid()}-notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as hearing:
        hearing.bind(f"\0{name}")
        hearing.settimeout(10)
        Manager({"NOTIFY_SOCKET": f"@{name}"}).alive()
        assert hearing.recv(1000) == b"WATCHDOG=1"


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"WATCHDOG_USEC": "3000000"},
        {"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "x"},
        {"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"},
    ],
)
def test_without_being_asked_nothing_is_promised(env: dict[str, str]) -> None:
    assert Manager(env).patience == 0


def test_a_manager_that_does_not_hear_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    manager = Manager({"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    manager.ready("delivering")
    manager.stopping()
    assert len(caplog.records) == 1 and "cannot be told" in caplog.text
