"""The command forked from the starter does what the command started by Python does."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests import starts
from tests.waiting import until

QUEUE = ("--store", "q.db")
CALLS = (
    (("--version",), b""),
    (("send",), b""),
    (("queue", "list", "--store", "none.db"), b""),
    (("send", *QUEUE, "-f", "me@x.test", "-s", "grüße", "a@x.test", "--key", "k"), "tschüß\n".encode()),
    (("send", *QUEUE, "-f", "me@x.test", "-s", "grüße", "a@x.test", "--key", "k"), "tschüß\n".encode()),
    (("run", "--once", *QUEUE, "--relay", "null:"), b""),
    (("queue", "list", *QUEUE), b""),
)


def told(folder: Path) -> list[Any]:
    folder.mkdir()
    found: list[Any] = []
    for words, stdin in CALLS:
        done = starts.outmail(words, stdin=stdin, cwd=folder, env=dict(os.environ), timeout=60)
        lines = len(done.stdout.splitlines()), len(done.stderr.splitlines())
        found.append((done.args[1:], done.returncode, *lines, done.stderr[:9]))
    return [*found, sorted((p.name, stat.S_IMODE(p.stat().st_mode)) for p in folder.iterdir())]


def test_both_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forked = told(tmp_path / "forked")
    monkeypatch.setattr(starts, "_POSSIBLE", False)
    assert forked == told(tmp_path / "started")
    assert [found[1] for found in forked[:-1]] == [0, 64, 66, 0, 0, 0, 0]


def test_a_program_has_its_words_its_name_and_its_warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "program.py").write_text("import sys; print(sys.argv, __name__, sys.path[0]); sys.exit(3)")
    code = "import sys, warnings; print(sys.argv, __name__, sys.path[0])\nwarnings.warn('too loud')"
    found = []
    for possible in (True, False):
        monkeypatch.setattr(starts, "_POSSIBLE", possible)
        for words in (("-c", code, "a"), ("-Werror::UserWarning", "-c", code), ("program.py", "b")):
            done = starts.run(words, cwd=tmp_path, env=dict(os.environ), timeout=60)
            found.append((done.returncode, done.stdout, b"Traceback" in done.stderr))
    assert found[:3] == found[3:] and [status for status, _, _ in found[:3]] == [0, 1, 3]


def test_what_takes_too_long_is_killed(tmp_path: Path) -> None:
    words: tuple[str, ...] = ("run", *QUEUE, "--relay", "null:")
    with pytest.raises(subprocess.TimeoutExpired):
        starts.outmail(words, stdin=b"", cwd=tmp_path, env=dict(os.environ), timeout=1)
    words = ("queue", "list", "--store", "none.db")
    assert starts.outmail(words, stdin=b"", cwd=tmp_path, env=dict(os.environ), timeout=60).returncode == 66


def test_a_service_is_told_and_waited_for(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with open(log, "wb") as stderr:
        one = starts.service(
            ("run", *QUEUE, "--relay", "null:"), stderr=stderr, cwd=tmp_path, env=dict(os.environ)
        )
    until(lambda: (tmp_path / "q.db").exists())
    assert one.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        one.wait(0.01)
    one.kill()
    assert one.wait(30) == one.poll() == -signal.SIGKILL and b"Traceback" not in log.read_bytes()
    one.send_signal(signal.SIGTERM)  # to nobody
