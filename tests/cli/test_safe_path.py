"""A folder ``outmail`` in the current directory is somebody else's: outmail never runs it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from outmail.cli import demo
from outmail.unix import setup


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory; whoever runs the package there leaves the file that is returned."""
    (tmp_path / "outmail").mkdir()
    (tmp_path / "outmail" / "__init__.py").write_text("")
    sprung = tmp_path / "sprung"
    (tmp_path / "outmail" / "__main__.py").write_text(f"open({str(sprung)!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    return sprung


def test_the_engine_of_the_demo_is_the_installed_one(trap: Path, tmp_path: Path) -> None:
    engine = demo._engine("none.db", str(tmp_path / "missing.toml"), str(tmp_path))
    assert engine.wait(30) == 78, (tmp_path / "engine.log").read_text()
    assert not trap.exists()


def test_the_command_of_a_service_is_the_installed_one(trap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    done = subprocess.run([*setup.command(), "--version"], capture_output=True, timeout=30)
    assert done.returncode == 0 and b"outmail" in done.stdout and not trap.exists()
