"""A live outmail for somebody else's programs: `outmail run` as a process of its own, and what it took.

Runs inside the environment of a peer, beside its tests: it needs outmail and what outmail depends on, nothing
of the project's tests.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outmail import Outbox

PATIENCE = 30.0
#: What a bare name (``John``) of a client gets; it is taken off again before a test looks.
ORIGIN = "origin.test"
#: What a listener puts in front: a trace field, and where they are missing a date and its own Message-ID.
_ADDED = re.compile(
    rb"Received:[^\n]*\n(?:[ \t][^\n]*\n)*(?:(?:Date:[^\n]*\n)?Message-ID: *<[0-9a-v]{26}@[^\n>]*>\r?\n)?",
    re.I,
)


@dataclass(frozen=True)
class Mail:
    sender: str
    recipients: list[str]
    content: bytes

    @property
    def given(self) -> bytes:
        """The content without the fields that a listener puts in front."""
        added = _ADDED.match(self.content)
        return self.content[added.end() :] if added else self.content


class Live:
    """One service: listeners on free ports of this machine, and a relay that takes everything nowhere."""

    def __init__(self, toml: str = "", relay: str = "null:", **listen: str) -> None:
        """``toml`` is added to the configuration; ``listen`` to its table of this name, as TOML values."""
        self.folder = Path(tempfile.mkdtemp(prefix="outmail-live-"))
        self.port, self.lmtp_port, self.submission_port = (free_port() for _ in range(3))
        self.store = str(self.folder / "q.db")
        lines = "".join(f"{name} = {value}\n" for name, value in listen.items())
        (self.folder / "outmail.toml").write_text(
            f'store = "{self.store}"\nrelay = "{relay}"\nhostname = "outmail.test"\n'
            f'[listen]\nsmtp = ["127.0.0.1:{self.port}"]\nlmtp = ["127.0.0.1:{self.lmtp_port}"]\n'
            + (f'submission = ["127.0.0.1:{self.submission_port}"]\n' if "users_file" in listen else "")
            + f'{lines}[accept]\norigin = "{ORIGIN}"\n{toml}'
        )
        self._log = open(self.folder / "log", "wb")
        self._service = subprocess.Popen(
            [sys.executable, "-m", "outmail", "run", "--config", str(self.folder / "outmail.toml")],
            stderr=self._log,
        )
        try:
            until(self._answers)
        except BaseException:
            self.stop()
            raise
        self._box = Outbox(self.store, deliver="never")
        self._forgotten: set[str] = set()

    def received(self) -> list[Mail]:
        """What it took since `forget`, in order."""
        found = [status for status in self._box.find() if status.id not in self._forgotten]
        return [
            Mail(
                (status.sender or "").removesuffix(f"@{ORIGIN}"),
                [recipient.address.removesuffix(f"@{ORIGIN}") for recipient in status.recipients],
                self._box.content(status.id),
            )
            for status in found
        ]

    def forget(self) -> None:
        self._forgotten = {status.id for status in self._box.find()}

    def stop(self) -> None:
        self._service.terminate()
        try:
            self._service.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._service.kill()
            self._service.wait()
        self._log.close()
        if hasattr(self, "_box"):
            self._box.close()

    def _answers(self) -> bool:
        if self._service.poll() is not None:
            raise RuntimeError(f"outmail ended: {(self.folder / 'log').read_text()}")
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                return connection.recv(3) == b"220"
        except OSError:
            return False


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def until(condition: Callable[[], Any], seconds: float = PATIENCE) -> None:
    """Returns once ``condition()`` is true; raises TimeoutError after ``seconds``."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"nothing came in {seconds} s")
        time.sleep(0.02)
