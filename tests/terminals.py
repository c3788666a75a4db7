"""A program at a terminal of its own, driven by a script: what it asks, and what is typed."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

from tests.waiting import PATIENCE

#: Makes the terminal on stdin the controlling one (getpass opens /dev/tty), then becomes the program. Without
#: NOFLSH the kernel, after it has sent the signal of Ctrl-C, throws away what the program has said to it. And
#: who runs the tests in a shell's background has given them an ignored SIGINT.
_START = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGINT, signal.SIG_DFL)
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
words = termios.tcgetattr(0)
words[3] |= termios.NOFLSH
termios.tcsetattr(0, termios.TCSANOW, words)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """``seen``: everything the program has written. Leaving ends the program."""

    def __init__(self, words: Sequence[str], cwd: str, env: Mapping[str, str] | None = None) -> None:
        self._master, slave = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, *words],
            stdin=slave, stdout=slave, stderr=slave, cwd=cwd, env=env, start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        self.seen = ""
        self._read = 0

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(PATIENCE)
        os.close(self._master)

    def expect(self, text: str) -> None:
        """Wait until the program writes ``text``, behind what was expected before."""
        ends = time.monotonic() + PATIENCE
        while (at := self.seen.find(text, self._read)) < 0:
            assert self._more(ends), f"it did not write {text!r} but:\n{self.seen[self._read :]}"
        self._read = at + len(text)

    def type(self, line: str, end: str = "\n") -> None:
        os.write(self._master, (line + end).encode())

    def answer(self, question: str, line: str) -> None:
        self.expect(question)
        self.type(line)

    def end(self) -> int:
        """Wait until the program is through; its exit status."""
        ends = time.monotonic() + PATIENCE
        while self._more(ends):
            pass
        return self._process.wait(PATIENCE)

    def _more(self, ends: float) -> bool:
        """Read what comes next; False at the end, or when it is too late."""
        if not select.select([self._master], [], [], max(ends - time.monotonic(), 0))[0]:
            return False
        try:
            data = os.read(self._master, 65_536)
        except OSError:  # Linux: the program has closed its side
            return False
        self.seen += data.decode("utf-8", "replace").replace("\r\n", "\n")
        return bool(data)
