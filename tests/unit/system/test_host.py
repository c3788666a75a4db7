"""The name of this machine."""

from __future__ import annotations

import os
import socket

import pytest

from outmail.system import host


def test_it_is_the_name_that_the_system_gives() -> None:
    assert host.hostname() == socket.gethostname()


def test_where_there_is_no_uname_the_environment_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "uname")
    monkeypatch.setenv("COMPUTERNAME", "DESK")
    assert host.hostname() == "DESK"


def test_a_machine_without_a_name_is_localhost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "uname")
    monkeypatch.delenv("COMPUTERNAME", raising=False)
    assert host.hostname() == "localhost"
