"""The walks in docs/walks are followed word by word: every file is written, every command is run, and every
line of output that a page shows appears.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pgserver import free_port
from tests.waiting import listens, until

WALKS = Path(__file__).parents[2] / "docs" / "walks"
BLOCK = re.compile(r"(?:^`([\w./-]+)`[^\n]*:\n\n)?```(\w*)\n(.*?)^```", re.S | re.M)
#: Pages name these ports; a test uses free ones. Nobody listens at the second.
MAILBOX, NOBODY = "2525", "2599"
SECONDS = 60.0
END = "-- end of this command --"


class Shell:
    """One bash for a page, as a reader has one terminal."""

    def __init__(self, folder: Path) -> None:
        home = folder / "home"
        home.mkdir()
        env = {
            **{
                name: value for name, value in os.environ.items() if not name.startswith(("OUTMAIL_", "XDG_"))
            },
            "HOME": str(home),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "TZ": "Europe/Berlin",
        }
        self.process = subprocess.Popen(
            ["bash", "--norc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=env,
            start_new_session=True,
        )

    def run(self, command: str) -> tuple[int, str]:
        """(status, what it printed)."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f'{command}\necho "{END}$?"\n'.encode())
        self.process.stdin.flush()
        seen, deadline = b"", time.monotonic() + SECONDS
        while not (done := re.search(rf"{END}(\d+)\n$".encode(), seen)):
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{command!r} does not end: {seen!r}"
            chunk = os.read(self.process.stdout.fileno(), 65536)
            assert chunk, f"the shell ended at {command!r}: {seen!r}"
            seen += chunk
        return int(done[1]), seen[: done.start()].decode()

    def close(self) -> None:
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(20)
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    made = Shell(tmp_path)
    yield made
    made.close()


def _steps(block: str) -> Iterator[tuple[str, list[str]]]:
    """(command, lines of output that the page shows) of a console block."""
    for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
        command, _, shown = part.replace("\\\n> ", "").partition("\n")
        yield command, [line.rstrip() for line in shown.splitlines() if line.strip() and line.strip() != "…"]


def _matches(line: str, output: str) -> bool:
    """``…`` stands for anything."""
    return re.search(r"[^\n]*".join(re.escape(part) for part in line.split("…")), output) is not None


def _follow(shell: Shell, command: str, shown: list[str]) -> None:
    began = time.monotonic()

    def as_shown() -> bool:
        status, output = shell.run(command)
        missing = [line for line in shown if not _matches(line, output)]
        if not missing and status == 0:
            return True
        looking = re.match(r"outmail (queue list|queue stats|show|why|jobs|log|events)\b", command)
        in_time = looking and time.monotonic() - began < SECONDS
        assert in_time, f"$ {command}\n{output}\nstatus {status}; {missing}"
        return False

    until(as_shown, 2 * SECONDS, pause=0.2)


def test_there_are_four_walks() -> None:
    assert sorted(page.stem for page in WALKS.glob("*.md")) == ["oncall", "scientist", "sysadmin", "web"]


@pytest.mark.parametrize("name", ["scientist", "sysadmin", "web", "oncall"])
def test_a_walk_can_be_followed(name: str, shell: Shell, tmp_path: Path) -> None:
    page = (WALKS / f"{name}.md").read_text()
    assert len(page.splitlines()) <= 150, "a walk is one page"
    mailbox, nobody = free_port(), free_port()
    page = page.replace(MAILBOX, str(mailbox)).replace(NOBODY, str(nobody))
    for file, language, block in BLOCK.findall(page):
        if file:
            (tmp_path / file).write_text(block)
            (tmp_path / file).chmod(0o600)
        elif language == "toml":
            continue  # a piece of a file, to be looked at
        elif language == "cron":
            for line in block.splitlines():
                _follow(shell, line.split(None, 5)[5], [])
        else:
            assert language == "console", f"neither a file nor a terminal: {block}"
            for command, shown in _steps(block):
                _follow(shell, command, shown)
                if command.startswith("outmail receive"):
                    until(lambda: listens(mailbox), SECONDS)
